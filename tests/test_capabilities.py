"""Scores of replies, the trivial rules beside them, and how both come together."""

import io
import json
from statistics import fmean

import pytest
from rich.console import Console
from tiny import tiny_model, tiny_tokenizer

from mini_chat_gpt import capabilities
from mini_chat_gpt.capabilities import SCORERS, baseline, evaluate, named_character, rouge_l, score, table, yes_or_no
from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.errors import UserError
from mini_chat_gpt.generation import Reply
from mini_chat_gpt.sample_stories import write_sample
from mini_chat_gpt.sampling import Sampling
from mini_chat_gpt.sft_dataloader import generate_tasks, read_records
from mini_chat_gpt.story_tasks import TASK_KINDS, Task

STORIES = [
    "Tom was sad. He cried because he lost his red ball. The moral is to share.",
    "Sue had a cat. She was glad because the cat purred. Be kind to animals.",
    "Tom ran. He fell because he did not look. Look where you go.",
]


def about(kind: str, target: str, answer: str | None = None, story: str = STORIES[0]) -> Task:
    prompt = f"A question? {story}"
    return Task(kind, prompt, target, (12, len(prompt)), answer)


def writing(*required: str, target: str = "A story.") -> Task:
    return Task("words", f"Write a story with {', '.join(required)}", target, None, required=required)


def character(name: str) -> Task:
    return about("main_character", f"The main character is {name}.", name)


# Scores


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        ("The main character is Tom.", "Tom"),
        ("The main character of this story is the Little Fox, who is clever.", "the Little Fox"),
        ("the main character was a girl named Sue", "Sue"),
        ("The main character is Mr. Brown.", "Mr Brown"),
        ("The main character is Tom and Sue.", "Tom and Sue"),
        ("The main character is a cat called Mia. Sue is her friend.", "Mia"),
        ("Once there was a boy named Tim. Tim met Sue.", "Tim"),
        ("She said to Anna: go!", "Anna"),
        ("Then Ben's dog ran.", "Ben"),
        ("nobody is named here", None),
        ("", None),
    ],
)
def test_the_named_character_is_what_the_reply_says_or_else_its_first_name(reply, name):
    assert named_character(reply) == name


@pytest.mark.parametrize(
    "reply", ["The main character is Tom.", "the main character is tom", "Tom", "Tom's friend Sue came."]
)
def test_naming_the_right_character_is_right(reply):
    assert score(character("Tom"), reply) == {"accuracy": 1}


@pytest.mark.parametrize(
    "reply", ["The main character is Tommy.", "The main character is Tom and Sue.", "Sue and Tom", ""]
)
def test_naming_another_character_or_two_is_wrong(reply):
    assert score(character("Tom"), reply) == {"accuracy": 0}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Yes, they do.", "yes"),
        (" no", "no"),
        ("“NO!”", "no"),
        ("Nobody talks.", None),
        ("They talk, yes.", None),
        ("Yesterday", None),
        ("", None),
    ],
)
def test_yes_or_no_is_the_first_word_or_nothing(reply, said):
    assert yes_or_no(reply) == said


def test_a_moral_is_exact_whatever_its_case_and_punctuation():
    task = about("moral", "It is good to share.")
    assert score(task, "it is good to share") == {"rouge_l": 1, "exact": 1}
    assert score(task, "It is good to be kind.")["exact"] == 0


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # "the ... sat on ... mat" is common: 4 of 6 words wanted, 4 of 5 words given
    assert rouge_l("The cat sat on the mat.", "the dog sat on mat") == pytest.approx(
        2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5)
    )


def test_required_words_count_in_any_form():
    task = writing("run", "happy", "oak", "cat")
    assert score(task, "He was running happily with his cats.") == {"used": 0.75, "all_used": 0}
    assert score(task, "He ran to the oaks with a cat, happier than ever.") == {"used": 1, "all_used": 1}


@pytest.mark.parametrize(
    "task", [writing(), about("ending", "Yes."), about("main_character", "The main character is Tom.")]
)
def test_a_task_that_gives_nothing_to_measure_by_has_no_scores(task):
    assert score(task, "Yes") == {}


def test_a_kind_without_a_measure_of_its_own_is_measured_by_overlap():
    assert score(about("a new kind", "one two"), "one two") == {"rouge_l": 1}


def test_every_measure_belongs_to_a_kind_of_task():
    assert set(SCORERS) <= set(TASK_KINDS)
    assert set(capabilities.RULES) == set(TASK_KINDS)


@pytest.fixture(scope="module")
def sample_tasks(tmp_path_factory) -> list[Task]:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, n_train=1, n_valid=150)
    records = read_records(folder / "TinyStoriesInstruct-valid.txt")
    return [task for record in records for task in generate_tasks(record, seed=0) if score(task, "")]


@pytest.mark.parametrize("kind", sorted(set(TASK_KINDS) - {"words"}))
def test_the_target_of_a_task_gets_full_marks(sample_tasks, kind):
    tasks = [task for task in sample_tasks if task.kind == kind]
    assert tasks
    assert [task.target for task in tasks if min(score(task, task.target).values()) < 1] == []


def test_stories_use_the_words_that_were_taken_from_them(sample_tasks):
    shares = [score(task, task.target)["used"] for task in sample_tasks if task.kind == "words"]
    assert fmean(shares) > 0.98


# Trivial rules


def test_the_baseline_of_yes_and_no_is_the_more_frequent_answer():
    tasks = [about("ending", "…", answer) for answer in ("yes", "no", "yes", "yes")]
    assert baseline(tasks) == {"rule": "always “Yes”", "accuracy": 0.75}


