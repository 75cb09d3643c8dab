"""Records derived from plain stories: every field true, nothing invented."""

import re

import pytest

from mini_chat_gpt.prepare.derive_records import content_words, derive_record, derive_records
from mini_chat_gpt.tinystories.prompts import TemplateSampler
from mini_chat_gpt.tinystories.records import ENDING_UNKNOWN, StoryRecord, parse_record, stories
from mini_chat_gpt.tinystories.tasks import generate_tasks

TALK = (
    'Once there was a boy named Tom. He wanted to climb a tall tree. "Be careful!" said his mom. Tom was brave.\n\n'
    "The moral of the story is to be careful."
)
QUIET = "A small cat sat on a mat. It liked to jump. The mat was red and soft."


def record(story: str, seed: int = 0) -> StoryRecord:
    return parse_record(derive_record(story, seed))


@pytest.mark.parametrize("story", [TALK, QUIET])
def test_the_story_is_read_back_as_it_was(story):
    assert [parse_record(text).story for text in derive_records([story])] == [story]


def test_features_say_what_the_text_shows_and_that_the_ending_is_unknown():
    assert record(TALK).features == ("Dialogue", "MoralValue", ENDING_UNKNOWN)


def test_a_story_without_talk_or_moral_has_no_features():
    assert record(QUIET).features == ()


def test_no_summary_is_invented():
    assert record(TALK).summary is None


def test_words_are_a_verb_a_noun_and_an_adjective_of_the_story():
    verb, noun, adjective = content_words(QUIET, TemplateSampler(StoryRecord(story=QUIET), 0))
    assert verb == "jump"
    assert noun in {"cat", "mat"}
    assert adjective in {"small", "red", "soft"}


def test_words_without_lists_are_other_content_words_but_no_names():
    words = content_words("Zorg had gizmos and thingies near the whatsit.", TemplateSampler(StoryRecord(), 0))
    assert set(words) == {"gizmos", "thingies", "whatsit"}


def test_most_records_have_words_and_some_a_sentence_of_the_story():
    records = [record(TALK, seed) for seed in range(200)]
    assert 0.7 < sum(bool(one.words) for one in records) / 200 < 0.97
    sentences = [one.random_sentence for one in records if one.random_sentence]
    assert 0.2 < len(sentences) / 200 < 0.5
    assert all(sentence in TALK for sentence in sentences)


def test_fields_stand_in_varying_order():
    assert len({derive_record(TALK, seed).split(":")[0] for seed in range(50)}) == 3


def test_the_seed_decides():
    assert derive_record(TALK, 1) == derive_record(TALK, 1)
    assert len({derive_record(TALK, seed) for seed in range(20)}) > 5


@pytest.mark.parametrize("story", ["They wrote.\nSummary: a cat.", "One.<|endoftext|>Two.", "", "  "])
def test_a_story_that_would_be_read_back_otherwise_is_left_out(story):
    assert list(derive_records([story])) == []


def test_a_derived_record_is_never_asked_for_its_ending():
    assert "ending" not in {task.kind for task in generate_tasks(record(TALK), 0)}


def test_real_stories_give_true_fields(real_data):
    originals = list(stories(real_data / "tinystories" / "stories-valid.txt"))
    records = [parse_record(text) for text in derive_records(originals)]
    assert [one.story for one in records] == originals
    assert all(len(one.words) in (0, 3) for one in records)
    assert all(re.search(rf"\b{word}\b", one.story) for one in records for word in one.words)
    assert all(one.random_sentence is None or one.random_sentence in one.story for one in records)
