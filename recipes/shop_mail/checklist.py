"""The ten points that a reply of the shop must pass. README.md defines the fields of a record.

    check(record, reply) -> {"greeting": True, "apology": False, …}
    problems(record)     -> what is wrong with the annotation of a record, in words

A record's messages are read for the customer's mail, which may have numbers and dates of its own. `mini-chat-gpt recipe check
shop_mail` applies both to all records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

SHOP = "Larkwood Handmade"

PHRASES: dict[str, list[list[str]]] = {
    "late": [["10 working days"], ["replacement", "new one"]],
    "damage": [["photo", "picture"], ["replacement", "new one"]],
    "return": [["30 days"], ["refund"]],
    "question:material": [["natural materials"], ["product page"]],
    "question:care": [["mild soap"], ["air-dry", "air dry", "dry in the air"]],
    "question:delivery": [["3 to 5 working days"]],
    "question:postage": [["$5"], ["$60"]],
    "question:abroad": [["worldwide", "all over the world", "every country"], ["7 to 14 working days"]],
    "question:gift": [["wrap"], ["free of charge", "for free", "is free"]],
    "question:custom": [["custom"], ["2 weeks"]],
    "question:stock": [["in stock"], ["3 weeks"]],
}
"""Topic -> lists of phrases; an answer has at least one phrase of each list."""

APOLOGY_TOPICS = frozenset({"late", "damage"})
POINTS = (
    "greeting",
    "apology",
    "order",
    "product",
    "answers",
    "nothing_invented",
    "next_step",
    "closing",
    "signature",
    "form",
)
MIN_WORDS, MAX_WORDS = 30, 120

NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], 2
    )
} | {"fourteen": "14", "thirty": "30", "sixty": "60"}
UNITS = r"(?:working |business )?(?:minutes?|hours?|days?|weeks?|months?|years?|dollars?|euros?|percent)"
FACTS = (
    r"\b3 to 5 working days",
    r"\b7 to 14 working days",
    r"\b10 working days",
    r"\b30 days",
    r"\b2 weeks",
    r"\b3 weeks",
    r"\$(?:5|60)(?:\.00)?(?!\d|\.\d)",
)
"""The numbers in the rules of the shop, with their units."""

DATES = re.compile(
    r"\b(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday|january|february|april|june|july|august|september|"
    r"october|november|december|today|tomorrow|tonight|yesterday|weekend|(?:next|this|last) (?:week|month|year))\b"
)
AMBIGUOUS_MONTHS = re.compile(r"\b(?:in|by|until|on|before|of|early|late|mid|\d+) (May|March)\b|\b(May|March) \d")
PROMISES = {
    r"\brefund|\bmoney back\b": {"return"},
    r"\breplace|\bnew one\b": {"late", "damage"},
    r"\bfree of charge\b|\bfor free\b|\b(?:is|are) free\b|\bfree (?:shipping|delivery|replacement)\b|\bno (?:extra )?c(?:harge|ost)\b": {
        "late",
        "damage",
        "question:gift",
        "question:postage",
    },
}
"""Promises -> the topics for which the shop makes them."""
NOT_OFFERED = re.compile(
    r"\b(?:discount|voucher|coupon|gift card|guarantee\w*|express|overnight|compensat\w+|store credit|on (?:its|the) way|"
    r"tracking|(?:was|were|has been|have been|have already|has already|have|already) (?:sent|shipped|dispatched))\b"
)
"""What the shop does not offer or can't know."""

NEXT_STEP = re.compile(
    r"\bplease (?:\w+ly )?(?:send|write|reply|tell|let|put|add|choose|contact|answer|attach|check|keep|note|use|e-?mail)\b|"
    r"\blet us know\b|\b(?:just|simply) (?:reply|write|send|answer)\b"
)
CLOSING = re.compile(
    r"\b(?:kind|best|warm|warmest|friendly) (?:regards|wishes)\b|\ball the best\b|\byours sincerely\b|\bsincerely\b"
)
PLACEHOLDER = re.compile(
    r"\[[^\]]*\]|\{[^}]*\}|<[^>]*>|_{2,}|\bX{2,}\b|\b(?:customer(?:'s)?|shop) name\b|\bN/A\b", re.IGNORECASE
)


def answers_for(topics: Sequence[str]) -> list[list[str]]:
    """The field `answers` of a record with these topics."""
    return [list(phrases) for topic in topics for phrases in PHRASES[topic]]


def mail_of(fields: Mapping[str, Any]) -> str:
    """The customer's mail in a record; "" if it has no messages."""
    users = [one["content"] for one in fields.get("messages", []) if one["role"] == "user"]
    return users[-1] if users else ""


