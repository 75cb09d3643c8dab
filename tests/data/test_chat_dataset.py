"""Chats as training examples: replies are never cut, files are mixed by weight, held-out chats are never trained on."""

import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from chat_template_samples import QWEN3
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from mini_chat_gpt.chat_format import Message, render, render_spans
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import ChatsSection, DataSection
from mini_chat_gpt.data.chat_dataset import (
    ChatDataset,
    content_key,
    duplicates,
    in_both,
    names_of,
    nearest_prompts,
    split,
)
from mini_chat_gpt.data.chat_files import Conversation
from mini_chat_gpt.tokenizer.chat_setup import template_format
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

TOKENIZER = tiny_tokenizer()


def chat(*texts: str, path: str = "a.jsonl", line: int = 1, system: str | None = None) -> Conversation:
    """User and assistant alternate."""
    messages = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    return Conversation((*([Message("system", system)] if system else []), *messages), "messages", path, f"line {line}")


def dataset(chats, seq_len=100, seed=1, train="all", weights=None, **data) -> ChatDataset:
    data_section = DataSection(seq_len=seq_len, **data)
    return ChatDataset(chats, TOKENIZER, ChatsSection(files=weights or {}, train=train), data_section, seed)


def test_an_example_is_the_rendered_conversation():
    conversation = chat("Hi", "Hello!", "Bye", "Bye!")
    source = dataset([conversation])
    ids, trained = render(conversation.messages, TOKENIZER)
    example = source[7]
    assert example.ids.tolist() == ids
    assert example.loss_mask.tolist() == trained
    assert (example.kind, example.weight) == ("a", 1.0)
    assert not source.left_out


def test_training_can_be_limited_to_the_last_reply():
    source = dataset([chat("Hi", "Hello!", "Bye", "Bye!")], train="last")
    example = source[0]
    assert TOKENIZER.decode(example.ids[example.loss_mask][:-1].tolist()) == "Bye!"


def test_a_prompt_weight_makes_the_prompt_a_target():
    example = dataset([chat("Hi", "Hello!")], prompt_weight=0.25)[0]
    _, trained = render([Message("user", "Hi"), Message("assistant", "Hello!")], TOKENIZER)
    assert example.weight.tolist() == [1.0 if one else 0.25 for one in trained]
    assert example.loss_mask[1:].all()


def test_a_system_message_begins_chats_that_have_none():
    chats = [chat("Hi", "Hello!"), chat("Hi", "Hello!", system="Be brief.")]
    source = dataset(chats, system_message="Be kind.")
    texts = {TOKENIZER.decode(example.ids.tolist()) for example in source.examples()}
    assert {("Be kind." in text, "Be brief." in text) for text in texts} == {(True, False), (False, True)}


def test_a_chat_that_is_too_long_loses_its_last_exchanges_or_is_dropped():
    long = chat("Hi", "Hello!", "Bye", "Bye! " * 60)
    source = dataset([long, chat("Hi " * 80, "Hello!"), chat("Hi", "Hello!")], 60)
    ids, _ = render(long.messages[:2], TOKENIZER)
    assert [example.ids.tolist() for example in source.examples()] == [ids, ids]
    shortened, dropped = source.left_out
    assert (shortened.what, shortened.conversation) == ("shortened", long)
    assert "60 fit: its last 2 messages are removed" in shortened.why
    assert dropped.what == "dropped"
    assert "doesn't fit into 60 tokens" in dropped.why


