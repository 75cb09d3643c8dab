"""`mini-chat-gpt recipe`: fine-tune with a recipe, and measure what the model learned.

A recipe is a folder, for example recipes/headlines:

    config.yaml     settings, as for `mini-chat-gpt sft --config`; chat files in the folder can be given by name
    prompts.yaml    prompts for the comparison (evaluation/prompt_suite.py), and the held-out parts with their checks
                    (evaluation/held_out_part.py)
    README.md       the strategy: problem, base, data, method, how it is judged, what is difficult, results
    checklist.py    optional: checks that need code (recipe/checklist.py)

`command` is the verb, `train` trains and compares, `score` measures held-out replies, `check` finds what a recipe lacks, and
`new` writes a recipe from a file of chats.
"""
