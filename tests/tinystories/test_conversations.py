"""Conversations: every turn has an honest reply, which follows from what the user has shown so far."""

import re
from itertools import pairwise
from random import Random

import numpy as np
import pytest

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.sft_dataloader import InstructDataset, RecordIndex, parse_record, read_records, stories
from mini_chat_gpt.tinystories.conversation_dataset import KIND, ConversationDataset
from mini_chat_gpt.tinystories.conversations import SHORT, Conversation, renamed, short_story, turn_kinds, wordings
from mini_chat_gpt.tinystories.main_character import main_character
from mini_chat_gpt.tinystories.tasks import TASK_KINDS
from mini_chat_gpt.tinystories.word_forms import first_use
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

FILE = "TinyStoriesInstruct-train.txt"


@pytest.fixture(scope="module")
def records(sample):
    return list(read_records(sample / FILE))


@pytest.fixture(scope="module")
def talks(records):
    """300 conversations."""
    return [conversation(records, seed) for seed in range(300)]


def conversation(records, seed):
    rng = Random(seed)
    talk = Conversation(rng, lambda: records[int(rng.random() * len(records))])
    talk.fill()
    return talk.turns


@pytest.fixture(scope="module")
def tasks(sample):
    tokenizer = ChatTokenizer.train(stories(sample / FILE), 600)
    tokenizer.add_control_tokens()
    return InstructDataset(RecordIndex(sample / FILE), tokenizer, DataSection(seq_len=400, conversations=0.5), 3)


@pytest.fixture
def dataset(tasks):
    return ConversationDataset.like(tasks)


def test_the_same_seed_gives_the_same_conversation(records, talks):
    assert conversation(records, 7) == talks[7]
    assert len({tuple(task.prompt for task in turns) for turns in talks}) > 290


def test_every_kind_of_turn_occurs_and_every_text_is_complete(talks):
    kinds = {task.kind for turns in talks for task in turns}
    assert kinds == {*turn_kinds(), "main_character", "ending", "dialogue", "moral", "summary", "why", "words"}
    for turns in talks:
        for task in turns:
            assert task.target
            assert task.prompt.strip() == task.prompt != ""
            assert not re.search(r"[<>|{}]|  |\(\w", task.prompt), task.prompt


def test_turns_without_a_story_have_a_reply_of_their_kind(talks):
    known = wordings()["turns"] | {"no_story": wordings()["no_story"]}
    small_talk = [task for turns in talks for task in turns if task.kind in known]
    assert len(small_talk) > 300
    for task in small_talk:
        assert task.target in known[task.kind]["assistant"]
        assert task.kind not in TASK_KINDS  # so that its loss weight is its own


def test_a_story_comes_before_every_question_about_it(talks):
    """A reason is a sentence of a text that was shown, and the main character is named there."""
    for turns in talks:
        shown = ""
        for task in turns:
            if task.kind in ("pasted", "main_character", "why", "ending", "dialogue", "moral", "summary"):
                shown += task.prompt
            if task.kind == "main_character":
                assert task.answer in shown
            if task.kind == "why":
                assert task.target[len("Because ") :].rstrip(".") in shown
            if task.kind == "no_story":
                assert not shown
            if task.kind == "words":
                shown += task.target


def test_no_question_is_asked_twice_about_one_story(talks):
    for turns in talks:
        about_first = []
        for task in turns[1:]:
            if task.kind == "pasted":
                break
            about_first.append(task.kind)
        asked = [kind for kind in about_first if kind in ("main_character", "ending", "moral", "summary")]
        if "words" not in about_first:
            assert len(asked) - len(set(asked)) <= sum("\n" in task.prompt or len(task.prompt) > 90 for task in turns)


def test_a_question_about_an_earlier_story_names_it(records):
    rng = Random(1)
    talk = Conversation(rng, lambda: records[int(rng.random() * len(records))])
    talk._story(0.0, 0)
    talk._story(0.0, 0)
    n_pasted = len(talk.turns)
    for _ in range(10):
        talk._ask(0)
    questions = [task for task in talk.turns[n_pasted:] if task.kind not in ("why", "fact")]
    assert questions
    for task in questions:
        assert any(name in task.prompt.lower() for name in wordings()["names_of_story"]["first"])


def test_a_fact_is_followed_by_its_reason(talks):
    pairs = [(one, next_) for turns in talks for one, next_ in pairwise(turns) if one.kind == "fact"]
    assert len(pairs) > 20
    for one, reason in pairs:
        assert one.target == "Yes."
        assert reason.kind == "why"


def test_a_told_story_has_its_required_words(talks):
    told = [task for turns in talks for task in turns if task.kind == "words"]
    assert {len(task.required) for task in told} >= {0, 1, 3}
    for task in told:
        assert all(first_use(task.target, word) for word in task.required)
        assert all(word in task.prompt.lower() for word in task.required)


def test_a_doubt_follows_an_answer(talks):
    pairs = [(one, next_) for turns in talks for one, next_ in pairwise(turns) if next_.kind == "sure"]
    assert len(pairs) > 20
    assert {one.kind for one, _ in pairs} <= {"main_character", "ending", "dialogue", "moral", "summary", "why"}


def test_a_renamed_story_has_its_new_main_character_everywhere(records):
    rng = Random(2)
    for record in records:
        name, new = main_character(record.story), renamed(record, rng)
        if name is None:
            assert new == record
            continue
        new_name = main_character(new.story)
        assert new_name not in (None, name)
        assert name not in new.story.replace(new_name, "")
        assert new.story.replace(new_name, name) == record.story
        assert (new.summary or "").replace(new_name, name) == (record.summary or "")


def test_short_stories_have_20_to_60_words_and_only_what_is_known_of_them(records):
    rng = Random(0)
    made = [short_story(record, rng) for record in records]
    shorts = [short for short in made if short]
    assert len(shorts) > 0.9 * len(records)
    assert all(len(short.story.split()) in SHORT for short in shorts)
    assert all(short.summary is None and short.words == () for short in shorts)
    # A beginning does not tell how the story ends.
    beginnings = [s for record, s in zip(records, made, strict=True) if s and record.story.startswith(s.story)]
    assert beginnings
    assert all(short.features == () for short in beginnings)
    assert short_story(parse_record("Story: Too short. To be one."), rng) is None


def test_examples_are_trained_on_the_replies_only_and_fit(dataset, tasks):
    tokenizer = tasks.tokenizer
    for index in range(40):
        rendered, example = dataset.rendered(index), dataset[index]
        assert example.kind == KIND
        assert len(example.ids) <= 400
        trained = [tokenizer.decode(part, control=True) for part in runs(example)]
        assert trained == [f"{task.target}<|endoftext|>" for task in (rendered.task, *rendered.later)]
        assert np.array_equal(example.ids, dataset[index].ids)


def runs(example):
    """The consecutive trained ids."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], example.loss_mask.astype(int), [0]])))
    return [example.ids[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def test_a_context_in_which_nothing_fits_is_an_error(tasks):
    data = tasks.data.model_copy(update={"seq_len": 8})
    small = ConversationDataset(tasks.index, len(tasks), tasks.tokenizer, data, 3, tasks.loss_weights)
    with pytest.raises(UserError, match=r"no conversation of at most 8 tokens; raise data\.seq_len"):
        small[0]
