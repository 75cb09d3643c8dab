"""Scores of replies, and of the baselines."""

import pytest
from tiny import STORIES, about, writing

from mini_chat_gpt.evaluation.baselines import RULES, baseline, baseline_scores, best_baselines, shifted_targets
from mini_chat_gpt.evaluation.refusals import REFUSALS
from mini_chat_gpt.evaluation.task_metrics import (
    SCORERS,
    by_measure,
    exact_match,
    means,
    named_character,
    normalized_match,
    score,
    yes_or_no,
)
from mini_chat_gpt.evaluation.text_metrics import NEUTRAL
from mini_chat_gpt.prepare.sample_stories import write_sample
from mini_chat_gpt.sft_dataloader import generate_tasks, read_records
from mini_chat_gpt.tinystories.tasks import TASK_KINDS, YES_NO_KINDS, Task


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
def test_the_named_character_is_the_stated_one_or_the_first_name(reply, name):
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
    ("reply", "answer"),
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
def test_yes_or_no_is_the_first_word_or_none(reply, answer):
    assert yes_or_no(reply) == answer


def test_exact_ignores_case_and_punctuation():
    task = about("moral", "It is good to share.")
    assert score(task, "it is good  to share") == {"exact": 1, "rouge_l": 1, "verbatim": 0}
    assert score(task, "It is good to share. ") == {"exact": 1, "rouge_l": 1, "verbatim": 1}
    assert score(task, "It is good to be kind.")["exact"] == 0


@pytest.mark.parametrize(
    ("reply", "exact", "normalized"),
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
def test_a_match_is_verbatim_or_in_the_words(reply, exact, normalized):
    assert exact_match("Tom's dog isn't ill.", reply) == exact
    assert normalized_match("Tom's dog isn't ill.", reply) == normalized


def test_a_summary_is_scored_by_overlap_length_and_extractiveness():
    task = about("summary", "Tom was sad about his red ball")
    scores = score(task, "He cried because he lost his")
    assert list(scores) == ["rouge_l", "rouge_1", "rouge_2", "length_ratio", "copied"]
    assert (scores["length_ratio"], scores["copied"]) == (pytest.approx(6 / 7), 1)
    assert "copied" not in score(Task("summary", "Say it again.", "Tom.", None), "Tom.")


def test_required_words_count_in_any_form():
    task = writing("run", "happy", "oak", "cat")
    scores = score(task, "He was running happily with his cats.")
    assert (next(iter(scores)), scores["used"], scores["all_used"]) == ("used", 0.75, 0)
    scores = score(task, "He ran to the oaks with a cat, happier than ever.")
    assert (scores["used"], scores["all_used"], scores["n_words"]) == (1, 1, 11)


@pytest.mark.parametrize(
    "task", [writing(), about("ending", "Yes."), about("main_character", "The main character is Tom.")]
)
def test_a_task_that_can_not_be_scored_has_no_scores(task):
    assert score(task, "Yes") == {}


def test_a_kind_without_its_own_measures_is_scored_by_overlap():
    assert score(about("a new kind", "one two"), "one two") == {"rouge_l": 1}


def test_every_measure_belongs_to_a_kind_of_task():
    assert set(SCORERS) <= {*TASK_KINDS, REFUSALS}
    assert set(RULES) == {*TASK_KINDS, REFUSALS}


@pytest.fixture(scope="module")
def sample_tasks(tmp_path_factory) -> list[Task]:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, n_train=1, n_valid=150)
    records = read_records(folder / "TinyStoriesInstruct-valid.txt")
    return [task for record in records for task in generate_tasks(record, seed=0) if score(task, "")]


def of_kind(tasks: list[Task], kind: str) -> list[Task]:
    same_kind = [task for task in tasks if task.kind == kind]
    assert same_kind
    return same_kind


def with_best(scores: dict[str, float]) -> dict[str, float]:
    """The measures for which the target should have the best score."""
    return {name: value for name, value in scores.items() if name not in NEUTRAL}


@pytest.mark.parametrize("kind", sorted(set(TASK_KINDS) - {"words"}))
def test_the_target_of_a_task_gets_the_best_scores(sample_tasks, kind):
    tasks = of_kind(sample_tasks, kind)
    assert [task.target for task in tasks if min(with_best(score(task, task.target)).values()) < 1] == []
    assert {score(task, task.target).get("length_ratio", 1) for task in tasks} == {1}


def test_reference_stories_satisfy_the_constraints_of_their_prompts(sample_tasks):
    scores = with_best(means([score(task, task.target) for task in of_kind(sample_tasks, "words")]))
    assert {name for name in scores if name.startswith("has_")} == {
        "has_sentence", "has_sentence_verbatim", "has_dialogue", "has_moral"
    }  # fmt: skip
    assert scores.pop("all_used") > 0.95
    assert min(scores.values()) > 0.98


