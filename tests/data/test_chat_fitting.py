"""Chats that are too long: cut between exchanges, shortened or dropped. Each reply is trained once, or counted as lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from chat_template_samples import reasoning_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from mini_chat_gpt.chat_format import Message, Rendered, render_spans
from mini_chat_gpt.config import ChatsSection, DataSection
from mini_chat_gpt.data import chat_fitting
from mini_chat_gpt.data.chat_files import Conversation
from mini_chat_gpt.data.chat_fitting import FitResult, fit, with_reasoning
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

TOKENIZER = tiny_tokenizer()


def chat(*texts: str, system: str | None = None) -> Conversation:
    """User and assistant alternate."""
    messages = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    head = [Message("system", system)] if system else []
    return Conversation((*head, *messages), "messages", "a.jsonl", "line 1")


def fitted(conversation, seq_len=100, tokenizer=TOKENIZER, system_message=None, **chats) -> FitResult:
    return fit(
        conversation, tokenizer, ChatsSection(**chats), DataSection(seq_len=seq_len, system_message=system_message)
    )


def replies(result: FitResult, tokenizer: ChatTokenizer = TOKENIZER) -> list[str]:
    """The trained texts of all pieces, without the tokens that end them."""
    spans = [(piece.ids, a, b - 1) for piece in result.pieces for a, b in piece.reply_spans]
    return [tokenizer.decode(ids[a:b], control=True) for ids, a, b in spans]


def ids_of(messages, tokenizer=TOKENIZER, tools=()) -> list[int]:
    return render_spans(messages, tokenizer, system_default=False, tools=tools).ids


def test_a_chat_that_fits_is_one_example():
    conversation = chat("Hi", "Hello!", "Bye", "Bye!")
    result = fitted(conversation)
    assert [piece.ids for piece in result.pieces] == [ids_of(conversation.messages)]
    assert (result.what, result.why, result.n_lost, result.n_replies) == ("", "", 0, 2)


def test_a_long_chat_is_cut_between_exchanges_and_each_piece_begins_with_the_system_message():
    texts = ["a question", "a reply"] * 6
    conversation = chat(*texts, system="Be brief.")
    one, two = (len(ids_of(conversation.messages[: 1 + 2 * n])) for n in (1, 2))
    result = fitted(conversation, seq_len=max(16, one + 2 * (two - one)))
    system, *messages = conversation.messages
    assert [piece.ids for piece in result.pieces] == [ids_of([system, *messages[at : at + 6]]) for at in (0, 6)]
    assert replies(result) == texts[1::2]
    assert (result.what, result.n_lost) == ("cut", 0)
    assert result.n_tokens == len(ids_of(conversation.messages))


def test_the_system_message_of_the_settings_begins_each_piece():
    result = fitted(chat(*["a text"] * 12), seq_len=45, system_message="Be kind.")
    assert len(result.pieces) > 1
    assert all("Be kind." in TOKENIZER.decode(piece.ids) for piece in result.pieces)


def test_an_exchange_that_alone_is_too_long_is_lost_and_counted():
    result = fitted(chat("Hi", "Hello!", "Bye", "Bye! " * 60, "And", "then"), seq_len=60)
    assert replies(result) == ["Hello!", "then"]
    assert (result.what, result.n_replies, result.n_lost) == ("cut", 3, 1)
    assert "1 of its 3 exchanges alone is too long" in result.why
    alone = fitted(chat("Hi " * 80, "Hello!"), seq_len=60)
    assert (alone.what, alone.pieces, alone.n_lost) == ("dropped", [], 1)
    assert "60 fit: its only exchange is too long" in alone.why
    both = fitted(chat("Hi " * 80, "Hello!", "Hi " * 80, "Bye!"), seq_len=60)
    assert (both.what, both.n_lost) == ("dropped", 2)


def test_a_long_chat_can_be_dropped_or_shortened():
    conversation = chat("Hi", "Hello!", "Bye", "Bye! " * 60)
    dropped, shortened = (fitted(conversation, 60, too_long=how) for how in ("drop", "shorten"))
    assert (dropped.what, dropped.pieces, dropped.n_lost) == ("dropped", [], 2)
    assert (shortened.what, replies(shortened), shortened.n_lost) == ("shortened", ["Hello!"], 1)
    assert "60 fit: its last 2 messages are removed" in shortened.why


def test_with_only_the_last_reply_trained_the_piece_is_the_end_of_the_chat():
    texts = ["a question", "a reply"] * 6
    conversation = chat(*texts)
    seq_len = len(ids_of(conversation.messages[-6:]))
    result = fitted(conversation, max(seq_len, 16), train="last")
    assert [piece.ids for piece in result.pieces] == [ids_of(conversation.messages[-6:])]
    assert replies(result) == texts[-1:]
    assert (result.n_replies, result.n_lost) == (1, 0)
    assert "6 messages before its last reply are removed" in result.why


def test_the_last_reply_is_the_last_one_that_may_be_trained():
    messages = [*chat("Hi", "Hello!", "Bye", "Bye!").messages]
    messages[-1] = replace(messages[-1], train=False)
    result = fitted(Conversation(tuple(messages), "messages", "a.jsonl", "line 1"), train="last")
    assert replies(result) == ["Hello!"]
    assert result.pieces[0].ids == ids_of(messages[:2])


def test_a_piece_without_a_reply_to_train_on_is_no_example():
    conversation = chat(*["some text"] * 12)
    untrained = [replace(m, train=m.role == "assistant" and at > 8) for at, m in enumerate(conversation.messages)]
    result = fitted(replace(conversation, messages=tuple(untrained)), 40)
    assert sum(len(piece.reply_spans) for piece in result.pieces) == result.n_replies == 2
    assert all(piece.reply_spans for piece in result.pieces)
    assert result.n_lost == 0


def test_calls_stay_with_their_results_and_each_piece_has_the_tools():
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
    alone = ids_of(first, tokenizer, tools)
    result = fitted(whole, len(alone) + 5, tokenizer)
    assert [piece.ids for piece in result.pieces] == [alone, alone]
    assert (result.n_replies, result.n_lost) == (4, 0)
    shortened = fitted(whole, len(alone) + 5, tokenizer, too_long="shorten")
    assert "its last 4 messages are removed" in shortened.why
    assert [piece.ids for piece in shortened.pieces] == [alone]
    assert fitted(whole, len(alone) - 1, tokenizer).what == "dropped"


# Against the plain definitions

words = st.integers(1, 12).map(lambda n: "word " * n)
exchange = st.tuples(words, words, st.one_of(st.none(), words), st.booleans())


@st.composite
def conversations(draw, reasoning: bool) -> Conversation:
    messages = [Message("system", draw(words))] if draw(st.booleans()) else []
    for question, reply, thought, train in draw(st.lists(exchange, min_size=1, max_size=12)):
        messages += [Message("user", question), Message("assistant", reply, train, thought if reasoning else None)]
    return Conversation(tuple(messages), "messages", "a.jsonl", "line 1")


def shortened_one_by_one(conversation, tokenizer, seq_len, train) -> Rendered | None:
    """Remove the last exchange until the rest fits and has a reply to train on."""
    messages = list(map(with_reasoning, conversation.messages))
    while messages:
        last = len(messages) - 1
        shown = [replace(m, train=m.train and (train == "all" or at == last)) for at, m in enumerate(messages)]
        rendered = render_spans(shown, tokenizer, system_default=False)
        if len(rendered.ids) <= seq_len and rendered.reply_spans:
            return rendered
        del messages[max((at for at, m in enumerate(messages) if m.role == "user"), default=0) :]
        if messages and messages[-1].role != "assistant":
            break
    return None


@pytest.mark.parametrize("reasoning", [False, True])
@given(data=st.data(), seq_len=st.integers(16, 120), train=st.sampled_from(["all", "last"]))
@settings(max_examples=60, deadline=None)
def test_shortening_gives_what_removing_one_exchange_after_the_other_gives(reasoning, data, seq_len, train):
    tokenizer = reasoning_tokenizer() if reasoning else TOKENIZER
    conversation = data.draw(conversations(reasoning))
    result = fitted(conversation, seq_len, tokenizer, too_long="shorten", train=train)
    expected = shortened_one_by_one(conversation, tokenizer, seq_len, train)
    assert result.pieces == ([] if expected is None else [expected])


@pytest.mark.parametrize("reasoning", [False, True])
@given(data=st.data(), seq_len=st.integers(16, 120))
@settings(max_examples=60, deadline=None)
def test_no_reply_is_trained_twice_and_none_is_lost_that_fits(reasoning, data, seq_len):
    tokenizer = reasoning_tokenizer() if reasoning else TOKENIZER
    conversation = data.draw(conversations(reasoning))
    result = fitted(conversation, seq_len, tokenizer)
    messages = list(conversation.messages)
    head = [messages.pop(0)] if messages[0].role == "system" else []
    pairs = [messages[at : at + 2] for at in range(0, len(messages), 2)]
    fitting = [pair for pair in pairs if len(ids_of([*head, *pair], tokenizer)) <= seq_len]
    wanted = Counter(pair[1].content.strip() for pair in fitting if pair[1].train)
    texts = [text.rpartition("</think>")[2] for text in replies(result, tokenizer)]
    assert Counter(text.strip() for text in texts) >= wanted
    assert sum(len(piece.reply_spans) for piece in result.pieces) == result.n_replies - result.n_lost
    assert result.n_replies == sum(m.role == "assistant" and m.train for m in messages)
    assert all(len(piece.ids) <= seq_len and piece.reply_spans for piece in result.pieces)
    if not reasoning:  # then the pieces are as long as possible: no two neighbors fit together
        assert wanted == Counter(text.strip() for text in texts)


# The time

LONG = 1600


@pytest.mark.parametrize("how", ["cut", "shorten", "drop"])
@pytest.mark.parametrize("template", [False, True])
def test_a_chat_of_many_exchanges_takes_time_in_proportion_to_its_length(how, template, monkeypatch):
    tokenizer = reasoning_tokenizer() if template else TOKENIZER
    conversation = chat(*(f"text {n}" for n in range(2 * LONG)))
    rendered = Counter()

    def counted(messages, *rest, **named) -> Rendered:
        result = render_spans(messages, *rest, **named)
        rendered["calls"] += 1
        rendered["tokens"] += len(result.ids)
        return result

    monkeypatch.setattr(chat_fitting, "render_spans", counted)
    result = fitted(conversation, 256, tokenizer, too_long=how)
    assert result.n_tokens > 20 * 256
    assert rendered["tokens"] < 4 * result.n_tokens
    assert rendered["calls"] < 4 * result.n_tokens / 256
    assert result.n_lost == {"cut": 0, "shorten": LONG - len(replies(result, tokenizer)), "drop": LONG}[how]


def test_a_system_message_that_fills_the_context_is_not_rendered_for_each_exchange(monkeypatch):
    calls = Counter()

    def counted(*arguments, **named) -> Rendered:
        calls["all"] += 1
        return render_spans(*arguments, **named)

    monkeypatch.setattr(chat_fitting, "render_spans", counted)
    result = fitted(chat(*["Hi", "Hello!"] * 20, system="word " * 200), 64)
    assert (result.what, result.n_lost) == ("dropped", 20)
    assert calls["all"] < 5