def test_it_is_an_error_if_no_chat_is_left():
    with pytest.raises(UserError, match=r"No conversation of a.jsonl is left: its first trained exchange"):
        dataset([chat("Hi " * 80, "Hello!")], 60)
    with pytest.raises(UserError, match="the files contain none"):
        dataset([], 60)


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
def test_files_are_mixed_by_weight_and_their_chats_are_equally_frequent(n, m, weight, seed):
    chats = [chat("Hi", f"a {k}", path="a.jsonl") for k in range(n)] + [
        chat("Hi", f"b {k}", path="b.jsonl") for k in range(m)
    ]
    source = dataset(chats, seed=seed, weights={"b.jsonl": weight})
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
    one, two = (dataset(chats, seed=3) for _ in range(2))
    orders = [[one[index].ids.tolist() for index in range(20 * epoch, 20 * epoch + 20)] for epoch in range(2)]
    assert orders[0] != orders[1]
    assert [two[index].ids.tolist() for index in range(20)] == orders[0]


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.floats(0.01, 0.6), st.integers(0, 9))
def test_the_split_depends_on_the_texts_only_and_its_parts_are_disjoint(numbers, share, seed):
    chats = [chat("Hi", f"a {k}", line=line) for line, k in enumerate(numbers)]
    train, held = split(chats, share, seed)
    assert len(train) + len(held) == len(chats)
    assert not {content_key(c) for c in train} & {content_key(c) for c in held}
    again = split([*reversed(chats), *chats[:3]], share, seed)[1]
    assert {content_key(c) for c in again} == {content_key(c) for c in held}
    different = len(set(numbers))
    assert len({content_key(c) for c in held}) == min(different - 1, max(1, round(share * different)))


def test_duplicates_are_found_regardless_of_case_and_spacing():
    chats = [chat("Hi", "Hello!"), chat("Hi", "No."), chat("hi ", "  hello!", line=3), chat("Bye", "Bye!")]
    assert [[c.place for c in group] for group in duplicates(chats)] == [["line 1", "line 3"]]
    whole, question = in_both([chats[0], chats[3]], [chats[1], chats[2]])
    assert (whole, question) == ([chats[2]], [chats[1]])


def test_files_of_the_same_name_get_different_names():
    assert names_of(["x/a.jsonl.gz", "y/a.json", "b.jsonl"]) == {
        "x/a.jsonl.gz": "x/a",
        "y/a.json": "y/a",
        "b.jsonl": "b",
    }


def test_ids_and_loss_mask_have_the_dtypes_of_a_batch():
    example = dataset([chat("Hi", "Hello!")])[0]
    assert (example.ids.dtype, example.loss_mask.dtype) == (np.int32, bool)


def test_a_note_counts_the_chats_of_each_file_that_are_left_out_and_names_the_first():
    source = dataset([chat("Hi " * 80, "Hello!"), chat("Hi " * 90, "Hello!"), chat("Hi", "Hello!")], 60)
    (note,) = source.notes("of training")
    first, *places = note.split("\n")
    assert first.endswith("a.jsonl: chats of training that are dropped: 2")
    assert len(places) == 2
    assert re.fullmatch(r"  line \d+: .*doesn't fit into 60 tokens.*", places[0])


def test_the_nearest_question_is_the_one_that_shares_most_words():
    chats = [chat("zebra unrelated words", "No."), chat("What is the capital of Japan?", "Tokyo.")]
    ((similarity, prompt, question),) = nearest_prompts(["what is the CAPITAL of France"], chats)
    assert (prompt, question) == ("what is the CAPITAL of France", "What is the capital of Japan?")
    assert similarity == pytest.approx(5 / 7)


def test_the_conversations_of_a_dataset_are_those_of_its_examples():
    chats = [chat("Hi", "Hello!"), chat("Hi " * 80, "Hello!"), chat("Bye", "Bye!")]
    assert list(dataset(chats, 60).conversations) == [chats[0], chats[2]]


# Reasoning and tools


@lru_cache
def reasoning_tokenizer() -> ChatTokenizer:
    """A tokenizer with a template that prints reasoning and tool calls."""
    tokenizer = tiny_tokenizer()
    names = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_control_tokens((*names, "<tool_response>", "</tool_response>"))
    tokenizer.chat_format = template_format(tokenizer, QWEN3)
    return tokenizer


