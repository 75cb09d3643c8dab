"""Chats as training examples: nothing is cut in two, files are mixed by weight, held-out chats are never trained on."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from mini_chat_gpt.chat_format import Message, render
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.chat_dataset import ChatDataset, content_key, duplicates, in_both, names_of, split
from mini_chat_gpt.data.chat_files import Conversation

TOKENIZER = tiny_tokenizer()


def chat(*texts: str, path: str = "a.jsonl", line: int = 1, system: str | None = None) -> Conversation:
    """User and assistant by turns."""
    messages = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    return Conversation((*([Message("system", system)] if system else []), *messages), "messages", path, line)


def test_an_example_is_the_rendered_conversation():
    conversation = chat("Hi", "Hello!", "Bye", "Bye!")
    source = ChatDataset([conversation], TOKENIZER, 100, seed=1)
    ids, trained = render(conversation.messages, TOKENIZER)
    example = source[7]
    assert example.ids.tolist() == ids
    assert example.loss_mask.tolist() == trained
    assert (example.kind, example.weight) == ("a", 1.0)
    assert not source.left_out


def test_only_the_last_reply_may_be_trained():
    source = ChatDataset([chat("Hi", "Hello!", "Bye", "Bye!")], TOKENIZER, 100, seed=1, train="last")
    example = source[0]
    assert TOKENIZER.decode(example.ids[example.loss_mask][:-1].tolist()) == "Bye!"


def test_a_little_weight_on_what_is_read():
    example = ChatDataset([chat("Hi", "Hello!")], TOKENIZER, 100, seed=1, prompt_weight=0.25)[0]
    _, trained = render([Message("user", "Hi"), Message("assistant", "Hello!")], TOKENIZER)
    assert example.weight.tolist() == [1.0 if one else 0.25 for one in trained]
    assert example.loss_mask[1:].all()


def test_a_system_message_opens_those_that_have_none():
    chats = [chat("Hi", "Hello!"), chat("Hi", "Hello!", system="Be brief.")]
    source = ChatDataset(chats, TOKENIZER, 100, seed=1, system="Be kind.")
    texts = {TOKENIZER.decode(example.ids.tolist()) for example in source.examples()}
    assert {("Be kind." in text, "Be brief." in text) for text in texts} == {(True, False), (False, True)}


def test_what_is_too_long_loses_exchanges_from_its_end_or_is_dropped():
    long = chat("Hi", "Hello!", "Bye", "Bye! " * 60)
    source = ChatDataset([long, chat("Hi " * 80, "Hello!"), chat("Hi", "Hello!")], TOKENIZER, 60, seed=1)
    ids, _ = render(long.messages[:2], TOKENIZER)
    assert [example.ids.tolist() for example in source.examples()] == [ids, ids]
    shortened, dropped = source.left_out
    assert (shortened.what, shortened.conversation) == ("shortened", long)
    assert "60 fit: 2 messages of its end are left out" in shortened.why
    assert dropped.what == "dropped"
    assert "doesn't fit into 60 tokens" in dropped.why


def test_nothing_left_to_train_on():
    with pytest.raises(UserError, match=r"No conversation of a.jsonl is left: its first trained exchange"):
        ChatDataset([chat("Hi " * 80, "Hello!")], TOKENIZER, 60, seed=1)
    with pytest.raises(UserError, match="the files hold none"):
        ChatDataset([], TOKENIZER, 60, seed=1)


def drawn(source: ChatDataset, indices: range) -> Counter[tuple[str, str]]:
    examples = [source[index] for index in indices]
    return Counter((e.kind, TOKENIZER.decode(e.ids[e.loss_mask][:-1].tolist())) for e in examples)


@given(
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    weight=st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_files_are_mixed_by_weight_and_each_conversation_comes_as_often_as_the_others(n, m, weight, seed):
    chats = [chat("Hi", f"a {k}", path="a.jsonl") for k in range(n)] + [
        chat("Hi", f"b {k}", path="b.jsonl") for k in range(m)
    ]
    source = ChatDataset(chats, TOKENIZER, 100, seed, weights={"b.jsonl": weight})
    of_b = max(1, round(m * weight))
    assert len(source) == n + of_b
    epochs = 6
    seen = drawn(source, range(len(source) * epochs))
    assert all(seen["a", f"a {k}"] == epochs for k in range(n))
    times = [seen["b", f"b {k}"] for k in range(m)]
    assert sum(times) == epochs * of_b
    assert max(times) - min(times) <= 1


def test_epochs_differ_in_order_and_repeat_exactly():
    chats = [chat("Hi", f"a {k}") for k in range(20)]
    one, two = (ChatDataset(chats, TOKENIZER, 100, seed=3) for _ in range(2))
    orders = [[one[index].ids.tolist() for index in range(20 * epoch, 20 * epoch + 20)] for epoch in range(2)]
    assert orders[0] != orders[1]
    assert [two[index].ids.tolist() for index in range(20)] == orders[0]


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.floats(0.01, 0.6), st.integers(0, 9))
def test_the_held_out_part_depends_on_texts_alone_and_shares_none_with_the_other(numbers, share, seed):
    chats = [chat("Hi", f"a {k}", line=line) for line, k in enumerate(numbers)]
    train, held = split(chats, share, seed)
    assert len(train) + len(held) == len(chats)
    assert not {content_key(c) for c in train} & {content_key(c) for c in held}
    again = split([*reversed(chats), *chats[:3]], share, seed)[1]
    assert {content_key(c) for c in again} == {content_key(c) for c in held}
    different = len(set(numbers))
    assert len({content_key(c) for c in held}) == min(different - 1, max(1, round(share * different)))


def test_repetitions_are_found_whatever_their_case_and_spacing():
    chats = [chat("Hi", "Hello!"), chat("Hi", "No."), chat("hi ", "  hello!", line=3), chat("Bye", "Bye!")]
    assert [[c.line for c in group] for group in duplicates(chats)] == [[1, 3]]
    whole, question = in_both([chats[0], chats[3]], [chats[1], chats[2]])
    assert (whole, question) == ([chats[2]], [chats[1]])


def test_files_of_the_same_name_are_told_apart():
    assert names_of(["x/a.jsonl.gz", "y/a.json", "b.jsonl"]) == {
        "x/a.jsonl.gz": "x/a",
        "y/a.json": "y/a",
        "b.jsonl": "b",
    }


def test_ids_are_those_a_batch_takes():
    example = ChatDataset([chat("Hi", "Hello!")], TOKENIZER, 100, seed=1)[0]
    assert (example.ids.dtype, example.loss_mask.dtype) == (np.int32, bool)
