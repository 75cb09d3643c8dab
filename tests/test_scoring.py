"""Scores of replies, and the trivial rules beside them."""

from statistics import fmean

import pytest
from tiny import STORIES, about, writing

from mini_chat_gpt import scoring
from mini_chat_gpt.sample_stories import write_sample
from mini_chat_gpt.scoring import (
    SCORERS,
    baseline,
    exact_match,
    named_character,
    normalised_match,
    rouge_l,
    score,
    yes_or_no,
)
from mini_chat_gpt.sft_dataloader import generate_tasks, read_records
from mini_chat_gpt.story_tasks import TASK_KINDS, YES_NO_KINDS, Task


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
    assert score(task, "it is good  to share") == {"exact": 1, "rouge_l": 1, "verbatim": 0}
    assert score(task, "It is good to share. ") == {"exact": 1, "rouge_l": 1, "verbatim": 1}
    assert score(task, "It is good to be kind.")["exact"] == 0


@pytest.mark.parametrize(
    ("reply", "exact", "normalised"),
    [
        ("Tom's dog isn't ill.", True, True),
        ("  Tom's dog isn't ill.\n", True, True),
        ("TOM’S DOG ISN’T ILL", False, True),
        ("“Tom's dog”, isn't\nill!", False, True),
        ("Tom's dog is ill.", False, False),
        ("Toms dog isn't ill.", False, False),
        ("Tom's dog isn't ill. Yes.", False, False),
        ("", False, False),
    ],
)
def test_a_match_is_to_the_letter_or_in_the_words(reply, exact, normalised):
    assert exact_match("Tom's dog isn't ill.", reply) == exact
    assert normalised_match("Tom's dog isn't ill.", reply) == normalised


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
    assert set(scoring.RULES) == set(TASK_KINDS)


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


@pytest.mark.parametrize("kind", sorted(set(TASK_KINDS)))
def test_the_target_of_another_task_gets_no_more_than_chance(sample_tasks, kind):
    tasks = [task for task in sample_tasks if task.kind == kind]
    half = len(tasks) // 2  # a neighbour may be of the same record
    shuffled = zip(tasks, [*tasks[half:], *tasks[:half]], strict=True)
    reached = fmean(next(iter(score(task, other.target).values())) for task, other in shuffled)
    assert reached < (0.75 if kind in YES_NO_KINDS else 0.25)  # three quarters of the unbalanced answers are "yes"


# Trivial rules


def test_the_baseline_of_yes_and_no_is_the_more_frequent_answer():
    tasks = [about("ending", "…", answer) for answer in ("yes", "no", "yes", "yes")]
    assert baseline(tasks) == {"accuracy": 0.75, "rules": {"accuracy": "always “Yes”"}}


def test_the_baseline_of_the_main_character_is_the_most_frequent_name():
    assert baseline([character(name) for name in ("Sue", "Tom", "Tom")]) == {
        "accuracy": pytest.approx(2 / 3),
        "rules": {"accuracy": "the most common answer"},
    }


def test_the_baseline_of_a_summary_is_the_first_sentence():
    found = baseline(
        [about("summary", "Tom was sad", story=STORIES[0]), about("summary", "Sue had a cat", story=STORIES[1])]
    )
    assert found == {"rouge_l": 1, "rules": {"rouge_l": "the first sentence of the story"}}


def test_the_baseline_of_a_moral_is_whichever_rule_is_better_by_each_measure():
    repeated = [about("moral", "Be good.", story=story) for story in STORIES]
    found = baseline(repeated)
    assert (found["exact"], found["rules"]["exact"]) == (1, "the most common answer")
    stated = [
        about("moral", STORIES[1][-20:], story=STORIES[1]),
        about("moral", "Look where you go", story=STORIES[2].replace("Look", "Always look")),
    ]
    found = baseline(stated)
    assert (found["exact"], found["rules"]["rouge_l"]) == (0.5, "the last sentence of the story")


def test_the_baseline_of_why_may_be_the_sentence_with_because():
    tasks = [about("why", story.split(". ")[1].partition("because ")[2], story=story) for story in STORIES]
    assert baseline(tasks)["rules"]["rouge_l"] == "the first sentence with “because”"


def test_the_baseline_of_required_words_is_a_story_with_other_words():
    tasks = [writing("cat", "run", target="A cat sat."), writing("cat", "dog", target="The cat ran.")]
    rule = "the story of another task"
    assert baseline(tasks) == {"used": 0.75, "all_used": 0.5, "rules": {"used": rule, "all_used": rule}}