def test_the_baseline_of_the_main_character_is_the_most_frequent_name():
    assert baseline([character(name) for name in ("Sue", "Tom", "Tom")]) == {
        "rule": "the most common answer",
        "accuracy": pytest.approx(2 / 3),
    }


def test_the_baseline_of_a_summary_is_the_first_sentence():
    found = baseline(
        [about("summary", "Tom was sad", story=STORIES[0]), about("summary", "Sue had a cat", story=STORIES[1])]
    )
    assert found == {"rule": "the first sentence of the story", "rouge_l": 1}


def test_the_baseline_of_a_moral_is_whichever_rule_is_better():
    repeated = [about("moral", "Be good.", story=story) for story in STORIES]
    assert baseline(repeated) == {"rule": "the most common answer", "rouge_l": 1, "exact": 1}
    stated = [
        about("moral", STORIES[1][-20:], story=STORIES[1]),
        about("moral", "Look where you go.", story=STORIES[2]),
    ]
    assert baseline(stated)["rule"] == "the last sentence of the story"


def test_the_baseline_of_why_may_be_the_sentence_with_because():
    tasks = [about("why", story.split(". ")[1].partition("because ")[2], story=story) for story in STORIES]
    assert baseline(tasks)["rule"] == "the first sentence with “because”"


def test_the_baseline_of_required_words_is_a_story_with_other_words():
    tasks = [writing("cat", "run", target="A cat sat."), writing("cat", "dog", target="The cat ran.")]
    assert baseline(tasks) == {"rule": "the story of another task", "used": 0.75, "all_used": 0.5}


# Evaluation


@pytest.fixture
def replies(monkeypatch):
    """Replies to be given, by prompt; what was asked for is kept."""
    known: dict[str, Reply] = {}
    asked: list[tuple[list[str], Sampling]] = []

    def reply(model, tokenizer, prompts, sampling, batch_size, progress):
        asked.append((list(prompts), sampling))
        for number in range(len(prompts)):
            if progress:
                progress(number + 1)
        return [known[prompt] for prompt in prompts]

    monkeypatch.setattr(capabilities, "generate_replies", reply)
    known["asked"] = asked
    return known


def test_results_are_means_by_kind_with_count_stops_and_baseline(replies):
    tasks = [about("ending", "Yes.", "yes", STORIES[0]), writing("cat"), about("ending", "No.", "no", STORIES[1])]
    replies[tasks[0].prompt] = Reply("Yes", (1,), "stop", 9)
    replies[tasks[1].prompt] = Reply("Two cats.", (1, 2), "length", 9)
    replies[tasks[2].prompt] = Reply("Yes", (1,), "stop", 9)
    counted: list[int] = []
    found = evaluate(None, tiny_tokenizer(), tasks, progress=counted.append)
    assert found.results == {
        "ending": {"accuracy": 0.5, "n": 2, "stops": 1, "baseline": {"rule": "always “Yes”", "accuracy": 0.5}},
        "words": {
            "used": 1,
            "all_used": 1,
            "n": 1,
            "stops": 0,
            "baseline": {"rule": "the story of another task", "used": 0, "all_used": 0},
        },
    }
    assert [(item.task, item.reply, item.finish_reason) for item in found.items] == [
        (tasks[0], "Yes", "stop"),
        (tasks[2], "Yes", "stop"),
        (tasks[1], "Two cats.", "length"),
    ]
    assert counted == [1, 2, 3]
    json.dumps(found.results)


def test_replies_may_be_twice_as_long_as_the_longest_target(replies):
    tasks = [about("moral", "Be kind.", story=STORIES[0]), about("moral", "Look where you go.", story=STORIES[1])]
    tokenizer = tiny_tokenizer()
    replies.update({task.prompt: Reply("", (), "length", 9) for task in tasks})
    evaluate(None, tokenizer, tasks)
    evaluate(None, tokenizer, tasks, Sampling(temperature=0, max_new_tokens=3))
    limits = [sampling.max_new_tokens for _, sampling in replies["asked"]]
    assert limits == [2 * len(tokenizer.encode("Look where you go.")) + 1, 3]


def test_tasks_that_give_nothing_to_measure_by_are_left_out(replies):
    replies[writing("cat").prompt] = Reply("cat", (), "stop", 9)
    assert evaluate(None, tiny_tokenizer(), [writing(), writing("cat")]).results["words"]["n"] == 1


@pytest.mark.parametrize("tasks", [[], [writing()]])
def test_nothing_to_score_is_a_clear_error(tasks):
    with pytest.raises(UserError, match="not one task to be scored"):
        evaluate(None, tiny_tokenizer(), tasks)


def test_a_model_is_evaluated_greedily_in_batches_as_one_by_one():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat()
    model = tiny_model(tokenizer.vocab_size, context_length=256)
    tasks = [about("moral", "Be kind.", story=story) for story in STORIES] + [writing("cat"), writing("dog")]
    assert evaluate(model, tokenizer, tasks, batch_size=3) == evaluate(model, tokenizer, tasks, batch_size=1)


def test_the_table_shows_models_side_by_side():
    before = {"moral": {"rouge_l": 0.125, "n": 7, "stops": 0.5, "baseline": {"rule": "a rule", "rouge_l": 0.3}}}
    after = {"moral": before["moral"] | {"rouge_l": 0.875, "stops": 1.0}}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(before, after, names=["base", "tuned"]))
    lines = [line.replace("│", " ").split() for line in console.export_text().splitlines()]
    assert ["moral", "7", "rouge_l", "12.5", "87.5", "30.0", "a", "rule"] in lines
    assert ["stops", "50.0", "100.0"] in lines
