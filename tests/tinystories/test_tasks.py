"""Tasks: right answers, exactly the kinds that a record supports, the same tasks for the same seed."""

import os
import re
import subprocess
import sys

import pytest

from mini_chat_gpt.evaluation.task_metrics import score
from mini_chat_gpt.tinystories.prompts import prompt_templates
from mini_chat_gpt.tinystories.records import ENDING_UNKNOWN, StoryRecord, read_records
from mini_chat_gpt.tinystories.tasks import TASK_KINDS, YES_NO_KINDS, Task, categories, generate_tasks, task_kind

STORY = (
    "Once there was a boy named Tom. Tom had a cat.\n"
    'One day the cat ran away. "Come back, cat!" Tom said. Tom was sad because he lost his cat.\n'
    "Then it came home. The moral of the story is to look after your pets."
)
QUIET = "Once there was a cat. The cat sat in the sun. It slept."
RECORD = StoryRecord(("Dialogue", "MoralValue"), ("cat", "run", "sad"), "Tom loses his cat.", "Tom had a cat.", STORY)


def task(kind: str, record: StoryRecord = RECORD, seed: int = 0) -> Task:
    (made,) = generate_tasks(record, seed, [kind])
    return made


def kinds_of(record: StoryRecord) -> set[str]:
    return {made.kind for made in generate_tasks(record, 0)}


def all_prompts(kind: str, record: StoryRecord = RECORD) -> set[str]:
    return {task(kind, record, seed).prompt for seed in range(200)}


def test_a_full_record_supports_every_kind():
    assert kinds_of(RECORD) == set(TASK_KINDS)


@pytest.mark.parametrize(
    ("kind", "target", "answer"),
    [
        ("summary", "Tom loses his cat.", None),
        ("what_happened", "Tom loses his cat.", None),
        ("moral", "Look after your pets.", None),
        ("main_character", "The main character is Tom.", "Tom"),
        ("ending", "Yes, the story has a happy ending.", "yes"),
        ("dialogue", "Yes, the characters talk to each other.", "yes"),
        ("why", "Because he lost his cat.", None),
        ("words", STORY, "cat, run, sad"),
    ],
)
def test_each_kind_has_the_expected_answer(kind, target, answer):
    assert (task(kind).target, task(kind).answer) == (target, answer)


@pytest.mark.parametrize("kind", sorted(set(TASK_KINDS) - {"words", "copyedit"}))
def test_the_story_span_contains_the_story(kind):
    for seed in range(20):
        made = task(kind, seed=seed)
        assert made.prompt[slice(*made.story_span)] == STORY


def test_evidence_is_in_the_story_and_supports_the_answer():
    evidence = {made.kind: made.prompt[slice(*made.evidence)] for made in generate_tasks(RECORD, 3) if made.evidence}
    assert evidence["main_character"] == "Tom"
    assert evidence["why"] == "Tom was sad because he lost his cat."
    assert evidence["dialogue"] == '"Come back, cat!"'
    assert evidence["moral"] == "moral of the story is to look after your pets."


@pytest.mark.parametrize(
    ("kind", "wording"),
    [
        ("summary", "Please provide a brief summary of the following story: " + STORY),
        ("moral", "What is the moral lesson of this story? " + STORY),
        ("main_character", "Based on this story, who is the main character? " + STORY),
        ("what_happened", "What happened in this story? " + STORY),
        ("ending", "Does this story have a happy ending? " + STORY),
        ("dialogue", "Do the characters talk to each other? " + STORY),
        ("why", "Why was Tom sad? " + STORY),
    ],
)
def test_the_documented_wording_is_among_the_templates(kind, wording):
    assert wording in all_prompts(kind)


@pytest.mark.parametrize(
    "wording",
    [
        "Write a short story that uses all of these words: cat, run, sad",
        "Write a story using these words: cat, run, sad",
    ],
)
def test_the_documented_wording_of_writing_is_among_the_templates(wording):
    assert wording in all_prompts("words")


