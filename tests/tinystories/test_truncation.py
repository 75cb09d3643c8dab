"""Examples that are too long: the story loses its middle, everything else is kept."""

import numpy as np
import pytest

from mini_chat_gpt.tinystories.records import StoryRecord, stories
from mini_chat_gpt.tinystories.tasks import Task, generate_tasks
from mini_chat_gpt.tinystories.truncation import GAP, answer_tokens, messages_of, truncate_to_context
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

STORY = " ".join(f"Sentence number {number} tells of the cat." for number in range(60))


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = ChatTokenizer.train([STORY + " Who is the main character? What happened in this story?"], 350)
    tokenizer.add_control_tokens()
    return tokenizer


def about(story: str, evidence: str | None = None, target: str = "The cat.") -> Task:
    before, after = "Read this story. ", "\n\nWho is it about?"
    at = len(before) + story.index(evidence) if evidence else 0
    span = (at, at + len(evidence)) if evidence else None
    return Task("summary", before + story + after, target, (len(before), len(before) + len(story)), None, span)


def test_a_task_that_fits_is_not_changed(tokenizer):
    fitted = truncate_to_context(about("A cat."), tokenizer, 500)
    assert fitted.task == about("A cat.")
    assert not fitted.shortened


@pytest.mark.parametrize("seq_len", [80, 120, 200, 333])
def test_a_story_that_is_too_long_loses_sentences_from_its_middle(tokenizer, seq_len):
    fitted = truncate_to_context(about(STORY), tokenizer, seq_len)
    story = fitted.task.prompt[slice(*fitted.task.story_span)]
    first, last = story.split(GAP)
    assert STORY.startswith(first)
    assert first.endswith(".")
    assert STORY.endswith(last)
    assert last.startswith("Sentence")
    assert len(fitted.ids) <= seq_len


@pytest.mark.parametrize("seq_len", [80, 120, 200, 333])
def test_most_of_the_context_is_used(tokenizer, seq_len):
    one_sentence = len(tokenizer.encode(" Sentence number 33 tells of the cat."))
    assert len(truncate_to_context(about(STORY), tokenizer, seq_len).ids) > seq_len - 3 * one_sentence


def test_instruction_and_answer_are_kept_in_full(tokenizer):
    fitted = truncate_to_context(about(STORY), tokenizer, 100)
    assert fitted.task.prompt.startswith("Read this story. ")
    assert fitted.task.prompt.endswith("\n\nWho is it about?")
    (reply,) = fitted.replies
    assert fitted.ids[slice(*reply)].tolist() == [*tokenizer.encode("The cat."), tokenizer.end_id]


@pytest.mark.parametrize("target", ["Zoë's “friend” is Tom.", "The main character is Tom.", "Это Tom.", "🐈 Tom."])
def test_the_tokens_of_an_answer_cover_its_characters_whatever_comes_before_it(tokenizer, target):
    task = Task("main_character", "Who? Tom ran.", target, (5, 13), "Tom")
    reply = np.array(tokenizer.encode(target))
    *_, (start, end) = answer_tokens(task, reply, tokenizer)
    assert tokenizer.decode(reply[start:end]).strip() == "Tom"
    assert "Tom" not in tokenizer.decode(reply[start + 1 :]) + tokenizer.decode(reply[: end - 1])


def test_the_evidence_is_kept(tokenizer):
    fitted = truncate_to_context(about(STORY, evidence="number 31 tells"), tokenizer, 100)
    assert "Sentence number 31 tells of the cat." in fitted.task.prompt
    assert len(fitted.ids) <= 100


def test_a_story_of_one_endless_sentence_is_cut_between_words(tokenizer):
    story = "the cat and " * 200
    fitted = truncate_to_context(about(story.strip()), tokenizer, 90)
    assert GAP in fitted.task.prompt
    assert len(fitted.ids) <= 90


def test_a_long_system_message_counts(tokenizer):
    fitted = truncate_to_context(about(STORY), tokenizer, 200, system="You are a cat. " * 3)
    assert len(fitted.ids) <= 200
    assert fitted.ids[0] == tokenizer.control["<|system|>"]


def test_an_answer_that_leaves_no_room_for_a_story_gives_no_example(tokenizer):
    assert truncate_to_context(about(STORY, target=STORY), tokenizer, 200) is None


def test_a_story_that_is_the_answer_is_never_shortened(tokenizer):
    task = Task("words", "Tell me a story.", STORY, None)
    assert truncate_to_context(task, tokenizer, 200) is None
    assert truncate_to_context(task, tokenizer, 5000).task.target == STORY


def test_messages_have_a_system_message_only_if_there_is_one():
    assert [message.role for message in messages_of(about("x"))] == ["user", "assistant"]
    assert [message.role for message in messages_of(about("x"), "Be kind.")] == ["system", "user", "assistant"]


def test_real_stories_fit_small_contexts_with_their_answers(real_data, tokenizer):
    for number, story in enumerate(stories(real_data / "tinystories" / "stories-valid.txt")):
        if number >= 40:
            break
        for task in generate_tasks(StoryRecord(story=story), 0):
            fitted = truncate_to_context(task, tokenizer, 256)
            assert fitted is not None
            assert len(fitted.ids) <= 256
            assert task.evidence is None or task.prompt[slice(*task.evidence)] in fitted.task.prompt
            assert tokenizer.decode(fitted.ids).endswith(task.target)