@pytest.mark.parametrize("kind", sorted(set(TASK_KINDS)))
def test_the_target_of_another_task_gets_low_scores(sample_tasks, kind):
    tasks = of_kind(sample_tasks, kind)
    half = len(tasks) // 2  # the next task can be of the same record
    shuffled = zip(tasks, [*tasks[half:], *tasks[:half]], strict=True)
    scores = with_best(means([score(task, other.target) for task, other in shuffled]))
    main = next(iter(scores.values()))
    assert main < (
        0.75 if kind in YES_NO_KINDS else 0.25
    )  # three quarters of the answers are "yes", because they are not balanced
    gold = means([score(task, task.target) for task in tasks])
    often = {"has_dialogue": 0.2}  # most stories have dialogue
    assert [name for name, value in scores.items() if gold[name] - value < often.get(name, 0.25)] == []


def test_targets_of_real_records_score_far_higher_than_shuffled_ones(real_data):
    records = read_records(real_data / "tinystories" / "instruct-records.txt")
    tasks = [task for record in records for seed in range(3) for task in generate_tasks(record, seed)]
    tasks = [task for task in tasks if score(task, "")]
    assert {task.kind for task in tasks} > {"summary", "moral", "words", "ending"}
    for kind in dict.fromkeys(task.kind for task in tasks):
        same_kind = of_kind(tasks, kind)
        gold = with_best(means([score(task, task.target) for task in same_kind]))
        assert min(gold.values()) == 1, kind
        others = [next((other.target for other in same_kind if other.target != task.target), "") for task in same_kind]
        scores = means([score(task, other) for task, other in zip(same_kind, others, strict=True)])
        assert next(iter(scores.values())) < 0.4, kind


def test_a_measure_of_only_some_tasks_is_a_mean_over_these():
    scores = [{"used": 1.0}, {"used": 0.0, "has_moral": 1.0}]
    assert by_measure(scores) == {"used": [1, 0], "has_moral": [1]}
    assert means(scores) == {"used": 0.5, "has_moral": 1}


# Baselines


def test_the_baseline_of_yes_and_no_is_the_more_frequent_answer():
    tasks = [about("ending", "…", answer) for answer in ("yes", "no", "yes", "yes")]
    assert baseline(tasks) == {"accuracy": 0.75, "rules": {"accuracy": "always “Yes”"}}


def test_the_baseline_of_the_main_character_is_the_most_frequent_name():
    assert baseline([character(name) for name in ("Sue", "Tom", "Tom")]) == {
        "accuracy": pytest.approx(2 / 3),
        "rules": {"accuracy": "the most common answer"},
    }


def test_the_baseline_of_a_summary_is_the_first_sentence():
    best = baseline(
        [about("summary", "Tom was sad", story=STORIES[0]), about("summary", "Sue had a cat", story=STORIES[1])]
    )
    assert (best["rouge_l"], best["rouge_2"]) == (1, 1)
    assert set(best["rules"].values()) == {"the first sentence of the story"}


def test_the_baselines_of_a_summary():
    tasks = [about("summary", f"{story[:9]} {story[-9:]}", story=f"{story} And so on. The end.") for story in STORIES]
    scores = baseline_scores(tasks)
    assert list(scores) == [
        "the first sentence of the story", "the first three sentences", "the whole story", "the summary of another task"
    ]  # fmt: skip
    assert [one["copied"] for one in scores.values()][1:3] == [1, 1]
    first, three, story, _ = (one["length_ratio"] for one in scores.values())
    assert first < three < story


def test_for_a_neutral_measure_the_baseline_is_the_best_rule_by_the_main_measure():
    scores = {"long": {"rouge_l": 0.1, "n_words": 90.0}, "good": {"rouge_l": 0.2, "n_words": 9.0}}
    assert best_baselines(scores) == {"rouge_l": 0.2, "n_words": 9, "rules": {"rouge_l": "good", "n_words": "good"}}


def test_a_single_task_has_no_shifted_target():
    assert shifted_targets([writing("cat")]) == [""]


def test_the_baseline_of_a_moral_is_the_best_rule_by_each_measure():
    repeated = [about("moral", "Be good.", story=story) for story in STORIES]
    best = baseline(repeated)
    assert (best["exact"], best["rules"]["exact"]) == (1, "the most common answer")
    stated = [
        about("moral", STORIES[1][-20:], story=STORIES[1]),
        about("moral", "Look where you go", story=STORIES[2].replace("Look", "Always look")),
    ]
    best = baseline(stated)
    assert (best["exact"], best["rules"]["rouge_l"]) == (0.5, "the last sentence of the story")


def test_the_baseline_of_why_can_be_the_sentence_with_because():
    tasks = [about("why", story.split(". ")[1].partition("because ")[2], story=story) for story in STORIES]
    assert baseline(tasks)["rules"]["rouge_l"] == "the first sentence with “because”"


def test_the_baseline_of_required_words_is_a_story_with_other_words():
    tasks = [writing("cat", "run", target="A cat sat."), writing("cat", "dog", target="The cat ran.")]
    best = baseline(tasks)
    assert (best["used"], best["all_used"], best["n_words"]) == (0.75, 0.5, 3)
    assert set(best["rules"].values()) == {"the story of another task"}
    assert baseline_scores([writing("cat"), writing("dog")])["a copy of the prompt, not a story"]["used"] == 1
