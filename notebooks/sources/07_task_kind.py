# %% [markdown]
# # A new kind of task
#
# Fine-tuning data for stories is made by rule: each story gives several questions whose answers are known. This is a
# longer exercise. At the end you can
#
# - write a kind of task: a question, its answer, and the part of the story that supports it,
# - say why a task must return nothing where it is not sure,
# - find the baseline of the new kind before any training,
# - add the kind to the program.

# %%
import course
from mini_chat_gpt.sft_dataloader import generate_tasks, read_records

base, tokenizer = course.base()
records = list(read_records(course.VALID))
print(records[0].story)
for task in generate_tasks(records[0], seed=0):
    print(f"\n{task.kind}: {task.target[:100]!r}")

# %% [markdown]
# ## A kind is a function and its prompts
#
# The function gets a record and returns a `Task`, or `None` if the record can't answer the question. The prompts are
# templates, and `{story}` is replaced by the story. Several templates teach the question, not one wording. A
# `TemplateSampler` chooses one of them, always the same one for the same record and seed.
#
# Here is a complete kind: quote the last sentence. The prompts of the program are in `assets/task_prompts.yaml`; here
# they are added to the loaded ones.

# %%
from mini_chat_gpt.tinystories.facts import sentence_spans
from mini_chat_gpt.tinystories.prompts import follow_up_prompt, prompt_templates, story_prompt
from mini_chat_gpt.tinystories.tasks import Task, task_kind

prompt_templates()["last_sentence"] = [
    "Quote the last sentence of this story.\n\n{story}",
    "{story}\n\nWhat is the last sentence of this story?",
]


def story_task(kind, record, sampler, target, evidence, answer=None):
    """A task whose prompt shows the story. `evidence` is (start, end) in the story."""
    prompt, (start, end) = story_prompt(kind, record.story, sampler)
    evidence = (start + evidence[0], start + evidence[1])  # its place in the prompt
    follow_up = follow_up_prompt(kind, sampler)
    return Task(kind, prompt, target, (start, end), answer, evidence, follow_up=follow_up)


@task_kind("last_sentence")
def last_sentence(record, sampler):
    spans = sentence_spans(record.story)
    if len(spans) < 3:
        return None  # too easy
    start, end = spans[-1]
    return story_task("last_sentence", record, sampler, record.story[start:end], (start, end))


[task] = generate_tasks(records[0], seed=0, kinds=["last_sentence"])
print(task.prompt, "\n->", task.target)

# %% [markdown]
# ## Evidence
#
# A story can be longer than the context. Then text is removed from its middle. The evidence stays: without it, the
# model would learn to guess.

# %%
from mini_chat_gpt.tinystories.truncation import truncate_to_context

rendered = truncate_to_context(task, tokenizer, 130)
print(rendered.shortened, len(rendered.ids), "tokens")
course.in_color(rendered.ids, rendered.example(tokenizer).loss_mask, tokenizer)

# %% [markdown]
# ## Look at the data before you train
#
# How many records support the kind? What does a rule reach that does not read the question? A kind for which a simple
# rule is nearly always right teaches little.

# %%
from mini_chat_gpt.evaluation.baselines import baseline_scores


def report(kind):
    tasks = [task for record in records for task in generate_tasks(record, seed=0, kinds=[kind])]
    print(
        f"{kind}: {len(tasks)} tasks from {len(records)} records, {len({task.target for task in tasks})} different answers"
    )
    for rule, scores in baseline_scores(tasks).items():
        print(f"  {rule}: " + ", ".join(f"{measure} {value:.2f}" for measure, value in scores.items()))
    return tasks


tasks = report("last_sentence")

# %% [markdown]
# ## In a training run
#
# The mixture says how often each kind occurs. Kinds that it doesn't name keep their defaults. From here on, everything
# works with the new kind: loss weights, packing, evaluation.

# %%
from collections import Counter

from mini_chat_gpt.sft_dataloader import InstructDataset

one_question = {"turns": 1, "prefix_branches": 1, "mixture": {"last_sentence": 1.0}}
data = course.settings().data.model_copy(update=one_question)
dataset = InstructDataset(course.DATA / "TinyStoriesInstruct-train.txt", tokenizer, data, seed=0)
counts = Counter(dataset[i].kind for i in range(200))
print({kind: f"{n / 200:.0%}" for kind, n in counts.most_common()})

# %% [markdown]
# To keep the kind, append the function to `tinystories/tasks.py` and the prompts to `assets/task_prompts.yaml`
# ([Extending](../docs/extending.md) has the steps). Then `mini-chat-gpt sft 'data.mixture={last_sentence: 1}'` trains
# with it.
#
# ## Exercise
#
# Write a kind `first_speaker`: who speaks first in the story? The answer is a sentence such as "Tom speaks first.",
# and `answer` is the name alone. In these stories, speech is in straight quotation marks. Often the speaker follows:
# `"Did you eat it?" asked Pedro.`
#
# Return `None` if there is no speech, or if no name follows the *first* speech directly after "said" or "asked". A
# wrong answer in the training data does more harm than a missing one. The evidence must contain the speech and the
# name.

# %%
import re

prompt_templates()["first_speaker"] = ["{story}\n\nWho speaks first?", "Who speaks first in this story?\n\n{story}"]


# %% exercise
@task_kind("first_speaker")
def first_speaker(record, sampler):
    return None


# %% check
from mini_chat_gpt.sft_dataloader import parse_record

with course.check():

    def made(story):
        return generate_tasks(parse_record(f"Story:\n\n{story}"), seed=0, kinds=["first_speaker"])

    found = made('Tom met Sue. "Hello!" said Tom. "Hi!" said Sue. They were glad.')
    assert found, "the first story has a speaker"
    assert found[0].target == "Tom speaks first.", f"the target is {found[0].target!r}"
    assert found[0].answer == "Tom", f"the answer is {found[0].answer!r}, not the name"
    for story in (
        'Tom met Sue. "Hello!" she said. "Hi!" said Tom.',
        "Tom met Sue. They were glad.",
        '"Hello!" He ran.',
    ):
        assert not made(story), f"the speaker of {story!r} is not certain"
    several = [task for record in records for task in generate_tasks(record, seed=0, kinds=["first_speaker"])]
    assert len(several) > 60, f"only {len(several)} of {len(records)} records give a task"
    for task in several:
        evidence = task.prompt[slice(*task.evidence)]
        assert task.answer in evidence, f"the evidence is {evidence!r}"
        before = task.prompt[task.story_span[0] : task.evidence[0]]
        assert '"' not in before, f"somebody speaks before {evidence!r}"


# %% solution
FIRST = re.compile(r'"[^"]*" (?:said|asked) ([A-Z][a-z]+)\b')


@task_kind("first_speaker")
def first_speaker(record, sampler):
    start = record.story.find('"')
    match = FIRST.match(record.story, start) if start >= 0 else None
    if match is None:
        return None
    return story_task("first_speaker", record, sampler, f"{match[1]} speaks first.", match.span(), answer=match[1])


# %% [markdown]
# Further: call `report("first_speaker")` with your kind. Is the most common name a strong baseline? Write a scorer
# for it: `SCORERS` in [evaluation/task_metrics.py](../mini_chat_gpt/evaluation/task_metrics.py). Then train with the
# kind and compare held-out scores with the baseline.