def normalized(text: str) -> str:
    """Lower case, single spaces, "3-5" and "three to five" as "3 to 5", "five dollars" as "$5"."""
    text = text.replace("’", "'").replace("‑", "-").lower()
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\bbusiness days\b", "working days", text)
    words = "|".join(NUMBER_WORDS)
    text = re.sub(
        rf"\b({words})( to |[-–])({words})\b", lambda m: f"{NUMBER_WORDS[m[1]]} to {NUMBER_WORDS[m[3]]}", text
    )
    text = re.sub(rf"\b({words}) (?={UNITS}\b)", lambda m: f"{NUMBER_WORDS[m[1]]} ", text)
    text = re.sub(r"\b(\d+(?:\.\d\d)?) dollars\b", r"$\1", text)
    return re.sub(r"(?<![\w-])(\d{1,2})\s?[-–]\s?(\d{1,2})(?![\w-])", r"\1 to \2", text)


def lines_of(reply: str) -> list[str]:
    """The lines with something in them."""
    return [line.strip() for line in reply.splitlines() if line.strip()]


def has_greeting(customer: str, reply: str) -> bool:
    """The first line greets the customer by the whole name or the first name."""
    first = customer.split()[0]
    names = {customer} if first.endswith(".") else {customer, first}
    options = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    greeting = rf"(?:Dear|Hello|Hi|Good (?:morning|afternoon|day)),? (?:{options})\s*[,!.]?"
    lines = lines_of(reply)
    return bool(lines) and re.fullmatch(greeting, lines[0]) is not None


def apologizes(reply: str) -> bool:
    """Whether the reply says that the shop is sorry."""
    return re.search(r"\b(?:sorry|apologi[sz]e|apologies|apology|regret)\b", reply, re.IGNORECASE) is not None


def names_order(order: str | None, reply: str) -> bool:
    """The order number appears exactly; without one, the reply names none."""
    if order is None:
        return re.search(r"#\s?\w*\d|\border (?:number |no\.? ?)?[A-Z]*-?\d", reply) is None
    return re.search(rf"(?<![\w-]){re.escape(order)}(?![\w-])", reply) is not None


def names_product(product: str, reply: str) -> bool:
    """The product appears in the singular or the plural."""
    name = re.sub(r"\s+", " ", product.lower())
    return name.removesuffix("s") in normalized(reply)


def invents_nothing(fields: Mapping[str, Any], reply: str) -> bool:
    """No number, date or promise apart from those of the mail and of the rules of the shop."""
    mail, raw_mail = normalized(mail_of(fields)), mail_of(fields)
    text = reply
    for own in (fields.get("order"), fields["customer"], fields["product"]):
        if own:
            text = text.replace(own, " ")
    if any(match[0] not in raw_mail for match in AMBIGUOUS_MONTHS.finditer(text)):
        return False
    text = normalized(text)
    topics = set(fields["topics"])
    if any(re.search(promise, text) and not topics & allowed for promise, allowed in PROMISES.items()):
        return False
    if any(match[0] not in mail for pattern in (DATES, NOT_OFFERED) for match in pattern.finditer(text)):
        return False
    for fact in FACTS:
        text = re.sub(fact, " ", text)
    if "$" in text and "$" not in mail:
        return False
    in_mail = set(re.findall(r"\d+", mail))
    return all(number in in_mail for number in re.findall(r"\d+", text))


def has_good_form(reply: str) -> bool:
    """The length is right, no sentence appears twice, and there is no placeholder."""
    sentences = [one.strip().lower() for one in re.split(r"(?<=[.!?])\s+|\n+", reply) if one.strip()]
    return (
        MIN_WORDS <= len(reply.split()) <= MAX_WORDS
        and len(set(sentences)) == len(sentences)
        and PLACEHOLDER.search(reply) is None
    )


def check(record: Mapping[str, Any], reply: str) -> dict[str, bool]:
    """Each of the ten points, and whether the reply passes it."""
    text, last = normalized(reply), lines_of(reply)[-2:]
    return {
        "greeting": has_greeting(record["customer"], reply),
        "apology": apologizes(reply) == record["apology"],
        "order": names_order(record["order"], reply),
        "product": names_product(record["product"], reply),
        "answers": all(any(normalized(phrase) in text for phrase in phrases) for phrases in record["answers"]),
        "nothing_invented": invents_nothing(record, reply),
        "next_step": NEXT_STEP.search(text) is not None,
        "closing": any(CLOSING.search(line.lower()) for line in last),
        "signature": bool(last) and SHOP in last[-1] and len(last[-1].split()) <= 7,
        "form": has_good_form(reply),
    }


def problems(record: Mapping[str, Any]) -> list[str]:
    """What is wrong with the fields of a record, in words."""
    mail, faults = mail_of(record), []
    topics = record["topics"]
    unknown = [topic for topic in topics if topic not in PHRASES]
    if unknown or not 1 <= len(topics) <= 3 or len(set(topics)) != len(topics):
        return [f"topics: {topics}"]
    for field in ("customer", "order", "product"):
        value = record[field]
        if value is not None and value.lower() not in mail.lower():
            faults.append(f"{field} is not in the mail: {value!r}")
    if record["apology"] != bool(APOLOGY_TOPICS & set(topics)):
        faults.append("apology does not follow from the topics")
    if record["answers"] != answers_for(topics):
        faults.append("answers does not follow from the topics")
    if not 20 <= len(mail.split()) <= 90:
        faults.append(f"the mail has {len(mail.split())} words")
    return faults
