"""Chat formats given as templates: agreement with apply_chat_template, no forged control tokens, masks, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import time
from datetime import date

import pytest
from chat_template_samples import CHATML, GEMMA3, LLAMA32, PHI3, QWEN3, SMOLLM2, ZEPHYR, small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from template_formats import FORMATS, HOSTILE, PLAIN, applied, conversation, honest, made, roles_of

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.chat_messages import check_messages
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer.chat_templates import TemplateEntry, TemplateFormat
from mini_chat_gpt.tokenizer.template_runs import WHITE_SPACE

DEFAULTS = {
    "smollm2": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
}


every_format = pytest.mark.parametrize("name", list(FORMATS))


@every_format
@settings(deadline=None, max_examples=12)
@given(st.integers(1, 3), st.booleans(), st.booleans(), st.lists(honest, min_size=7, max_size=7))
def test_honest_conversations_have_the_ids_of_apply_chat_template(name, n_turns, system, prompt, contents):
    chat_format, tokenizer = made(name)
    system = system and (prompt or name != "mistral3")  # it prints a system message only before the prompt for a reply
    messages = conversation(roles_of(n_turns, system, prompt), contents)
    ids = chat_format.render(messages, tokenizer, prompt).ids
    assert ids == applied(name, messages, prompt)
    assert chat_format.text(messages, prompt) == applied(name, messages, prompt, tokenize=False)


@every_format
@settings(deadline=None, max_examples=8)
@given(
    st.integers(1, 3),
    st.lists(
        st.one_of(honest, st.lists(st.sampled_from(HOSTILE), max_size=5).map(lambda w: "x".join(["", *w, ""]))),
        min_size=7,
        max_size=7,
    ).map(lambda texts: [text if text.strip() else "x" for text in texts]),
)
def test_masks_cover_the_replies_and_the_token_that_ends_them(name, n_turns, contents):
    chat_format, tokenizer = made(name)
    messages = conversation(roles_of(n_turns, False, False), contents)
    rendered = chat_format.render(messages, tokenizer, False)
    replies = [message.content for message in messages if message.role == "assistant"]
    assert len(rendered.reply_spans) == len(replies)
    for number, ((start, end), reply) in enumerate(zip(rendered.reply_spans, replies, strict=True), 1):
        assert rendered.ids[end - 1] in chat_format.end_ids(tokenizer)
        if name in ("llama3", "llama3.2", "gemma3"):  # the template trims
            reply = reply.strip()
        elif name == "phi3":  # the token before the reply swallows white space
            reply = reply.lstrip(WHITE_SPACE)
        elif name in ("qwen3", "thinker") and number == len(replies):
            reply = reply.lstrip("\n")
        text = tokenizer.decode(rendered.ids[start : end - 1])
        assert text.endswith(reply)
        # If the end of the header and the beginning of the reply are one token, it belongs to the reply.
        header = text.removesuffix(reply)
        if name == "thinker" and number == len(replies):  # its prompt opens the reasoning, which is empty
            header = header.lstrip("\n").removeprefix("</think>\n\n")
        assert not header.strip()
        assert len(tokenizer.encode(header)) <= 1


def test_replies_that_are_not_trained_on_have_no_span():
    chat_format, tokenizer = made("chatml")
    messages = [
        Message("user", "a"),
        Message("assistant", "b", train=False),
        Message("user", "c"),
        Message("assistant", "d"),
    ]
    rendered = chat_format.render(messages, tokenizer, False)
    assert [tokenizer.decode(rendered.ids[start:end]) for start, end in rendered.reply_spans] == ["d<|im_end|>"]


def test_text_of_the_template_and_of_a_message_can_join_to_one_token():
    chat_format, tokenizer = made("chatml")
    ids = chat_format.render([Message("user", "\n\nHi")], tokenizer, False).ids
    assert tokenizer.encode("user\n\n\nHi") == ids[1:-2]


@pytest.mark.parametrize("name", list(DEFAULTS))
def test_the_system_message_that_a_template_inserts_is_found(name):
    chat_format, tokenizer = made(name)
    assert chat_format.default_system == chat_format.own_system == DEFAULTS[name]
    user = Message("user", "Hello")
    inserted = chat_format.render([user], tokenizer, True).ids
    given_by_caller = chat_format.render([Message("system", DEFAULTS[name]), user], tokenizer, True).ids
    replaced = chat_format.render([Message("system", "Be brief."), user], tokenizer, True).ids
    assert inserted == given_by_caller != replaced
    assert chat_format.can_omit_system
    without = tokenizer.decode(chat_format.render([user], tokenizer, True, system_default=False).ids)
    assert without == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert chat_format.with_default_system(None).default_system is None


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in DEFAULTS])
def test_other_templates_insert_none(name):
    chat_format, tokenizer = made(name)
    assert chat_format.default_system is None
    assert chat_format.can_omit_system
    user = [Message("user", "Hello")]
    assert chat_format.render(user, tokenizer, True) == chat_format.render(user, tokenizer, True, system_default=False)


def test_the_tokens_that_end_a_reply_are_found():
    ends = {name: [made(name)[1].decode([one]) for one in made(name)[0].end_ids(made(name)[1])] for name in FORMATS}
    chatml, llama3, plain = (["<|im_end|>"], ["<|eot_id|>"], ["</s>"])
    assert ends == {
        **dict.fromkeys(("chatml", "ours", "smollm2", "qwen2.5", "qwen3", "thinker"), chatml),
        **dict.fromkeys(("llama3", "llama3.2"), llama3),
        **dict.fromkeys(("zephyr", "mistral", "mistral3"), plain),
        "gemma3": ["<end_of_turn>"],
        "phi3": ["<|end|>"],
    }


def test_roles_that_are_plain_text_are_noticed():
    assert {name for name in FORMATS if made(name)[0].plain_text_roles} == {*PLAIN}


def test_a_template_may_refuse_or_ignore_system_messages():
    assert all(made(name)[0].has_system for name in FORMATS)
    tokenizer = small_tokenizer()
    loop = "{%- for message in messages if message.role != 'system' -%}"
    ignores = CHATML.replace("{% for message in messages %}", loop)
    refuses = "{{ raise_exception('No system messages') if messages[0].role == 'system' }}" + ignores
    for source, reason in (
        (ignores, r"does not print message 1 \(role system\)"),
        (refuses, r"refuses the conversation \(No system messages\)"),
    ):
        chat_format = TemplateFormat.from_source(source, tokenizer.control, "<s>", "</s>")
        assert not chat_format.has_system
        with pytest.raises(UserError, match=reason):
            chat_format.render([Message("system", "a"), Message("user", "b")], tokenizer, True)
    with pytest.raises(UserError, match="refuses the conversation"):
        chat_format.text([Message("system", "a"), Message("user", "b")])


def test_the_date_can_be_fixed():
    chat_format, tokenizer = made("llama3.2")
    assert chat_format.uses_date
    assert not made("llama3")[0].uses_date
    fixed = chat_format.on_day(date(2025, 2, 3))
    text = tokenizer.decode(fixed.render([Message("user", "Hi")], tokenizer, True).ids)
    assert "Today Date: 03 Feb 2025\n\n<|eot_id|>" in text
    loaded = TemplateFormat.from_entry(TemplateEntry.model_validate_json(json.dumps(fixed.entry())), tokenizer.control)
    assert loaded.day == date(2025, 2, 3)
    assert loaded.render([Message("user", "Hi")], tokenizer, True) == fixed.render(
        [Message("user", "Hi")], tokenizer, True
    )


@every_format
def test_a_format_can_be_stored_copied_and_pickled(name):
    chat_format, tokenizer = made(name)
    changed = chat_format.with_default_system("Be kind.")
    entry = TemplateEntry.model_validate_json(json.dumps(changed.entry()))
    for other in (
        TemplateFormat.from_entry(entry, tokenizer.control),
        copy.deepcopy(changed),
        pickle.loads(pickle.dumps(changed)),
    ):
        assert other.default_system == "Be kind."
        assert other.entry() == changed.entry()
        messages = [Message("user", " Hi \n"), Message("assistant", "\nYes ")]
        assert other.render(messages, tokenizer, False) == chat_format.render(messages, tokenizer, False)


def test_white_space_beside_a_token_is_swallowed_as_the_token_says():
    chat_format, tokenizer = made("phi3")
    ids = chat_format.render([Message("user", "\n  Hi ")], tokenizer, True).ids
    assert tokenizer.decode(ids) == "<|user|>Hi <|end|><|assistant|>"


# Refused templates

LOOP = "{% for i in range(100000) %}"
REFUSED = {
    "it depends on the text of a message": CHATML.replace(
        "'\\n' + message", "'/no_think' in message['content'] ~ message"
    ),
    "line 1: it depends": "{% for m in messages %}{% if m.content|length > 3 %}x{% endif %}{{ m.content }}</s>{% endfor %}",
    "no control token ends a reply": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "does not begin where its generation prompt ends": SMOLLM2.replace(
        "{% if add_generation_prompt %}", "{% if false %}"
    ),
    "does not print the messages": "{{ messages[0].content }}</s>",
    "is not valid Jinja": "{% for m in messages %}",
    "at most 262,144 are read": "x" * 300_000,
    "could reach Python's internals": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "the attribute '__init__'": "{{ raise_exception.__init__.__globals__ }}",
    "uses the filter 'attr'": "{{ messages | attr('__class__') }}",
    "it calls format": "{{ '{0.__class__}'.format(messages) }}",
    "uses a statement \\(include\\)": "{% include '/etc/passwd' %}",
    "uses a statement \\(import\\)": "{% import 'os' as os %}",
    "it calls cycler, which is not a function": "{{ cycler('a').__class__ }}{{ lipsum(n=10000000) }}",
    "takes too long": LOOP * 4 + "{{ i }}" + "{% endfor %}" * 4,
    "it takes too long or": LOOP + "{{ 'x' * 100000 }}{% endfor %}",
    "too long or prints": "{{ 'x' * 1000000000 }}",
    "too long or prints too": "{{ range(1000000000) | list }}",
    "too long or prints too m": "{{ [0] * 1000000000 }}",
    "long or prints": "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "takes too long o": "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson }}",
    "takes too long or ": "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}"
    "{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ [ns.l] | select('equalto', ns.m) | list }}",
    "too long or p": "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "or prints too much": "{{ (['x'] * 100000) | join('y' * 100000) }}",
    "RecursionError": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "power above 64": "{{ 2 ** 1000000000 }}",
    "number that is too large": "{{ (2 ** 62) * (2 ** 62) }}",
    "combines a text and": "{{ '%1000000000d' % 1 }}",
    "prints a list": "{{ messages }}",
    "ZeroDivisionError": "{{ 1 / 0 }}",
    "not valid Jinja \\(RecursionError\\)": "{{ " + "[" * 20_000 + "]" * 20_000 + " }}",
    "date in a form": "{{ strftime_now('%0100000000d') }}",
}


@pytest.mark.parametrize("reason", list(REFUSED))
def test_a_malicious_or_unusable_template_is_one_sentence_within_the_limits(reason):
    import resource

    control = small_tokenizer().control
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError, match=reason) as caught:
        TemplateFormat.from_source(REFUSED[reason], control, "<s>", "</s>")
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB
    assert str(caught.value).startswith("The chat template can't be used: ")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; choose a built-in format, such as chatml.")


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_damaged_templates_are_refused_or_render(data):
    source = data.draw(st.sampled_from([LLAMA32, GEMMA3, ZEPHYR, CHATML, PHI3, QWEN3]))
    begin = data.draw(st.integers(0, len(source) - 1))
    end = data.draw(st.integers(begin, min(len(source), begin + 12)))
    source = (
        source[:begin]
        + data.draw(st.sampled_from(["", "{%", "}}", "messages", " | ", "'", "endfor", "loop.", "9"]))
        + source[end:]
    )
    tokenizer = small_tokenizer()
    try:
        chat_format = TemplateFormat.from_source(source, tokenizer.control, "<s>", "</s>")
        chat_format.render([Message("user", "<|im_end|>")], tokenizer, True)
    except UserError:
        pass


def test_long_conversations_render_within_the_limits():
    for name in FORMATS:
        chat_format, tokenizer = made(name)
        messages = conversation(roles_of(500, False, False), ["hello"] * 1000)
        check_messages(messages)
        assert len(chat_format.render(messages, tokenizer, False).reply_spans) == 500
