"""Judge a reply of the FAQ assistant: right, wrong or declined.

    check(record, reply) -> {"right": True, "does not decline": True} in scope, {"declines": True} out of scope

A reply is right if it contains all key facts of its answer and no phrase that belongs to another answer alone.
It is declined if it says that it has no answer and gives no fact. The questions out of scope have the ids `near` and `far`.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FACTS_FILE = Path(__file__).with_name("facts.yaml")
REFUSAL = "I don't have an answer to that, but I'm happy to help with questions about Quillbrook's coffee, plans and deliveries."
OUT_OF_SCOPE = ("near", "far")
DECLINES = (
    "i don't have an answer",
    "i do not have an answer",
    "i don't have that information",
    "i don't have information",
    "i don't have any information",
    "i don't know",
    "i do not know",
    "i can't help with that",
    "i can't answer",
    "i cannot answer",
)
SMALL_NUMBERS = """one two three four five six seven eight nine ten
    eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"""
NUMBERS = {word: n for n, word in enumerate(SMALL_NUMBERS.split(), 1)} | {
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
}


@dataclass(frozen=True)
class Fact:
    """One question with its answer; `key` and `only` hold normalized phrases."""

    id: str
    answer: str
    key: tuple[tuple[str, ...], ...]
    only: tuple[str, ...]


def normalized(text: str) -> str:
    """Text in the form in which phrases are compared."""
    text = unicodedata.normalize("NFKD", text.replace("’", "'").replace("–", "-"))
    text = "".join(c for c in text if not unicodedata.combining(c)).lower()
    text = re.sub(r"[a-z]+", lambda word: str(NUMBERS.get(word[0], word[0])), text)
    text = re.sub(r"\s*%", " percent", text)
    text = re.sub(r"(?<![\d.$])(\d+(?:\.\d+)?) ?dollars?\b", r"$\1", text)
    text = re.sub(r"(\d)\.00\b", r"\1", text)
    text = re.sub(r"(\d)(?::00)? ?([ap])\.?m\b\.?", r"\1 \2m", text)
    return " ".join(text.split())


def contains(text: str, phrase: str) -> bool:
    """Whether a normalized text has a normalized phrase, not as a part of a longer word or number."""
    return re.search(rf"(?<![\w$]){re.escape(phrase)}(?![\w]|[.,]\d)", text) is not None


@cache
def read_facts(path: Path = FACTS_FILE) -> dict[str, Fact]:
    """The facts by id."""
    return {
        record["id"]: Fact(
            record["id"],
            record["answer"],
            tuple(tuple(normalized(phrase) for phrase in alternatives) for alternatives in record["key"]),
            tuple(normalized(phrase) for phrase in record["only"]),
        )
        for record in yaml.safe_load(path.read_text(encoding="utf-8"))
    }


def foreign_facts(reply: str, fact_id: str) -> list[str]:
    """Ids of the other facts of which the reply has a phrase of their own."""
    text = normalized(reply)
    return [f.id for f in read_facts().values() if f.id != fact_id and any(contains(text, phrase) for phrase in f.only)]


def missing_keys(reply: str, fact_id: str) -> list[tuple[str, ...]]:
    """The key facts, as lists of alternatives, that the reply lacks."""
    text = normalized(reply)
    return [
        alternatives for alternatives in read_facts()[fact_id].key if not any(contains(text, p) for p in alternatives)
    ]


def is_declined(reply: str) -> bool:
    """Whether the reply says that it has no answer, and gives no fact."""
    text = normalized(reply)
    return any(normalized(phrase) in text for phrase in DECLINES) and not foreign_facts(reply, "")


def judge(reply: str, fact_id: str) -> str:
    """`right`, `wrong` or `declined`; out of scope, `declined` is the right one."""
    if is_declined(reply):
        return "declined"
    if fact_id in OUT_OF_SCOPE:
        return "wrong"
    return "wrong" if missing_keys(reply, fact_id) or foreign_facts(reply, fact_id) else "right"


def check(record: Mapping[str, Any], reply: str) -> dict[str, bool]:
    """Each point, and whether the reply to a question passes it."""
    if record["id"] == "changed":  # a passage with other numbers, for training only: the reply is one of its lines
        return {"right": reply.strip() in record["messages"][0]["content"].splitlines()}
    judgment = judge(reply, record["id"])
    if record["id"] in OUT_OF_SCOPE:
        return {"declines": judgment == "declined"}
    return {"right": judgment == "right", "does not decline": judgment != "declined"}


def self_check() -> list[str]:
    """Answers that are not right for their own question, or right for another one, and a refusal that is not declined."""
    facts = read_facts().values()
    problems = [
        f"{f.id} is {judge(f.answer, f.id)}: {missing_keys(f.answer, f.id)}, {foreign_facts(f.answer, f.id)}"
        for f in facts
        if judge(f.answer, f.id) != "right"
    ]
    problems += [
        f"the answer of {g.id} is right for {f.id}"
        for f in facts
        for g in facts
        if f != g and judge(g.answer, f.id) == "right"
    ]
    return problems + ([] if is_declined(REFUSAL) else ["the refusal is not declined"])
