"""The result of `mini-chat-gpt inspect`: a list of sections, and the tables, bars and examples in them.

`inspect_data` makes the sections; `inspect_text` prints them and `inspect_page` writes them as HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from mini_chat_gpt.data.batch_dump import Piece
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.data.token_counts import Row, total_of

_MAX_BARS = 12
_HEADS = ["", "examples", "share", "tokens", "trained", "% trained", "weight"]


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram, which is a cell of a table."""

    length: float  # from 0 to 1
    label: str  # at its end


@dataclass(frozen=True)
class ShownExample:
    """An example to show."""

    title: str  # kind, size and origin
    batch: str  # the step and the micro-batch that contain it
    example: Example
    pieces: list[Piece]


@dataclass(frozen=True)
class Section:
    """A part of the output: a title, and below it whatever the fields hold, in this order."""

    title: str
    table: Sequence[Sequence[str | Bar]] = ()
    notes: list[str] = field(default_factory=list)  # if a note has several lines, all but the first are details
    examples: Sequence[ShownExample] = ()


@dataclass(frozen=True)
class Inspection:
    """Everything that is shown."""

    about: list[str]  # sentences: which data, which tokenizer
    facts: list[tuple[str, str]]  # important numbers, and what they are
    sections: list[Section]
    paths: list[str]  # files and folders as they are spelled in the texts


def cells(row: Row, n_all: float) -> list[str]:
    """The row of a table below `_HEADS`, but for its name. Its share is that of `n_all` examples."""
    tokens, trained, weight = row.repeats @ row.sizes
    counts = ["", "", ""]
    if row.in_epoch:
        counts = [f"{n:,.0f}" if row.exact else _estimate(n) for n in (row.examples, tokens, trained)]
    share, percentage = f"{row.examples / n_all:.1%}", f"{row.trained_share:.0%}"
    return [counts[0], share, *counts[1:], percentage, f"{weight / max(1, trained):.3g}"]


def _estimate(value: float) -> str:
    """The value with three digits."""
    return f"~{value if value < 1000 else float(f'{value:.2e}'):,.0f}"


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The rows under their sources, with the total of an epoch before the curriculum stages."""
    in_epoch, total = [row for row in rows if row.in_epoch], total_of(rows)
    stages = [row for row in rows if not row.in_epoch]
    lines = [_HEADS]
    all_rows = [*in_epoch, *([total] if len(in_epoch) > 1 else []), *stages]
    for source, group in groupby(all_rows, key=lambda row: row.source):
        kinds = list(group)
        n_all = total.examples if kinds[0].in_epoch else sum(row.examples for row in kinds)
        if len(kinds) == 1 and kinds[0].kind in source:  # the kind of a chat file is the file's name
            lines.append([source, *cells(kinds[0], n_all)])
        else:
            lines.append([source, *[""] * (len(_HEADS) - 1)])
            lines += [[f"  {row.kind}", *cells(row, n_all)] for row in kinds]
    return lines


def histogram(row: Row, marks: Mapping[str, int]) -> list[list[str | Bar]]:
    """A bar for each range of lengths, with the `marks` within it. The numbers of examples add up to those of an epoch."""
    lengths = row.lengths
    shortest, longest = int(lengths.min()), int(lengths.max())
    widths = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    width = next(width for width in widths if longest // width - shortest // width < _MAX_BARS)
    edges = np.arange(shortest // width * width, longest + 1 + width, width)
    # Rounding the running sum, not each count, keeps the total right.
    ends = np.rint(np.cumsum(np.histogram(lengths, edges, weights=row.repeats)[0]))
    counts = np.diff(ends, prepend=0).astype(int).tolist()
    lines: list[list[str | Bar]] = [["tokens", "examples", ""]]
    for begin, end, count in zip(edges.tolist(), edges[1:].tolist(), counts, strict=False):
        names = [f"{name} {tokens:,}" for name, tokens in marks.items() if begin <= tokens < end]
        lines.append([f"{begin:,}–{end - 1:,}", f"{count:,}", Bar(count / max(counts), ", ".join(names))])
    return lines
