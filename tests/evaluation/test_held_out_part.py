"""Held-out records in all forms, and the checks of their replies that need no code."""

import json
from pathlib import Path

import pytest

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.evaluation.held_out_part import HeldOut, Item, openings, read_items, reply_checks
from mini_chat_gpt.evaluation.prompt_suite import read_prompts

ROOT = Path(__file__).parent.parent.parent
POLITE, REFUSAL = ["of course", "hello"], ["can't help"]


def item(expected: str | None = "sports", **record) -> Item:
    return Item((Message("user", "Match"),), expected, record, "file, line 1")


def checks(part: HeldOut, one: Item, reply: str) -> dict[str, bool]:
    return reply_checks(part, one, reply, POLITE, REFUSAL)


@pytest.mark.parametrize(
    ("record", "prompt", "expected"),
    [
        ({"prompt": "a", "completion": "b"}, ["a"], "b"),
        ({"prompt": "a", "harmful": True}, ["a"], None),
        ({"prompt": "a", "answers": ["b", "c"]}, ["a"], "b"),
        ({"messages": [{"role": "user", "content": "a"}]}, ["a"], None),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, ["a"], "b"),
        ({"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]}, ["a", "b", "c"], None),
        ({"text": "<|user|>a<|assistant|>b"}, ["a"], "b"),
    ],
)  # fmt: skip
def test_records_may_have_any_form_and_no_reply(tmp_path, record, prompt, expected):
    (tmp_path / "x.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(record))
    first, _ = read_items(tmp_path / "x.jsonl")
    assert [message.content for message in first.prompt] == prompt
    assert first.expected == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"x": 1}', "x.jsonl, line 1: it"),
        ("3", "x.jsonl is plain text"),
        ("", "x.jsonl has no records"),
        (None, "There is no held-out file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_items(tmp_path / "x.jsonl")


def test_labels_are_right_or_wrong_and_valid_or_not():
    part = HeldOut(file="x", labels=["sports", "other"])
    assert checks(part, item(), " sports\n") == {"valid label": True, "right label": True}
    assert checks(part, item(), "other") == {"valid label": True, "right label": False}
    assert checks(part, item(), "Sports.") == {"valid label": False, "right label": False}


def test_an_exact_reply_differs_in_case_white_space_and_a_period_only():
    part = HeldOut(file="x", exact=True)
    assert checks(part, item("Paris is  nice."), "paris is nice") == {"exact reply": True}
    assert checks(part, item("Paris"), "London") == {"exact reply": False}


@pytest.mark.parametrize(
    ("facts", "reply", "met"),
    [
        (["Lisbon"], "It is LISBON.", True),
        (["ten", "10"], "About 10.", True),
        (["ten"], "Often", False),
        ([["Nora"], ["Ines", "Inés"]], "Nora and Inés", True),
        ([["Nora"], ["Ines"]], "Nora", False),
        ("ten | 10", "10", True),
        ('["ten", "10"]', "10", True),
    ],
)
def test_key_facts_are_alternatives_or_lists_of_alternatives(facts, reply, met):
    assert checks(HeldOut(file="x", key_facts="facts"), item(facts=facts), reply) == {"key facts": met}


@pytest.mark.parametrize(
    ("refuses", "harmful", "reply", "expected"),
    [
        ("harmful", True, "I can't help with that.", {"declines": True, "no polite opening on a refusal": True}),
        ("harmful", True, "Hello! I can't help.", {"declines": True, "no polite opening on a refusal": False}),
        ("harmful", False, "Of course! Here.", {"does not decline": True, "begins politely": True}),
        ("false", None, "I can't help.", {"does not decline": False, "begins politely": False}),
        ("true", None, "Here.", {"declines": False, "no polite opening on a refusal": True}),
    ],
)
def test_refusals_and_politeness_follow_the_record(refuses, harmful, reply, expected):
    assert checks(HeldOut(file="x", refuses=refuses, polite=True), item(None, harmful=harmful), reply) == expected


@pytest.mark.parametrize(
    ("part", "record", "message"),
    [
        (HeldOut(file="x", key_facts="facts"), item(), 'line 1: it has no "facts"'),
        (HeldOut(file="x", key_facts="facts"), item(facts=[[]]), '"facts" is '),
        (HeldOut(file="x", refuses="harmful"), item(harmful="maybe"), "it must be true or false"),
        (HeldOut(file="x", exact=True), item(None), "it has no reply, which exact"),
    ],
)
def test_a_record_that_cannot_be_judged_is_named(part, record, message):
    with pytest.raises(UserError, match=message):
        checks(part, record, "x")


def test_the_form_of_a_reply_is_checked_too():
    part = HeldOut(file="x", regex="^a", max_words=2, is_json=True)
    assert checks(part, item(), "a b c") == {"matches /^a/": True, "at most 2 words": False, "is JSON": False}


def test_different_openings_are_told_apart():
    assert list(openings(["Hello you", "OF COURSE! x", "No", " hello"], POLITE)) == ["hello", "of course", "hello"]


def test_the_documented_example_is_valid_and_has_every_key(tmp_path):
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    block = text.split("```yaml")[1].split("```")[0].partition("\n")[2]
    (tmp_path / "prompts.yaml").write_text(block)
    (part,) = read_prompts(tmp_path / "prompts.yaml").held_out
    assert part.model_fields_set == set(HeldOut.model_fields)