def trained_texts(source: ChatDataset, tokenizer: ChatTokenizer) -> list[str]:
    [example] = source.examples()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], example.loss_mask, [0]]))).tolist()
    return [
        tokenizer.decode(example.ids[a:b].tolist(), control=True) for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


@pytest.mark.parametrize("with_tags", [False, True])
def test_each_reply_is_trained_as_the_template_renders_it(with_tags):
    tokenizer = reasoning_tokenizer()
    replies = [("Hello!", "A greeting."), ("Bye!", "They leave.\n\nBye?")]
    messages = []
    for question, (reply, thought) in zip(("Hi", "Bye"), replies, strict=True):
        tagged = Message("assistant", f"<think>\n{thought}\n</think>\n\n{reply}")
        field = Message("assistant", reply, reasoning=thought)
        messages += [Message("user", question), tagged if with_tags else field]
    chats = [Conversation(tuple(messages), "messages", "a.jsonl", "line 1")]
    source = ChatDataset(chats, tokenizer, ChatsSection(), DataSection(seq_len=200), seed=1)
    assert trained_texts(source, tokenizer) == [
        "Hello!<|im_end|>",  # the template removes earlier reasoning
        "<think>\nThey leave.\n\nBye?\n</think>\n\nBye!<|im_end|>",
    ]


def test_tags_stay_text_if_the_format_has_no_reasoning():
    tagged = "<think>\nHm.\n</think>\n\nHello!"
    [example] = dataset([chat("Hi", tagged)]).examples()
    assert TOKENIZER.decode(example.ids[example.loss_mask][:-1].tolist()) == tagged


def test_a_reply_of_reasoning_alone_is_left_out():
    chats = [chat("Hi", "<think>Hm.</think>\n"), chat("Hi", "<think> </think>Hello!")]
    tokenizer = reasoning_tokenizer()
    source = ChatDataset(chats, tokenizer, ChatsSection(), DataSection(seq_len=200), seed=1)
    assert [one.why for one in source.left_out] == [
        "Message 2 of 2 (role assistant) has no text; add text, or remove the conversation"
    ]
    assert trained_texts(source, tokenizer) == ["Hello!<|im_end|>"]


def test_an_exchange_with_tool_calls_is_removed_as_a_whole():
    tokenizer = reasoning_tokenizer()
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": "<|im_end|>"}}}
    first = [
        Message("user", "1 + 1?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "2"),
        Message("assistant", "2"),
    ]
    tools = ({"type": "function", "function": {"name": "add"}},)
    whole = Conversation((*first, *first), "messages", "a.jsonl", "line 1", tools)
    n_tokens = len(render_spans(first, tokenizer, tools=tools).ids)
    source = ChatDataset([whole], tokenizer, ChatsSection(), DataSection(seq_len=n_tokens + 5), seed=1)
    assert ["its last 4 messages are removed" in one.why for one in source.left_out] == [True]
    assert trained_texts(source, tokenizer) == [
        '<tool_call>\n{"name": "add", "arguments": {"a": "<|im_end|>"}}\n</tool_call><|im_end|>',
        "2<|im_end|>",
    ]
    [example] = source.examples()
    assert int((example.ids == tokenizer.control["<|im_end|>"]).sum()) == 5


def test_conversations_that_differ_in_reasoning_or_calls_are_not_duplicates():
    plain, thinks = chat("Hi", "Hello!"), chat("Hi", "Hello!", line=2)
    thinks = replace(thinks, messages=(thinks.messages[0], replace(thinks.messages[1], reasoning="Hm.")))
    assert duplicates([plain, thinks]) == []
    assert duplicates([thinks, replace(thinks, place="line 3")]) != []


def test_without_a_share_nothing_is_held_out():
    chats = [chat("Hi", f"a {k}") for k in range(5)]
    assert split(chats, 0.0, 1) == (chats, [])


def test_a_system_message_is_recognized_whatever_text_object_its_role_is():
    system = Message("".join(["sys", "tem"]), "Be brief.")
    chats = [Conversation((system, *chat("Hi", "Hello!").messages), "messages", "a.jsonl", "line 1")]
    (example,) = dataset(chats, system_message="Be kind.").examples()
    assert "Be kind." not in TOKENIZER.decode(example.ids.tolist())
