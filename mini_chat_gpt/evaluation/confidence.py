"""How far to trust a mean over few items: intervals by the bootstrap, and a test of two models on the same items.

What is right or wrong has Wilson's interval (Wilson 1927, "Probable inference, the law of succession, and statistical inference"), which
also holds where all or none are right: 40 of 40 leave room for one in eleven that is wrong. All else has the bootstrap's.

The bootstrap (Efron 1979, "Bootstrap methods: another look at the jackknife") draws as many items as there are, with
replacement, again and again, and looks at how the statistic spreads. It knows nothing that the items don't show: where all are
equal the interval has no width, and from fewer than about ten items it comes out too narrow. And both know of these items only: of
stories from three plots they say nothing about a fourth plot. Every result is a function of its
arguments alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""(resamples, items, …) -> (resamples,)"""

SEED = 1337
Z = 1.959964  # of the normal distribution, 95 % lie within so many standard deviations
SIGNIFICANT = 0.05  # p below which a difference is called one
MOST_EXACT = 16  # items that differ, of which all 2 ** 16 signs are tried
SIGN_DRAWS = 9999
_AT_ONCE = 1 << 22  # numbers drawn at a time


class Paired(NamedTuple):
    """The mean of after − before, its 95 % interval, and how probable so large a mean is if there is no difference."""

    difference: float
    low: float
    high: float
    p: float

    @property
    def is_significant(self) -> bool:
        return self.p < SIGNIFICANT

    @property
    def direction(self) -> int:
        """1: higher, -1: lower, 0: no clear difference."""
        return (1 if self.difference > 0 else -1) if self.is_significant else 0


def mean(samples: np.ndarray) -> np.ndarray:
    """(resamples, items) -> (resamples,)"""
    return samples.mean(axis=1)


def ratio(samples: np.ndarray) -> np.ndarray:
    """Σ first / Σ second; (resamples, items, 2) -> (resamples,). For items of different size."""
    sums = samples.sum(axis=1)
    return sums[:, 0] / sums[:, 1]


def wilson(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % interval (low, high) of a share, from items that are 1 or 0. Raises ValueError where there is no item."""
    n = len(values)
    if not n:
        raise ValueError("there is no interval without a single item")
    share = float(np.mean(values))
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    return (0.0 if share == 0 else middle - half), (1.0 if share == 1 else middle + half)


def bootstrap(
    values: Sequence[float] | np.ndarray, statistic: Statistic = mean, n: int = 1000, seed: int = SEED
) -> tuple[float, float]:
    """95 % percentile interval (low, high) of a statistic of `values`, (items,) or (items, …), by `n` resamples.

    Raises ValueError where there is no item.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("there is no interval without a single item")
    rng = np.random.default_rng(seed)
    found = [
        statistic(array[rng.integers(0, len(array), (rows, len(array)))]) for rows in _portions(n, max(1, array.size))
    ]
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return float(low), float(high)


def paired(
    before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray, n: int = 1000, seed: int = SEED
) -> Paired:
    """Compare two models on the same items: before and after (items,), item for item.

    p is two-sided, of the sign-flip test (Fisher 1935, "The design of experiments", §21): if nothing has changed, each item's
    difference could as well have the other sign. Of at most `MOST_EXACT` differences all signs are tried, otherwise
    `SIGN_DRAWS` are drawn, so that p is at least 1 / (SIGN_DRAWS + 1). For items that are right or wrong this is McNemar's test.
    Where a number isn't finite nothing can be told: p is 1. Raises ValueError for different numbers of items, and for none.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} items before and {len(after)} after are no pairs")
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    low, high = bootstrap(differences, n=n, seed=seed)
    return Paired(float(differences.mean()), low, high, _sign_flip(differences, seed))


def _sign_flip(differences: np.ndarray, seed: int) -> float:
    """Share of the signs with which the sum is as far from 0 as it is."""
    if not np.isfinite(differences).all():
        return 1.0
    told = differences[differences != 0]  # the sign of 0 changes nothing
    if not len(told):
        return 1.0
    # Sums that are equal on paper may differ in their last digits.
    least = abs(told.sum()) - 1e-9 * np.abs(told).sum()
    if len(told) <= MOST_EXACT:
        numbers = np.arange(1 << len(told))
        signs = 1.0 - 2.0 * ((numbers[:, None] >> np.arange(len(told))) & 1)
        return float((np.abs(signs @ told) >= least).mean())
    rng = np.random.default_rng(seed)
    as_far = 0
    for rows in _portions(SIGN_DRAWS, len(told)):
        signs = 2.0 * rng.integers(0, 2, (rows, len(told)), dtype=np.int8) - 1.0
        as_far += int((np.abs(signs @ told) >= least).sum())
    return (1 + as_far) / (1 + SIGN_DRAWS)  # the signs that were found are one more draw


def _portions(n: int, size: int) -> Iterator[int]:
    """n as numbers of rows whose items, `size` a row, fit into memory."""
    rows = max(1, _AT_ONCE // size)
    yield from (min(rows, n - start) for start in range(0, n, rows))
