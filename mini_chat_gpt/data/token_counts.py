"""Count the examples and tokens of data by source and kind, for the tables of `inspect` and `prepare`."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mini_chat_gpt.data.batching import Example


@dataclass(frozen=True)
class Row:
    """The measured examples of one kind from one source: all of them, or a sample."""

    source: str
    kind: str
    sizes: np.ndarray
    """(n, 3) of each example: tokens, trained tokens, sum of the loss weights of the trained tokens"""
    repeats: np.ndarray
    """(n,) how often each example occurs in an epoch"""
    exact: bool = True
    """Whether the sums are those of every epoch, and not estimates."""
    in_epoch: bool = True
    """False for a curriculum stage, which comes before the first epoch."""

    @property
    def examples(self) -> float:
        """Number of examples in an epoch."""
        return float(self.repeats.sum())

    @property
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each measured example."""
        return self.sizes[:, 0].astype(np.int64)

    @property
    def trained_share(self) -> float:
        """Trained tokens per token."""
        tokens, trained, _ = self.repeats @ self.sizes
        return float(trained / tokens)

    def quantile(self, fraction: float) -> int:
        """The length that this fraction of an epoch's examples does not exceed."""
        order = np.argsort(self.lengths, kind="stable")
        place = int(np.searchsorted(np.cumsum(self.repeats[order]), fraction * self.examples))
        return int(self.lengths[order[min(place, len(order) - 1)]])


def measure(source: str, examples: Iterable[Example], per_epoch: int | None = None, exact: bool = True) -> list[Row]:
    """A row for each kind. `per_epoch` is the number of examples of an epoch that these represent; None for a curriculum stage."""
    by_kind: dict[str, array[float]] = {}  # not tuples, of which a million take 150 MB
    for example in examples:
        weight = float((example.weight * example.loss_mask)[1:].sum())
        by_kind.setdefault(example.kind, array("d")).extend((len(example.ids), example.n_trained, weight))
    rows = []
    for kind, numbers in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        sizes = np.array(numbers).reshape(-1, 3)
        rows.append(Row(source, kind, sizes, np.ones(len(sizes)), exact, in_epoch=per_epoch is not None))
    n_measured = sum(len(row.sizes) for row in rows)
    return [replace(row, repeats=row.repeats * (per_epoch or n_measured) / n_measured) for row in rows]


def total_of(rows: Sequence[Row]) -> Row:
    """All rows of an epoch as one."""
    rows = [row for row in rows if row.in_epoch]
    sizes, repeats = (np.concatenate([getattr(row, name) for row in rows]) for name in ("sizes", "repeats"))
    return Row("all", "", sizes, repeats, all(row.exact for row in rows))
