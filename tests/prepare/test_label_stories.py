"""Labels of plain stories: every field is true."""

import re

import pytest

from mini_chat_gpt.prepare.label_stories import content_words, label_stories, label_story
from mini_chat_gpt.tinystories.prompts import TemplateSampler
from mini_chat_gpt.tinystories.records import ENDING_UNKNOWN, StoryRecord, parse_record, stories
from mini_chat_gpt.tinystories.tasks import generate_tasks

TALK = (
    'Once there was a boy named Tom. He wanted to climb a tall tree. "Be careful!" said his mom. Tom was brave.\n\n'
    "The moral of the story is to be careful."
)
QUIET = "A small cat sat on a mat. It liked to jump. The mat was red and soft."


def record(story: str, seed: int = 0) -> StoryRecord:
    return parse_record(label_story(story, seed))


@pytest.mark.parametrize("story", [TALK, QUIET])
def test_the_story_is_read_back_unchanged(story):
    assert [parse_record(text).story for text in label_stories([story])] == [story]


def test_features_are_those_of_the_text_and_the_ending_is_unknown():
    assert record(TALK).features == ("Dialogue", "MoralValue", ENDING_UNKNOWN)


def test_a_story_without_talk_or_moral_has_no_features():
    assert record(QUIET).features == ()


def test_there_is_no_summary():
    assert record(TALK).summary is None


def test_words_are_a_verb_a_noun_and_an_adjective_of_the_story():
    verb, noun, adjective = content_words(QUIET, TemplateSampler(StoryRecord(story=QUIET), 0))
    assert verb == "jump"
    assert noun in {"cat", "mat"}
    assert adjective in {"small", "red", "soft"}


def test_words_that_are_not_in_the_lists_are_content_words_and_not_names():
    words = content_words("Zorg had gizmos and thingies near the whatsit.", TemplateSampler(StoryRecord(), 0))
    assert set(words) == {"gizmos", "thingies", "whatsit"}


def test_most_records_have_words_and_some_a_sentence_of_the_story():
    records = [record(TALK, seed) for seed in range(200)]
    assert 0.7 < sum(bool(one.words) for one in records) / 200 < 0.97
    sentences = [one.random_sentence for one in records if one.random_sentence]
    assert 0.2 < len(sentences) / 200 < 0.5
    assert all(sentence in TALK for sentence in sentences)


def test_the_order_of_fields_varies():
    assert len({label_story(TALK, seed).split(":")[0] for seed in range(50)}) == 3


def test_the_seed_determines_the_record():
    assert label_story(TALK, 1) == label_story(TALK, 1)
    assert len({label_story(TALK, seed) for seed in range(20)}) > 5


@pytest.mark.parametrize("story", ["They wrote.\nSummary: a cat.", "One.<|endoftext|>Two.", "", "  "])
def test_a_story_that_would_be_read_back_differently_is_skipped(story):
    assert list(label_stories([story])) == []


def test_a_labeled_story_has_no_ending_task():
    assert "ending" not in {task.kind for task in generate_tasks(record(TALK), 0)}


def test_the_fields_of_real_stories_are_true(real_data):
    originals = list(stories(real_data / "tinystories" / "stories-valid.txt"))
    records = [parse_record(text) for text in label_stories(originals)]
    assert [one.story for one in records] == originals
    assert all(len(one.words) in (0, 3) for one in records)
    assert all(re.search(rf"\b{word}\b", one.story) for one in records for word in one.words)
    assert all(one.random_sentence is None or one.random_sentence in one.story for one in records)
