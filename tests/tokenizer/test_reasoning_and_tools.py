"""Chat templates with reasoning, tool calls and tools: agreement with apply_chat_template, masks, forged tokens, what is refused."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from chat_template_samples import QWEN3, small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from template_formats import FORMATS, HOSTILE, applied, honest, made

from mini_chat_gpt.chat_format import Message, ReasoningMarks
from mini_chat_gpt.chat_messages import check_messages
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer.chat_templates import TemplateFormat

REASONING = ("qwen3", "thinker")
TOOLS = ("qwen2.5", "qwen3", "thinker", "mistral3")
ID = "abc123XYZ"


def call(name: str, arguments: dict, call_id: str = ID) -> dict:
    return {"type": "function", "id": call_id, "function": {"name": name, "arguments": arguments}}


def tool(name: str, description: str, parameters: dict) -> dict:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def json_values(texts):
    leaves = st.one_of(texts, st.integers(-99, 99), st.booleans(), st.none(), st.sampled_from([0.5, "", []]))
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2), max_leaves=4
    )


@st.composite
def conversations(draw, name: str, texts=honest, prompt: bool = False) -> tuple[list[Message], list[dict]]:
    """Messages, and tools; with reasoning and tool calls as far as the format has them."""
    objects = st.dictionaries(texts, json_values(texts), max_size=2)
    messages = [Message("system", draw(texts))] if draw(st.booleans()) and name != "mistral3" else []
    thoughts = st.none() | texts if name in REASONING else st.none()
    n_turns = draw(st.integers(1, 3))
    for at in range(n_turns):
        messages.append(Message("user", draw(texts)))
        if name in TOOLS and draw(st.booleans()):
            calls = draw(st.lists(st.tuples(texts, objects), min_size=1, max_size=2))
            content = "" if name == "mistral3" else draw(st.just("") | texts)
            messages.append(Message("assistant", content, True, draw(thoughts), tuple(call(*one) for one in calls)))
            results = draw(st.lists(st.just("") | texts, min_size=1, max_size=2))
            messages += [Message("tool", result, tool_call_id=ID) for result in results]
        if not (prompt and at == n_turns - 1):
            messages.append(Message("assistant", draw(texts), True, draw(thoughts)))
    many = name == "mistral3" and n_turns > 1  # it looks for the last question by its text
    tools = draw(st.lists(st.builds(tool, texts, texts, objects), max_size=0 if many else 2)) if name in TOOLS else []
    return messages, tools


every_format = pytest.mark.parametrize("name", TOOLS)


@every_format
@settings(deadline=None, max_examples=12)
@given(st.data(), st.booleans(), st.sampled_from([None, True, False]))
def test_honest_conversations_have_the_ids_of_apply_chat_template(name, data, prompt, thinking):
    chat_format, tokenizer = made(name)
    messages, tools = data.draw(conversations(name, prompt=prompt))
    check_messages(messages, prompt)
    options = {} if thinking is None else {"enable_thinking": thinking}
    text = applied(name, messages, prompt, False, tools=tools or None, **options)
    assert chat_format.text(messages, prompt, tools, thinking) == text
    ids = applied(name, messages, prompt, tools=tools or None, **options)
    assert chat_format.render(messages, tokenizer, prompt, True, tools, thinking).ids == ids


def expected_reply(name: str, messages: list[Message], index: int) -> str:
    """The text that is trained on for a message of the assistant, as this conversation renders it."""
    message = messages[index]
    calls = [one["function"] for one in message.tool_calls or ()]
    if name == "mistral3":
        listed = ", ".join(json.dumps(one, ensure_ascii=False)[:-1] + f', "id": "{ID}"}}' for one in calls)
        return f"[TOOL_CALLS] [{listed}]</s>" if calls else f" {message.content}</s>"
    written = [
        f'<tool_call>\n{{"name": "{one["name"]}", "arguments": {json.dumps(one["arguments"], ensure_ascii=False)}}}\n</tool_call>'
        for one in calls
    ]
    question = max(at for at, one in enumerate(messages) if one.role == "user")
    content, before = message.content, ""
    if name in REASONING and index > question and (message.reasoning or index == len(messages) - 1):
        content = content.lstrip("\n")
        thought = (message.reasoning or "").strip("\n") + "\n</think>\n\n"
        if name == "thinker":
            before = thought
        elif message.reasoning is not None:
            before = "<think>\n" + thought
    return before + "\n".join([*([content] if message.content else []), *written]) + "<|im_end|>"


@every_format
@settings(deadline=None, max_examples=12)
@given(st.data())
def test_masks_cover_the_replies_with_reasoning_and_tool_calls_as_they_are_rendered(name, data):
    hostile = st.lists(st.sampled_from(HOSTILE), max_size=5).map(lambda words: "x".join(["", *words, "x"]))
    chat_format, tokenizer = made(name)
    messages, tools = data.draw(conversations(name, st.one_of(honest, hostile)))
    rendered = chat_format.render(messages, tokenizer, False, True, tools)
    replies = [at for at, message in enumerate(messages) if message.role == "assistant"]
    assert len(rendered.reply_spans) == len(replies)
    for (start, end), at in zip(rendered.reply_spans, replies, strict=True):
        text, expected = tokenizer.decode(rendered.ids[start:end]), expected_reply(name, messages, at)
        assert text.endswith(expected)
        # If the end of the header and the beginning of the reply are one token, it belongs to the reply.
        header = text.removesuffix(expected)
        assert not header.strip()
        assert len(tokenizer.encode(header)) <= 1
    last = replies[-1]
    silent = [replace(message, train=at == last) for at, message in enumerate(messages)]
    assert chat_format.render(silent, tokenizer, False, True, tools).reply_spans == rendered.reply_spans[-1:]


def check_hostile(name: str, n: int) -> None:
    """Render n hostile conversations, and compare their control tokens with those of harmless ones of the same shape."""
    chat_format, tokenizer = made(name)
    control, rng = set(tokenizer.control.values()), random.Random(name)
    counts: dict = {}

    def text() -> str:
        return "".join(rng.choices(HOSTILE, k=rng.randint(1, 6))) + "x"

    def harmless(value):
        if isinstance(value, str):
            return "x" if value != ID else ID
        if isinstance(value, dict):
            return {key: harmless(one) for key, one in value.items() if key in ("name", "arguments", "function", "id")}
        return value

    for _ in range(n):
        system = rng.random() < 0.3 and chat_format.has_system and name != "mistral3"
        prompt, thinks = rng.random() < 0.3, name in REASONING and rng.random() < 0.5
        messages = [Message("system", text())] if system else []
        for at in range(n_turns := rng.choice([1, 1, 2, 3])):
            messages.append(Message("user", text()))
            if name in TOOLS and rng.random() < 0.4:
                calls = (call(text(), {text(): [text()], "x": {text(): text()}}),)
                messages.append(Message("assistant", "" if name == "mistral3" else text(), tool_calls=calls))
                messages.append(Message("tool", text(), tool_call_id=ID))
            if not (prompt and at == n_turns - 1):
                messages.append(Message("assistant", text(), reasoning=text() if thinks else None))
        tools = (
            [tool(text(), text(), {text(): text()})] if name in TOOLS and n_turns == 1 and rng.random() < 0.4 else []
        )
        ids = chat_format.render(messages, tokenizer, prompt, True, tools).ids
        plain = [
            replace(
                message,
                content="x" if message.content else "",
                reasoning=message.reasoning and "x",
                tool_calls=message.tool_calls and tuple(call("x", {"x": 1}) for _ in message.tool_calls),
            )
            for message in messages
        ]
        shape = tuple((one.role, one.reasoning, bool(one.tool_calls)) for one in plain), prompt, len(tools)
        if shape not in counts:
            simple = [tool("x", "x", {"x": 1})] * len(tools)
            harmless_ids = chat_format.render(plain, tokenizer, prompt, True, simple).ids
            counts[shape] = Counter(one for one in harmless_ids if one in control)
        assert Counter(one for one in ids if one in control) == counts[shape], messages


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_conversations_forge_no_control_token(name):
    check_hostile(name, 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_ten_thousand_hostile_conversations_forge_no_control_token(name):
    check_hostile(name, 10_000)


# Reasoning

ASKED = [Message("user", "a"), Message("assistant", "b", reasoning="why b"), Message("user", "c")]


def test_the_marks_of_the_reasoning_and_the_switch_are_found():
    qwen3, thinker = made("qwen3")[0], made("thinker")[0]
    assert qwen3.reasoning_marks() == ReasoningMarks("<think>", "</think>")
    assert not qwen3.reasoning_marks(False).opened
    assert (qwen3.can_switch_thinking, qwen3.thinks) == (True, True)
    assert thinker.reasoning_marks() == ReasoningMarks("<think>", "</think>", opened=True)
    assert (thinker.can_switch_thinking, thinker.thinks) == (False, True)
    for name in FORMATS:
        if name not in REASONING:
            assert made(name)[0].reasoning_marks() is None
            assert not made(name)[0].can_switch_thinking


def test_the_reasoning_of_earlier_turns_is_removed_and_the_switch_adds_an_empty_one():
    chat_format, tokenizer = made("qwen3")
    before = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    for thinking, end in ((None, ""), (True, ""), (False, "<think>\n\n</think>\n\n")):
        assert tokenizer.decode(chat_format.render(ASKED, tokenizer, True, thinking=thinking).ids) == before + end


def test_a_template_without_reasoning_refuses_it():
    for name in set(FORMATS) - {*REASONING}:
        chat_format, tokenizer = made(name)
        with pytest.raises(UserError, match="has reasoning, which the chat template does not print"):
            chat_format.render(ASKED, tokenizer, True)


def test_marks_that_are_not_control_tokens_are_ordinary_text():
    tokenizer = small_tokenizer()
    without = {name: one for name, one in tokenizer.control.items() if "think" not in name}
    with pytest.raises(UserError, match="depends on the text of a message"):  # it searches for </think> in a reply
        TemplateFormat.from_source(QWEN3, without, "<s>", "</s>")
    source = QWEN3.replace("'</think>' in words", "false").replace("'</think>' in words", "false")
    chat_format = TemplateFormat.from_source(source, without, "<s>", "</s>")
    assert chat_format.reasoning_marks() == ReasoningMarks("<think>", "</think>")


# Tools

CALLED = [Message("user", "a"), Message("assistant", "", tool_calls=(call("f", {"x": 1}),)), Message("tool", "b")]


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in TOOLS])
def test_a_template_that_does_not_print_tool_calls_refuses_them(name):
    chat_format, tokenizer = made(name)
    with pytest.raises(UserError, match=r"(can't render a conversation|refuses the conversation)") as caught:
        chat_format.render(CALLED, tokenizer, True)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="it does not print the tools"):
        chat_format.render(CALLED[:1], tokenizer, True, True, [tool("f", "g", {})])


def test_what_a_template_can_not_do_without_reading_contents_is_said():
    chat_format, tokenizer = made("mistral3")
    with pytest.raises(UserError, match=r"refuses the conversation \(The id of a call has 9 letters\)"):
        chat_format.render([CALLED[0], Message("assistant", "", tool_calls=(call("f", {}, "7"),))], tokenizer, False)
    two = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    with pytest.raises(UserError, match="depends on the text of a message"):  # it compares the questions
        chat_format.render(two, tokenizer, True, True, [tool("f", "g", {})])
    with pytest.raises(UserError, match=r"it does not print message 1 \(role system\)"):
        chat_format.render([Message("system", "Be kind."), *two[:2]], tokenizer, False)


def test_keys_that_a_template_may_not_know_are_printed_as_a_whole():
    chat_format, tokenizer = made("qwen3")
    strange = [{"type": "function", "function": {"name": "f", "<|im_end|>": "g"}}, {"<|im_start|>": 1}]
    ids = chat_format.render([Message("user", "a")], tokenizer, True, True, strange).ids
    text = tokenizer.decode(ids)
    assert '{"name": "f", "<|im_end|>": "g"}' in text
    assert '{"<|im_start|>": 1}' in text
    assert Counter(ids)[tokenizer.control["<|im_end|>"]] == 2


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([Message("user", "a", reasoning="b")], "only the assistant's messages can have"),
        ([Message("user", "a"), Message("assistant", "b", reasoning=" \n")], "a reasoning without text"),
        ([Message("user", "a"), Message("tool", "b")], "does not follow a message in which the assistant calls a tool"),
        ([*CALLED, Message("user", "c")], "put the assistant's reply between them"),
        ([Message("user", "a"), Message("assistant", "", tool_calls=({"name": "f"},))], 'without a "function"'),
        ([Message("user", "a"), Message("assistant", "", tool_calls=(call(" ", {}),))], "without the name"),
        ([Message("user", "a"), Message("assistant", " ", tool_calls=(call("f", {}),))], "has no text"),
    ],
)
def test_messages_that_no_format_could_render_are_one_sentence(messages, reason):
    with pytest.raises(UserError, match=reason) as caught:
        check_messages(messages)
    assert "\n" not in str(caught.value)
