"""Texts with choices: "(Hi|Hello), <name>!" stands for many wordings.

Only `Random.random` is used, because Python guarantees that its sequence does not change between versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")

CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
SLOT = re.compile(r"<(\w+)>")


def pick(rng: Random, items: Sequence[T]) -> T:
    """Choose one item. Unlike with `Random.choice`, the result is the same in every version of Python."""
    return items[int(rng.random() * len(items))]


def worded(text: str, rng: Random, value: Callable[[str], str]) -> str:
    """The text with its choices made and its slots filled: <name> becomes `value(name)`, which is not searched again.

    Choices may contain others and slots. Doubled spaces and those before punctuation, which empty choices leave, are removed.
    """
    while CHOICE.search(text):
        text = CHOICE.sub(lambda match: pick(rng, match[1].split("|")), text)
    text = re.sub(r" +(?= |[,.!?:]|$)", "", text).strip()
    return SLOT.sub(lambda match: value(match[1]), text)