def test_every_kind_has_several_templates_with_the_story_first_and_last():
    for kind in set(TASK_KINDS) - {"words", "quote", "copyedit"}:  # what the last two ask about varies as well
        made = [task(kind, seed=seed) for seed in range(100)]
        assert len({one.prompt for one in made}) == len(prompt_templates()[kind]) >= 4
        assert any(one.story_span[0] == 0 for one in made)
        assert any(one.prompt.endswith(STORY) for one in made)


def test_a_plain_story_supports_only_what_its_text_answers():
    assert kinds_of(StoryRecord(story=STORY)) == {"main_character", "dialogue", "why", "quote", "copyedit"}
    assert kinds_of(StoryRecord(story=QUIET)) == {"dialogue", "quote", "copyedit"}


def test_a_quoted_sentence_is_the_only_one_with_the_word():
    for seed in range(30):
        made = task("quote", seed=seed)
        word = re.search(r'"([a-z]+)"', made.prompt.replace(STORY, ""))[1]
        assert made.target in STORY
        uses = re.compile(rf"\b{word}\b", re.IGNORECASE)
        assert len(uses.findall(made.target)) == len(uses.findall(STORY)) == 1


def test_copyedit_adds_a_capital_and_a_period():
    seen = set()
    for seed in range(50):
        made = task("copyedit", seed=seed)
        given = made.prompt[slice(*made.story_span)]
        assert f" {given}." in STORY
        assert given[0].islower()
        assert made.target == f"{given[0].upper()}{given[1:]}."
        assert made.follow_up == made.prompt
        assert score(made, made.target) == {"verbatim": 1.0}
        assert score(made, given) == {"verbatim": 0.0}
        seen.add(given)
    assert len(seen) > 5


def test_a_follow_up_is_the_question_without_the_story():
    for seed in range(20):
        for made in generate_tasks(RECORD, seed):
            if made.story_span is None:
                assert made.follow_up is None
            else:
                assert made.follow_up
                assert STORY not in made.follow_up
    assert task("why").follow_up.endswith("Why was Tom sad?")


def test_a_moral_needs_its_label():
    assert "moral" not in kinds_of(StoryRecord(features=("Dialogue",), story=STORY))


def test_a_moral_may_come_from_the_summary():
    record = StoryRecord(("MoralValue",), summary="A cat is lost. The moral of the story is not to steal.", story=QUIET)
    assert task("moral", record).target == "Do not steal."


@pytest.mark.parametrize(
    ("features", "answer"), [(("Dialogue",), "yes"), (("Dialogue", "BadEnding"), "no"), (("Twist", "BadEnding"), "no")]
)
def test_the_ending_is_what_the_label_says(features, answer):
    made = task("ending", StoryRecord(features=features, story=STORY))
    assert (made.answer, made.target.split(",")[0].lower()) == (answer, answer)


@pytest.mark.parametrize("features", [(), ("Dialogue", ENDING_UNKNOWN)])
def test_without_a_label_there_is_no_ending_task(features):
    assert "ending" not in kinds_of(StoryRecord(features=features, story=STORY))


@pytest.mark.parametrize(
    ("features", "story", "answer"),
    [
        ((), STORY, "yes"),
        (("Dialogue",), STORY, "yes"),
        ((), QUIET, "no"),
        (("Twist",), QUIET, "no"),
        (("Dialogue",), QUIET, None),
        (("Twist",), STORY, None),
        ((), "Mom told the cat to go. The cat went.", None),
    ],
)
def test_dialogue_tasks_need_agreement_of_label_and_text(features, story, answer):
    made = generate_tasks(StoryRecord(features=features, story=story), 0, ["dialogue"])
    assert [one.answer for one in made] == ([answer] if answer else [])


def test_writing_prompts_use_any_combination_of_fields():
    prompts = all_prompts("words")
    assert all("cat, run, sad" in prompt for prompt in prompts)
    for part in ("dialogue and a moral", "Tom had a cat.", "Tom loses his cat."):
        assert 0.3 < sum(part in prompt for prompt in prompts) / len(prompts) < 0.8


