"""The result of `mini-chat-gpt inspect`: counts, a length histogram and the examples to show.

`inspect_data` fills these records; `inspect_text` prints them and `inspect_page` writes them as HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mini_chat_gpt.data.batch_dump import headline
from mini_chat_gpt.data.batching import Example

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

_MAX_BINS = 12


@dataclass(frozen=True)
class Piece:
    """The text of one token, or of several where only together they decode to a character."""

    ids: tuple[int, ...]
    text: str
    trained: bool
    control: bool


def token_pieces(example: Example, tokenizer: ChatTokenizer) -> Iterator[Piece]:
    """Yield the example token by token. The first token is never trained, because nothing predicts it."""
    decoder, control = tokenizer.stream_decoder(control=True), set(tokenizer.control.values())
    ids: list[int] = []
    trained = False
    for index, token_id in enumerate(example.ids.tolist()):
        ids.append(token_id)
        trained = index > 0 and bool(example.loss_mask[index])
        if text := decoder.push(token_id):
            yield Piece(tuple(ids), text, trained, token_id in control)
            ids = []
    if ids:
        yield Piece(tuple(ids), decoder.finish(), trained, False)


@dataclass(frozen=True)
class Row:
    """The examples of one kind of one source."""

    source: str
    kind: str
    examples: float | None  # per epoch; None where the source has no epochs (a curriculum stage)
    share: float  # of the source's or the epoch's examples
    tokens: float  # per epoch, or in the sample where there is no epoch
    trained: float  # supervised tokens among them
    weight: float  # mean loss weight of a supervised token
    exact: bool  # counted, not estimated from a sample

    HEADS = ("source", "kind", "examples", "share", "tokens", "trained", "% trained", "weight")

    def cells(self) -> list[str]:
        """The row as text, in the order of `HEADS`."""
        about = "" if self.exact else "~"
        counts = [about + f"{_rounded(value, self.exact):,}" for value in (self.tokens, self.trained)]
        examples = "" if self.examples is None else about + f"{_rounded(self.examples, self.exact):,}"
        fraction = f"{self.trained / self.tokens:.0%}" if self.tokens else ""
        counts = counts if self.examples is not None else ["", ""]
        return [self.source, self.kind, examples, f"{self.share:.1%}", *counts, fraction, f"{self.weight:.3g}"]


def _rounded(value: float, exact: bool) -> int:
    """Round an estimate to three digits."""
    return round(value) if exact or value < 1000 else int(float(f"{value:.2e}"))


def totals(rows: Sequence[Row]) -> Row:
    """The sum over all rows that are part of an epoch."""
    rows = [row for row in rows if row.examples is not None]
    examples, tokens, trained = (
        sum(getattr(row, name) or 0 for row in rows) for name in ("examples", "tokens", "trained")
    )
    weight = sum(row.weight * row.trained for row in rows) / max(1, trained)
    return Row("all", "", examples, 1.0, tokens, trained, weight, all(row.exact for row in rows))


def with_total(rows: Sequence[Row]) -> list[Row]:
    """The rows of an epoch, their total if there are several, then the rows that are not part of an epoch."""
    epoch = [row for row in rows if row.examples is not None]
    return [*epoch, *([totals(rows)] if len(epoch) > 1 else []), *(row for row in rows if row.examples is None)]


@dataclass(frozen=True)
class Lengths:
    """A histogram of example lengths: counts[i] examples of an epoch have edges[i] ≤ length < edges[i + 1] tokens."""

    edges: list[int]
    counts: list[int]
    median: int
    longest: int
    limit: int
    limit_name: str  # the setting behind the limit: the model's context, or data.seq_len

    @property
    def marks(self) -> list[tuple[int, str]]:
        """(tokens, label) of the values that are marked in the histogram."""
        return [
            (self.median, f"median {self.median:,}"),
            (self.longest, f"longest {self.longest:,}"),
            (self.limit, f"{self.limit_name} {self.limit:,}"),
        ]


def histogram(lengths: np.ndarray, repeats: np.ndarray, limit: int, limit_name: str) -> Lengths:
    """Histogram of example lengths; `repeats` says how often each example occurs in an epoch.

    The counts are whole numbers that add up to the sum of `repeats`.
    """
    shortest, longest = int(lengths.min()), int(lengths.max())
    widths = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    width = next(width for width in widths if longest // width - shortest // width < _MAX_BINS)
    edges = np.arange(shortest // width * width, longest + 1 + width, width)
    # Rounding the running sum, not each bin, keeps the total right.
    ends = np.rint(np.cumsum(np.histogram(lengths, edges, weights=repeats)[0]))
    order = np.argsort(lengths, kind="stable")
    middle = np.searchsorted(np.cumsum(repeats[order]), repeats.sum() / 2)
    median = int(lengths[order][min(middle, len(order) - 1)])
    counts = np.diff(ends, prepend=0).astype(int).tolist()
    return Lengths(edges.tolist(), counts, median, longest, limit, limit_name)


@dataclass(frozen=True)
class MicroBatch:
    """The size of one forward and backward pass."""

    step: int
    number: int  # within the step, from 1
    examples: int
    tokens: int
    trained: int

    def __str__(self) -> str:
        return (
            f"{self.examples:,} {'example' if self.examples == 1 else 'examples'}, {self.tokens:,} tokens, "
            f"{self.trained:,} trained ({self.trained / self.tokens:.0%})"
        )


@dataclass(frozen=True)
class ShownExample:
    """An example to show, and the step and micro-batch that contain it."""

    example: Example
    step: int
    batch: int
    origin: str  # file and line; "" where they are not known

    def title(self) -> str:
        """One line: kind, size and origin."""
        return headline(self.example) + (f"; {self.origin}" if self.origin else "")


@dataclass(frozen=True)
class Finding:
    """A note about one or several records; `places` are the first of them."""

    what: str
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """Everything that is shown."""

    about: list[str]  # sentences: which data, which tokenizer
    batches: list[MicroBatch]  # of the first steps
    shown: list[ShownExample]
    rows: list[Row]
    counted: list[str]  # sentences: how the rows were counted
    lengths: Lengths
    left_out: list[Finding]
    validation: Counter[str]  # number of examples by kind
    tokenizer: ChatTokenizer
    paths: list[str]  # files and folders as they are spelled in the texts above
