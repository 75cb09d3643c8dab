"""The checklists of the recipes: right replies pass, each fault fails its own point, and the training data pass."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RECIPES = Path(__file__).parent.parent / "recipes"


def load(recipe: str) -> ModuleType:
    """The module checklist.py of a recipe."""
    spec = importlib.util.spec_from_file_location(f"checklist_of_{recipe}", RECIPES / recipe / "checklist.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


SHOP_MAIL, DOCSTRINGS, FAQ = load("shop_mail"), load("docstrings"), load("faq_only")


def records(recipe: str) -> list[dict[str, Any]]:
    """The training records of a recipe."""
    return [json.loads(line) for line in (RECIPES / recipe / "train.jsonl").read_text(encoding="utf-8").splitlines()]


MAIL = {
    "messages": [
        {
            "role": "user",
            "content": "Hi, my wool scarf from order LH-20931 has not come. I ordered on May 3. Can you gift wrap it? Anna Berg",
        }
    ],
    "customer": "Anna Berg",
    "order": "LH-20931",
    "product": "wool scarf",
    "topics": ["late", "question:gift"],
    "apology": True,
    "answers": SHOP_MAIL.answers_for(["late", "question:gift"]),
}
REPLY = """Dear Anna Berg,

Thank you for your e-mail about the wool scarf from order LH-20931. We are sorry that your parcel is late. It usually takes 3 to 5 \
working days. If it has not arrived after 10 working days, please write to us, and we will send you a replacement free of charge. \
We gladly wrap gifts free of charge. Please write "gift" in the note of your order.

Kind regards,
Larkwood Handmade"""


def failed(points: dict[str, bool]) -> list[str]:
    """The points that fail."""
    return [point for point, passed in points.items() if not passed]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Dear Anna Berg", "Hello Anna"),
        ("3 to 5", "3–5"),
        ("3 to 5 working days", "three to five business days"),
        ("It usually", "You ordered on May 3. It usually"),
        ("Please write", "Feel free to reply, or please write"),
        ("Kind regards,\n", "Best wishes, "),
        ("wool scarf", "blue wool scarf"),
    ],
)
def test_other_wordings_of_a_right_reply_pass(old, new):
    assert failed(SHOP_MAIL.check(MAIL, REPLY.replace(old, new))) == []


@pytest.mark.parametrize(
    ("point", "old", "new"),
    [
        ("greeting", "Dear Anna Berg", "Dear Hanna"),
        ("apology", "We are sorry that your", "Your"),
        ("order", " from order LH-20931", ""),
        ("product", "wool scarf", "hat"),
        ("answers", "We gladly wrap gifts free of charge. ", ""),
        ("nothing_invented", "It usually", "It will arrive on Friday. It usually"),
        ("nothing_invented", "It usually", "It will arrive in two days. It usually"),
        ("nothing_invented", "It usually", "We will refund the price. It usually"),
        ("nothing_invented", "It usually", "It has been shipped. It usually"),
        ("nothing_invented", "It usually", "It cost $50. It usually"),
        ("closing", "Kind regards", "Bye"),
        ("signature", "Larkwood Handmade", "The team"),
        ("form", "wool scarf", "wool scarf [color]"),
        ("form", "It usually", "We are sorry that your parcel is late. It usually"),
    ],
)
def test_a_fault_of_a_reply_fails_its_point(point, old, new):
    assert failed(SHOP_MAIL.check(MAIL, REPLY.replace(old, new))) == [point]


def test_a_reply_without_a_next_step_fails():
    assert failed(SHOP_MAIL.check(MAIL, REPLY.replace("please", "kindly").replace("Please", "Kindly"))) == ["next_step"]


def test_an_order_number_or_an_apology_that_the_mail_does_not_call_for_fails():
    question = MAIL | {"order": None, "topics": ["question:gift"], "apology": False, "answers": [["wrap"]]}
    assert failed(SHOP_MAIL.check(question, REPLY)) == ["apology", "order", "nothing_invented"]


SOURCE = """async def pay(self, customer, amount: float, *, currency="$"):
    if amount <= 0:
        raise ValueError("amount must be positive")
    if customer.blocked:
        raise shop.BlockedError(customer)
    return await self.bank.pay(customer, f"{currency}{amount}")"""
DOCSTRING = """Pay an amount to a customer.

Args:
    customer: The customer who gets the money.
    amount (float): The amount to pay.
    currency: The sign of the currency.

Returns:
    The receipt of the bank,
    with its number.