@pytest.mark.parametrize(
    ("record", "part"),
    [
        (StoryRecord(summary="A cat is lost.", story=STORY), "A cat is lost."),
        (StoryRecord(random_sentence="It was cold.", story=STORY), "It was cold."),
        (StoryRecord(features=("BadEnding",), story=STORY), "a bad ending"),
    ],
)
def test_a_record_without_words_uses_its_other_fields(record, part):
    prompts = all_prompts("words", record)
    assert all(part in prompt for prompt in prompts)
    assert task("words", record).answer is None


def test_a_record_without_fields_has_no_writing_task():
    assert "words" not in kinds_of(StoryRecord(story=STORY))
    assert "words" not in kinds_of(StoryRecord(features=(ENDING_UNKNOWN,), story=STORY))


def test_braces_in_a_story_are_text():
    story = "A {cat} and {story} and {0}. The end."
    record = StoryRecord(words=("{x}", "{words}"), summary="{summary}", story=story)
    assert task("summary", record).prompt[slice(*task("summary", record).story_span)] == story
    assert "{x}, {words}" in task("words", record).prompt


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others():
    assert generate_tasks(RECORD, 5) == generate_tasks(RECORD, 5)
    assert len({tuple(made.prompt for made in generate_tasks(RECORD, seed)) for seed in range(20)}) > 15


def test_tasks_are_the_same_in_every_process():
    code = (
        "from mini_chat_gpt.tinystories.tasks import generate_tasks; from mini_chat_gpt.tinystories.records import StoryRecord;"
        f"print(*(task.prompt[:40] + task.prompt[-40:] for task in generate_tasks({RECORD!r}, 7)), sep='|')"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop()) > 300


def test_a_new_kind_is_one_registered_function(monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.tinystories.tasks.TASK_KINDS", kinds := dict(TASK_KINDS))

    @task_kind("shout")
    def shout(record, choose):
        return Task("shout", record.story, record.story.upper(), (0, len(record.story)))

    assert kinds["shout"] is shout
    assert task("shout").target == STORY.upper()
    assert "shout" in categories()


def test_yes_no_kinds_have_a_category_for_each_answer():
    assert {"ending", "dialogue"} == YES_NO_KINDS
    assert {"ending/yes", "ending/no", "dialogue/yes", "dialogue/no", "summary"} <= set(categories())
    assert task("ending").category == "ending/yes"


def test_real_records_give_right_answers(real_data):
    park, bike, holiday = read_records(real_data / "tinystories" / "instruct-records.txt")
    assert {made.kind: made.answer for made in generate_tasks(park, 0) if made.answer} == {
        "ending": "yes", "dialogue": "yes", "words": "quit, oak, gloomy",
    }  # fmt: skip
    assert {made.kind: made.target for made in generate_tasks(bike, 0, ["moral", "main_character", "ending"])} == {
        "moral": "Do not steal.",
        "main_character": "The main character is Lily.",
        "ending": "No, the story does not have a happy ending.",
    }
    assert "main_character" not in kinds_of(park) | kinds_of(holiday)  # each has two heroes


@pytest.mark.parametrize(
    ("task", "answers"),
    [
        (Task("main_character", "Who? Tom ran.", "The main character is Tom.", (5, 13), "Tom"), ["The", "Tom"]),
        (Task("ending", "Does it end well? Tom ran.", "Yes, it has a happy ending.", (18, 26), "yes"), ["Yes,"]),
        (Task("words", "Write.", "Cats ran. It was cold.", None, "cat, run", required=("cat", "run"),
              sentence="It was cold."), ["Cats", "ran", "It was cold."]),
    ],
)  # fmt: skip
def test_answer_spans_are_the_parts_that_decide_whether_an_answer_is_right(task, answers):
    assert [task.target[start:end] for start, end in task.answer_spans] == answers


def test_a_writing_task_names_the_sentence_that_its_prompt_requests():
    made = [task("words", seed=seed) for seed in range(40)]
    assert all((one.sentence is not None) == ("Tom had a cat." in one.prompt) for one in made)
    assert {one.sentence for one in made} == {None, "Tom had a cat."}


def test_the_evidence_of_a_quote_is_the_sentence_itself():
    for seed in range(10):
        quote = task("quote", seed=seed)
        assert quote.prompt[slice(*quote.evidence)] == quote.target
