"""Confidence intervals for means over few items, and a significance test for two models on the same items.

Values that are right or wrong (1 or 0) get Wilson's interval (Wilson 1927, "Probable inference, the law of succession, and
statistical inference"). It is also valid if all or none are right: after 40 of 40, an error rate of 1 in 11 is still possible.
All other values get a bootstrap interval.

The bootstrap (Efron 1979, "Bootstrap methods: another look at the jackknife") draws as many items as there are, with replacement,
many times, and measures the spread of the statistic. It only knows the items it has: if all are equal, the interval has no width,
and with fewer than about ten items it is too narrow. Both intervals only describe items like these: stories from three plots say
nothing about a fourth plot. Every result is a deterministic function of its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""(resamples, items, …) -> (resamples,)"""

SEED = 1337
Z = 1.959964  # 95 % of the normal distribution are within this many standard deviations
SIGNIFICANT = 0.05  # a difference is significant if p is below this level
MAX_EXACT = 16  # differing items for which all 2 ** 16 signs are tried
SIGN_DRAWS = 9999
_CHUNK = 1 << 22  # random numbers drawn at a time


class Paired(NamedTuple):
    """The mean of after − before, its 95 % interval, and its p-value under the hypothesis of no difference."""

    difference: float
    low: float
    high: float
    p: float

    @property
    def is_significant(self) -> bool:
        return self.p < SIGNIFICANT

    @property
    def direction(self) -> int:
        """1: significantly higher, -1: significantly lower, 0: not significant."""
        return (1 if self.difference > 0 else -1) if self.is_significant else 0


def mean(samples: np.ndarray) -> np.ndarray:
    """(resamples, items) -> (resamples,)"""
    return samples.mean(axis=1)


def ratio(samples: np.ndarray) -> np.ndarray:
    """Σ first / Σ second, for items of different size; (resamples, items, 2) -> (resamples,)"""
    sums = samples.sum(axis=1)
    return sums[:, 0] / sums[:, 1]


def wilson(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % interval (low, high) of a share, from items that are 1 or 0. Raises ValueError for no items."""
    n = len(values)
    if not n:
        raise ValueError("an interval needs at least one item")
    share = float(np.mean(values))
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # At the ends the formula gives exactly 0 and 1, except for rounding errors.
    return (0.0 if share == 0 else middle - half), (1.0 if share == 1 else middle + half)


def bootstrap(
    values: Sequence[float] | np.ndarray, statistic: Statistic = mean, n: int = 1000, seed: int = SEED
) -> tuple[float, float]:
    """95 % percentile interval (low, high) of a statistic of `values`, (items,) or (items, …), from `n` resamples.

    Raises ValueError for no items.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("an interval needs at least one item")
    rng = np.random.default_rng(seed)
    resampled = [
        statistic(array[rng.integers(0, len(array), (rows, len(array)))]) for rows in _chunks(n, max(1, array.size))
    ]
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    return float(low), float(high)


def paired(
    before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray, n: int = 1000, seed: int = SEED
) -> Paired:
    """Compare two models on the same items: before and after (items,), item for item.

    p is that of the two-sided sign-flip test (Fisher 1935, "The design of experiments", §21): without an effect, the difference of
    each item could equally well have the opposite sign. For up to `MAX_EXACT` nonzero differences all signs are tried, otherwise
    `SIGN_DRAWS` random ones, so p is at least 1 / (SIGN_DRAWS + 1). For items that are right or wrong this is McNemar's test.
    If a difference is not finite, p is 1. Raises ValueError for different numbers of items, and for no items.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} items before and {len(after)} after can't be paired")
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    low, high = bootstrap(differences, n=n, seed=seed)
    return Paired(float(differences.mean()), low, high, _sign_flip(differences, seed))


def _sign_flip(differences: np.ndarray, seed: int) -> float:
    """The share of sign assignments for which the sum is at least as far from 0 as the observed sum."""
    if not np.isfinite(differences).all():
        return 1.0
    nonzero = differences[differences != 0]  # the sign of 0 changes nothing
    if not len(nonzero):
        return 1.0
    # Sums that are mathematically equal can differ in their last digits.
    threshold = abs(nonzero.sum()) - 1e-9 * np.abs(nonzero).sum()
    if len(nonzero) <= MAX_EXACT:
        numbers = np.arange(1 << len(nonzero))
        signs = 1.0 - 2.0 * ((numbers[:, None] >> np.arange(len(nonzero))) & 1)
        return float((np.abs(signs @ nonzero) >= threshold).mean())
    rng = np.random.default_rng(seed)
    extreme = 0
    for rows in _chunks(SIGN_DRAWS, len(nonzero)):
        signs = 2.0 * rng.integers(0, 2, (rows, len(nonzero)), dtype=np.int8) - 1.0
        extreme += int((np.abs(signs @ nonzero) >= threshold).sum())
    return (1 + extreme) / (1 + SIGN_DRAWS)  # the observed signs count as one more draw


def _chunks(n: int, row_size: int) -> Iterator[int]:
    """Split n rows of `row_size` numbers into chunks that fit into memory; yields the rows of each chunk."""
    rows = max(1, _CHUNK // row_size)
    yield from (min(rows, n - start) for start in range(0, n, rows))
