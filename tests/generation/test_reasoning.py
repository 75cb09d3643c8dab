"""The reasoning of a reply is separated from the reply, the same way in pieces and as a whole."""

from __future__ import annotations

from functools import lru_cache

import pytest
from chat_template_samples import QWEN3, THINKER
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import chat_tokenizer, lively_model, tiny_tokenizer

from mini_chat_gpt.chat_format import Message, ReasoningMarks
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.decode import suppressed_tokens
from mini_chat_gpt.generation.reasoning import ReplyDecoder, Thought, decode_reply, joined, reasoning_marks
from mini_chat_gpt.generation.text import generate, generate_replies, prompt_ids, stream
from mini_chat_gpt.tokenizer.chat_setup import template_format
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

MARKS = ReasoningMarks("<think>", "</think>")
OPENED = ReasoningMarks("<think>", "</think>", opened=True)


@lru_cache
def thinking_tokenizer(source: str = QWEN3) -> ChatTokenizer:
    tokenizer = tiny_tokenizer()
    names = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_response>", "</tool_response>")
    tokenizer.add_control_tokens(names)
    tokenizer.chat_format = template_format(tokenizer, source)
    return tokenizer


def ids_of(text: str, tokenizer: ChatTokenizer) -> list[int]:
    """The ids of a reply, in which <think> and </think> are the control tokens."""
    ids = []
    for at, part in enumerate(text.replace("</think>", "<think>/").split("<think>")):
        if at:
            ids.append(tokenizer.control["</think>" if part.startswith("/") else "<think>"])
        ids += tokenizer.encode(part.removeprefix("/") if at else part)
    return ids


@pytest.mark.parametrize(
    ("text", "marks", "reply", "reasoning"),
    [
        ("<think>\nHm.\n\nYes.\n</think>\n\nHello!\n", MARKS, "Hello!\n", "Hm.\n\nYes."),
        ("\n<think>Hm.</think>Hello!", MARKS, "Hello!", "Hm."),
        ("<think>\n\n</think>\n\nHello!", MARKS, "Hello!", None),
        ("\n\n Hello <think>!", MARKS, "\n\n Hello <think>!", None),
        ("<think>\nHm.\n", MARKS, "", "Hm."),
        ("<think>\nHm.\n</think>\n\n", MARKS, "", "Hm."),
        ("Hm.\n</think>\n\nHello!", OPENED, "Hello!", "Hm."),
        ("\nHm.", OPENED, "", "Hm."),
        ("</think>Hello!", OPENED, "Hello!", None),
        ("", MARKS, "", None),
        ("\n\nHello!", None, "\n\nHello!", None),
    ],
)
def test_the_reasoning_of_a_reply_is_separated(text, marks, reply, reasoning):
    tokenizer = thinking_tokenizer()
    assert decode_reply(tokenizer, ids_of(text, tokenizer), marks, True) == (reply, reasoning)
    # Templates can also have marks that are ordinary text of the tokenizer.
    assert decode_reply(tokenizer, tokenizer.encode(text), marks, True) == (reply, reasoning)


texts = st.lists(
    st.sampled_from(["<think>", "</think>", "</", "th", "ink>", "<", "\n", "\n\n", " ", "Hm", "ü🙂"]), max_size=12
).map("".join)


@settings(deadline=None, max_examples=300)
@given(texts, st.sampled_from([MARKS, OPENED, None]))
def test_pieces_joined_are_the_reply_and_nothing_but_line_breaks_and_marks_is_lost(text, marks):
    tokenizer = thinking_tokenizer()
    decoder = ReplyDecoder(tokenizer, marks, True)
    pieces = [piece for one in tokenizer.encode(text) for piece in decoder.push(one)]
    pieces += decoder.finish()
    assert all(pieces)
    kinds = [isinstance(piece, Thought) for piece in pieces]
    assert kinds == sorted(kinds, reverse=True)  # the reasoning comes first
    reply, reasoning = joined(pieces)
    if marks is None:
        assert (reply, reasoning) == (text, None)
        return
    whole = "<think>" + text if marks.opened else text.lstrip() if text.lstrip().startswith("<think>") else None
    if whole is None:
        assert (reply, reasoning) == (text, None)
        return
    thought, _, rest = whole.removeprefix("<think>").partition("</think>")
    assert reply == rest.lstrip("\n")
    assert (reasoning or "").strip() == thought.strip("\n").strip()


def test_the_marks_can_be_sampled_and_other_control_tokens_not():
    tokenizer = thinking_tokenizer()
    suppressed = set(suppressed_tokens(tokenizer, tokenizer.vocab_size).tolist())
    names = ("<|im_start|>", "<tool_response>", "</tool_response>")
    assert {tokenizer.control[name] for name in names} <= suppressed
    assert not suppressed & {tokenizer.control[name] for name in ("<think>", "</think>", "<|im_end|>")}


def test_generate_and_stream_return_the_reply_without_its_reasoning():
    tokenizer = thinking_tokenizer(THINKER)
    model = lively_model(tokenizer.vocab_size, 0, context_length=128)
    prompts = ["Once upon", "Tom"]
    options = {"max_new_tokens": 40, "temperature": 2.0, "seed": 1}
    pieces, end = [], None
    parts = stream(model, tokenizer, prompts[0], **options)
    while end is None:
        try:
            pieces.append(next(parts))
        except StopIteration as stop:
            end = stop.value
    assert (end.text, end.reasoning) == joined(pieces)
    assert end.reasoning  # the prompt opens it
    [first, _] = generate(model, tokenizer, prompts, **options)
    assert first == end.text


def test_thinking_is_the_template_s_switch():
    tokenizer = thinking_tokenizer()
    on, off = prompt_ids(tokenizer, "Hi", thinking=True), prompt_ids(tokenizer, "Hi", thinking=False)
    assert on == prompt_ids(tokenizer, "Hi")
    assert tokenizer.decode(off[len(on) :], control=True) == "<think>\n\n</think>\n\n"
    model = lively_model(tokenizer.vocab_size, 0, context_length=128)
    [reply] = generate_replies(model, tokenizer, [[Message("user", "Hi")]], thinking=False)
    assert reply.n_prompt == len(off)


def test_a_model_without_the_switch_says_so():
    with pytest.raises(UserError, match="the model's chat format has no reasoning"):
        prompt_ids(chat_tokenizer(), "Hi", thinking=False)
    with pytest.raises(UserError, match="always begins with it"):
        prompt_ids(thinking_tokenizer(THINKER), "Hi", thinking=False)
    with pytest.raises(UserError, match="has no reasoning"):
        prompt_ids(tiny_tokenizer(), "Once", thinking=True)
    assert reasoning_marks(thinking_tokenizer(THINKER)) == OPENED
