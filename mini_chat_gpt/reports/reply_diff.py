"""A reply in parts, beside what was expected: what is right in it and what is wrong, and which words are missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Literal

from mini_chat_gpt.evaluation.refusals import REFUSALS
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tinystories.word_forms import first_use, uses

Mark = Literal["plain", "required", "right", "wrong"]


@dataclass(frozen=True)
class Marked:
    """The parts joined are the reply."""

    parts: list[tuple[str, Mark]]
    missing: list[str]  # words of the expected reply, or required ones
    used: list[tuple[str, str]]  # required words, and in which form


def marked(task: Task, reply: str) -> Marked:
    """Required words where there are some; a refusal is not compared word by word; all else is."""
    if task.required:
        return _with_required(task.required, reply)
    if task.kind == REFUSALS:
        return Marked([(reply, "plain")] if reply else [], [], [])
    return _compared(task.target, reply)


def _with_required(required: Sequence[str], reply: str) -> Marked:
    spans = {word: span for word in required if uses(reply, word) and (span := first_use(reply, word))}
    parts: list[tuple[str, Mark]] = []
    at = 0
    for start, end in sorted(spans.values()):
        if start >= at:
            parts += [(reply[at:start], "plain"), (reply[start:end], "required")]
            at = end
    parts = [part for part in [*parts, (reply[at:], "plain")] if part[0]]
    missing = [word for word in required if not uses(reply, word)]
    return Marked(parts, missing, [(word, reply[slice(*span)]) for word, span in spans.items()])


def _compared(target: str, reply: str) -> Marked:
    """Word by word, whatever the case and punctuation. A part begins with the white space before its first word."""
    wanted, given = ([*map(bare, text.split())] for text in (target, reply))
    blocks = SequenceMatcher(None, wanted, given, autojunk=False).get_matching_blocks()
    right = {block.b + n for block in blocks for n in range(block.size)}
    met = {block.a + n for block in blocks for n in range(block.size)}
    missing = [word for number, word in enumerate(wanted) if number not in met]
    parts: list[tuple[str, Mark]] = []
    for is_right, words in groupby(enumerate(_words(reply)), lambda word: word[0] in right):
        parts.append(("".join(text for _, text in words), "right" if is_right else "wrong"))
    rest = reply[sum(len(text) for text, _ in parts) :]
    return Marked([*parts, (rest, "plain")] if rest else parts, missing, [])


def _words(text: str) -> Iterator[str]:
    """Each word with the white space before it."""
    return (match[0] for match in re.finditer(r"\s*\S+", text))


def bare(word: str) -> str:
    """For comparison: the word without case and punctuation around it."""
    return re.sub(r"^\W+|\W+$", "", word.casefold()) or word