Raises:
    ValueError: If amount is not positive.
    shop.BlockedError: If the customer is blocked."""


def test_every_training_function_has_a_name_of_its_own():
    prompts = [record["messages"][0]["content"] for record in records("docstrings")]
    assert all(prompt.startswith(f"{DOCSTRINGS.INSTRUCTION}\n\n") for prompt in prompts)
    names = {DOCSTRINGS.function_of(DOCSTRINGS.source_of(prompt)).name for prompt in prompts}
    assert len(names) == len(prompts)


def test_a_right_docstring_passes():
    assert failed(DOCSTRINGS.check_source(SOURCE, DOCSTRING)) == []


@pytest.mark.parametrize(
    ("point", "old", "new"),
    [
        ("imperative", "Pay an", "Pays an"),
        ("imperative", "Pay an amount to", "Number of payments for"),
        ("length", "to a customer", "to a customer" + " of the shop" * 6),
        ("period", "customer.\n\nArgs", "customer\n\nArgs"),
        ("layout", "customer.\n\nArgs", "customer.\nArgs"),
        ("layout", "Returns:\n    The receipt", "Returns:\nThe receipt"),
        ("args", "    customer: The customer who gets the money.\n", ""),
        ("args", "    customer:", "    self: The bank account.\n    customer:"),
        ("returns", "Returns:\n    The receipt of the bank,\n    with its number.\n\n", ""),
        ("raises", "\n    shop.BlockedError: If the customer is blocked.", ""),
        ("raises", "ValueError", "TypeError"),
        ("described", "The sign of the currency.", "Currency."),
        ("described", "The sign of the currency.", "The amount to pay."),
        ("text_only", "with its number.", "with its number.```"),
    ],
)
def test_a_fault_of_a_docstring_fails_its_point(point, old, new):
    assert point in failed(DOCSTRINGS.check_source(SOURCE, DOCSTRING.replace(old, new)))


def test_a_function_that_only_returns_none_has_no_returns_section():
    source = "def stop(self):\n    if self.done:\n        return\n    return None"
    assert failed(DOCSTRINGS.check_source(source, "Stop the program.")) == []
    assert failed(DOCSTRINGS.check_source(source, "Stop the program.\n\nReturns:\n    Nothing at all.")) == ["returns"]


@pytest.mark.parametrize(
    ("summary", "sections"),
    [
        (
            "Pay.",
            {
                "Args": ["customer", "amount", "currency"],
                "Returns": [""],
                "Raises": ["ValueError", "shop.BlockedError"],
            },
        ),
    ],
)
def test_the_sections_are_those_that_docstring_parser_reads(summary, sections):
    parser = pytest.importorskip("docstring_parser")
    text = DOCSTRING.replace("Pay an amount to a customer.", summary)
    ours, theirs = DOCSTRINGS.parse(text), parser.parse(text, style=parser.DocstringStyle.GOOGLE)
    assert {name: [entry for entry, _ in entries] for name, entries in ours.sections.items()} == sections
    assert theirs.short_description == ours.summary == summary
    assert [one.arg_name for one in theirs.params] == sections["Args"]
    assert [one.type_name for one in theirs.raises] == sections["Raises"]
    assert theirs.returns is not None


def test_docstring_parser_reads_the_parameters_and_exceptions_of_the_training_data_as_our_parser_does():
    parser = pytest.importorskip("docstring_parser")
    for record in records("docstrings")[:100]:
        text = record["messages"][-1]["content"]
        ours, theirs = DOCSTRINGS.parse(text), parser.parse(text, style=parser.DocstringStyle.GOOGLE)
        assert [one.arg_name for one in theirs.params] == [name for name, _ in ours.sections.get("Args", [])]
        assert [one.type_name for one in theirs.raises] == [name for name, _ in ours.sections.get("Raises", [])]
        assert (theirs.returns is not None) == ("Returns" in ours.sections)


def test_every_answer_of_the_faq_is_right_for_its_own_question_alone():
    assert FAQ.self_check() == []


@pytest.mark.parametrize(
    ("record", "reply", "failed_points"),
    [
        ("founded", "Quillbrook was founded in 2014.", []),
        ("founded", "It was founded in 1999.", ["right"]),
        ("founded", FAQ.REFUSAL, ["right", "does not decline"]),
        ("near", FAQ.REFUSAL, []),
        ("far", "The sky is blue.", ["declines"]),
    ],
)
def test_replies_of_the_faq_are_right_or_declined(record, reply, failed_points):
    assert failed(FAQ.check({"id": record}, reply)) == failed_points
