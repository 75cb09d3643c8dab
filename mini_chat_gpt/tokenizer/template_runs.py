"""Cut what a chat template prints into control tokens and runs of ordinary text.

Control tokens are looked for in the template's own text only. Everything between two of them is one run of ordinary text: the
template's text and the contents in it are encoded together, as the model's own tokenizer would do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_chat_gpt.tokenizer.template_values import Part, Slot, TemplateError

# White space of Rust's `\s`, which the `tokenizers` library removes next to tokens with lstrip or rstrip. Python's has four more.
WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


@dataclass(frozen=True)
class Mark:
    """The place where an assistant's message begins, or where it ends, after the control token that ends it."""

    message: int  # index of the message
    begins: bool


class Run:
    """Ordinary text between two control tokens.

    parts            texts of the template, and slots
    begin            index in `parts` of the first part of an assistant's message that begins inside the run; None if none does
    message          index of that message
    lstrip, rstrip   whether the control token before (after) it swallows the white space at this end
    is_first         whether it begins the conversation, without a control token before it
    """

    def __init__(
        self, parts: Sequence[Part], begin: int | None, message: int | None, lstrip: bool, rstrip: bool, is_first: bool
    ) -> None:
        self.parts, self.begin, self.message = tuple(parts), begin, message
        self.lstrip, self.rstrip, self.is_first = lstrip, rstrip, is_first
        self.literal = self._literal(len(self.parts))
        """The text of a run without a content, None for others."""
        self.before = None if begin is None else self._literal(begin)
        """The text before the assistant's message, None if a content is in it."""

    def _literal(self, end: int) -> str | None:
        return None if any(isinstance(part, Slot) for part in self.parts[:end]) else self.text({}, end)

    def text(self, variables: Mapping[str, Any], end: int | None = None) -> str:
        """The run, or its first `end` parts, with the contents that `variables` have. Raises the errors of `Slot.fill`."""
        text = "".join([part if isinstance(part, str) else part.fill(variables) for part in self.parts[:end]])
        if self.lstrip:
            text = text.lstrip(WHITE_SPACE)
        return text.rstrip(WHITE_SPACE) if self.rstrip and end in (None, len(self.parts)) else text


Skeleton = tuple[int | Run | Mark, ...]  # ids of control tokens, runs, and where replies begin and end
Marks = Mapping[int, Sequence[tuple[int, Mark]]]
"""Index of a text of the template -> [(offset in it, mark), …], in order."""


def cut(
    parts: Sequence[Part],
    marks: Marks,
    names: re.Pattern[str],
    control: Mapping[str, int],
    strips: Mapping[str, tuple[bool, bool]],
) -> Skeleton:
    """Find the control tokens in the template's texts, and join what is between them to runs. Raises TemplateError.

    names     finds the control tokens
    strips    name -> (lstrip, rstrip) of control tokens that swallow white space next to them
    """
    between: list[list[Part | Mark]] = [[]]
    tokens = [""]  # between[i] follows tokens[i]
    for number, part in enumerate(parts):
        if isinstance(part, Slot):
            between[-1].append(part)
            continue
        for piece in _pieces(part, marks.get(number, ()), names):
            if isinstance(piece, re.Match):
                tokens.append(piece.group())
                between.append([])
            else:
                between[-1].append(piece)
    skeleton: list[int | Run | Mark] = []
    for items, before, after in zip(between, tokens, [*tokens[1:], ""], strict=True):
        if before:
            skeleton.append(control[before])
        nothing = False, False
        skeleton += _items(items, strips.get(before, nothing)[1], strips.get(after, nothing)[0], not before)
    return tuple(skeleton)


def _pieces(
    text: str, marks: Sequence[tuple[int, Mark]], names: re.Pattern[str]
) -> Iterator[str | re.Match[str] | Mark]:
    """The control tokens in a text, the texts between them, and the marks at their places."""
    start, rest = 0, list(marks)
    for match in [*names.finditer(text), None]:
        end = len(text) if match is None else match.start()
        while rest and rest[0][0] <= end:
            offset, mark = rest.pop(0)
            if offset < start:
                raise TemplateError("a reply begins inside a control token in it")
            yield text[start:offset]
            yield mark
            start = offset
        yield text[start:end]
        if match is not None:
            yield match
            start = match.end()


def _items(items: Sequence[Part | Mark], lstrip: bool, rstrip: bool, is_first: bool) -> list[Run | Mark]:
    """What stands between two control tokens: a run, if it is not empty, and marks that are not inside of it."""
    before: list[Run | Mark] = []
    after: list[Run | Mark] = []
    parts: list[Part] = []
    begin: tuple[int, Mark] | None = None
    for item in items:
        if not isinstance(item, Mark):
            parts += [item] if item else []
        elif not parts:
            before.append(item)
        else:
            begin = len(parts), item
    if begin is not None and begin[0] == len(parts):
        after, begin = [begin[1]], None
    index, message = (None, None) if begin is None else (begin[0], begin[1].message)
    return [*before, *([Run(parts, index, message, lstrip, rstrip, is_first)] if parts else []), *after]
