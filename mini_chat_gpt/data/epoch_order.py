"""The order in which a dataset without end uses its items: each epoch has all of them once, shuffled again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) uint32, the order of n items in an epoch: a permutation that depends on the arguments alone. See `EpochOrder`."""
    order = np.arange(n, dtype=np.uint32 if n <= 2**32 else np.int64)
    np.random.default_rng([seed % 2**64, epoch]).shuffle(order)  # as `permutation` does, with half its memory
    return order


class EpochOrder:
    """The items of a dataset without end: an epoch has each item once, in an order of its own.

    make    epoch -> (n,) its items; `epoch_order` by default. Those of one epoch are kept, because a dataset is read in order
    """

    def __init__(self, n: int, seed: int, make: Callable[[int], np.ndarray] | None = None) -> None:
        self.n = n
        self._make = partial(epoch_order, n, seed) if make is None else make
        self._current: tuple[int, np.ndarray] | None = None

    def __getitem__(self, index: int) -> tuple[int, int]:
        """(epoch, item) at `index`, for any index ≥ 0."""
        epoch, position = divmod(index, self.n)
        current = self._current  # another thread may replace it
        if current is None or current[0] != epoch:
            self._current = None  # frees its memory
            self._current = current = epoch, self._make(epoch)
        return epoch, int(current[1][position])
