"""Compare a reply with the expected one, word by word: which parts are right or wrong, and which words are missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Literal

from mini_chat_gpt.evaluation.chat_tasks import ChatTask
from mini_chat_gpt.evaluation.refusals import REFUSALS
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tinystories.word_forms import first_use, uses

Mark = Literal["plain", "required", "right", "wrong"]


@dataclass(frozen=True)
class ReplyDiff:
    """The reply in marked parts. The parts joined are the reply."""

    parts: list[tuple[str, Mark]]
    missing: list[str]  # words of the expected reply, or required words
    used: list[tuple[str, str]]  # (required word, the form in which the reply has it)


def diff_reply(task: Task, reply: str) -> ReplyDiff:
    """Mark the required words if the task has some; otherwise compare with the target. Refusals and replies of chats stay unmarked."""
    if task.required:
        return _find_required(task.required, reply)
    if task.kind == REFUSALS or isinstance(task, ChatTask):
        return ReplyDiff([(reply, "plain")] if reply else [], [], [])
    return _compare_words(task.target, reply)


def _find_required(required: Sequence[str], reply: str) -> ReplyDiff:
    spans = {word: span for word in required if uses(reply, word) and (span := first_use(reply, word))}
    parts: list[tuple[str, Mark]] = []
    at = 0
    for start, end in sorted(spans.values()):
        if start >= at:
            parts += [(reply[at:start], "plain"), (reply[start:end], "required")]
            at = end
    parts = [part for part in [*parts, (reply[at:], "plain")] if part[0]]
    missing = [word for word in required if not uses(reply, word)]
    return ReplyDiff(parts, missing, [(word, reply[slice(*span)]) for word, span in spans.items()])


def _compare_words(target: str, reply: str) -> ReplyDiff:
    """Compare without case and punctuation. Each part includes the white space before its first word."""
    expected, replied = ([*map(bare, text.split())] for text in (target, reply))
    blocks = SequenceMatcher(None, expected, replied, autojunk=False).get_matching_blocks()
    right = {block.b + n for block in blocks for n in range(block.size)}
    matched = {block.a + n for block in blocks for n in range(block.size)}
    missing = [word for number, word in enumerate(expected) if number not in matched]
    parts: list[tuple[str, Mark]] = []
    for is_right, words in groupby(enumerate(_words(reply)), lambda word: word[0] in right):
        parts.append(("".join(text for _, text in words), "right" if is_right else "wrong"))
    rest = reply[sum(len(text) for text, _ in parts) :]
    return ReplyDiff([*parts, (rest, "plain")] if rest else parts, missing, [])


def _words(text: str) -> Iterator[str]:
    """Each word with the white space before it."""
    return (match[0] for match in re.finditer(r"\s*\S+", text))


def bare(word: str) -> str:
    """The word without case and without punctuation around it, for comparison."""
    return re.sub(r"^\W+|\W+$", "", word.casefold()) or word
