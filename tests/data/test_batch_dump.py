"""A batch dump can be read by people, and programs can restore the batch."""

import re
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from mini_chat_gpt.chat_format import Message, render
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.batch_dump import describe, headline, marked_parts, read_examples, read_ids
from mini_chat_gpt.data.batching import Example, collate
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

TOKENIZER = tiny_tokenizer()
FORGED = "ids: [1, 2]\nloss_mask: []\nweight: 1.0\n== 1. words: 2 tokens, 1 trained, weight 1\n\rids: [3]\u2028ids: [4]\x1b[2J]]"


def conversation(*texts: str, kind: str = "words", weight: float | np.ndarray = 1.0) -> Example:
    messages = [Message("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(texts)]
    ids, trained = render(messages, TOKENIZER)
    return Example(np.array(ids, dtype=np.int32), np.array(trained), weight, kind)


@st.composite
def examples(draw) -> Example:
    """Of any ids, or of a text that looks like what is written around it."""
    kind = draw(st.sampled_from(["words", "main_character", "a kind: 3 tokens", "ids"]))
    if draw(st.booleans()):
        return conversation(draw(st.sampled_from(["Hi", FORGED])), draw(st.sampled_from([FORGED, "é\n\nü"])), kind=kind)
    ids = draw(st.lists(st.integers(0, TOKENIZER.vocab_size + 3), min_size=2, max_size=20))
    trained = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    trained[-1] = True
    weights = st.floats(0, 10, width=32)
    each = st.lists(weights, min_size=len(ids), max_size=len(ids)).map(
        lambda values: np.array(values, dtype=np.float32)
    )
    branches = tuple(sorted(draw(st.sets(st.integers(1, len(ids) - 1), min_size=2)))) if len(ids) > 9 else ()
    return Example(np.array(ids, dtype=np.int32), np.array(trained), draw(weights | each), kind, branches)


def assert_same(one: Example, other: Example) -> None:
    for mine, theirs in zip(astuple(one), astuple(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@settings(deadline=None)
@given(batch=st.lists(examples(), min_size=1, max_size=4), title=st.sampled_from(["step 3: loss nan", FORGED]))
def test_the_text_restores_the_same_batch(batch, title, tmp_path_factory):
    path = tmp_path_factory.mktemp("batch") / "batch.txt"
    path.write_text(describe(batch, TOKENIZER, title), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    assert read_ids(text) == [example.ids.tolist() for example in batch]
    again = read_examples(text)
    for one, other in zip(batch, again, strict=True):
        assert_same(one, other)
    for mine, theirs in zip(astuple(collate(batch)), astuple(collate(again)), strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs


@given(example=examples())
def test_the_marked_parts_are_the_whole_text_in_order(example):
    known = Example(example.ids % TOKENIZER.vocab_size, example.loss_mask, example.weight, example.kind)
    parts = list(marked_parts(known, TOKENIZER))
    assert "".join(part for part, _ in parts) == TOKENIZER.decode(known.ids.tolist(), control=True)


def test_replies_are_enclosed_in_brackets():
    text = describe([conversation("Who ran?", "Tom.", "And then?", "He fell.")], TOKENIZER, "step 1")
    assert (
        "  <|user|>Who ran?<|assistant|>[[Tom.<|endoftext|>]]<|user|>And then?<|assistant|>[[He fell.<|endoftext|>]]\n"
        in text
    )


def test_each_example_has_a_headline():
    weights = np.array([0.0, 0.0, 1.0, 2.0], dtype=np.float32)
    example = Example(np.array([65, 66, 67, 68], dtype=np.int32), np.array([1, 0, 1, 1], dtype=bool), weights, "moral")
    assert headline(example) == "moral: 4 tokens, 2 trained, weight 1.5"
    first, second = describe([example], TOKENIZER, "the first step's examples").splitlines()[:2]
    assert first == "# the first step's examples"
    assert second == "# 1 example, 4 tokens, 2 trained (50%)"


def test_no_text_can_control_a_terminal():
    written = describe([conversation(FORGED, FORGED)], TOKENIZER, FORGED)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", written)
    assert "\\x1b[2J" in written


def test_a_character_of_several_tokens_is_shown_whole():
    parts = list(marked_parts(conversation("Hi", "😀"), TOKENIZER))
    assert parts[-1] == ("😀<|endoftext|>", True)


def test_an_id_that_the_tokenizer_lacks_is_shown_as_such():
    unknown = TOKENIZER.vocab_size + 7
    example = Example(np.array([72, unknown], dtype=np.int32), np.array([False, True]), 1.0, "text")
    assert f"[[<|no token {unknown}|>]]" in describe([example], TOKENIZER, "step 9: loss nan")


def test_llama2c_words_keep_the_spaces_between_parts(real_data):
    tokenizer = ChatTokenizer.from_llama2c(next(real_data.glob("stories260K/tok*.bin")))
    ids = [1, *tokenizer.encode("Once upon a time there was a cat")]
    trained = np.arange(len(ids)) >= 4
    parts = list(marked_parts(Example(np.array(ids, dtype=np.int32), trained, 1.0, "text"), tokenizer))
    assert "".join(part for part, _ in parts) == "<s>Once upon a time there was a cat"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("loss_mask: ", "loss_mask "),
        lambda text: text.replace("ids: [", "ids: [x"),
        lambda text: text.replace("ids: [", "ids: [-1, "),
        lambda text: text.replace("ids: [", "ids: [99999999999, "),
        lambda text: text.replace("ids: [", 'ids: ["1", '),
        lambda text: text.replace("ids: [", "ids: " + "[" * 100_000),
        lambda text: text.replace("loss_mask: [[", "loss_mask: [[9999, 10000], ["),
        lambda text: text.replace("loss_mask: [[", "loss_mask: [[1], ["),
        lambda text: text.replace("weight: 1", "weight: [1]").replace("weight: [1],", "weight 1,"),
        lambda text: text.replace("weight: 1", "weight: " + "9" * 5000),
        lambda text: text.replace("loss_mask: ", "prefix_branches: [3, 2]\nloss_mask: "),
    ],
)
def test_a_modified_text_is_an_error(spoil):
    text = describe([conversation("Hi", "Tom.")], TOKENIZER, "step 1")
    with pytest.raises(UserError, match="use the"):
        read_ids(spoil(text))


def test_a_text_without_examples_has_none():
    assert read_ids("") == read_ids("nothing of the kind\nids: [1]\n") == []
