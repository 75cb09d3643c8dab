"""How often each kind of task is drawn: weights with which the realised shares come as near to the wished ones as can be.

Every record gives one example, of a kind that it supports. Drawing among them with equal chances would give each kind the
share that the data happen to have: seldom a moral, and "yes" nine times out of ten. So the chance of a category c is

    P(c | record) = w_c / sum of w over the categories that the record supports

with w found by iterative proportional fitting (Deming and Stephan, 1940) on a sample of records: multiply each w_c by wished
over realised share until they agree. A category that is too rare for its share is taken wherever it occurs, one that
is all that too many records have is taken there and nowhere else, and the rest is divided as wished among the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

_ROUNDS = 300
_LARGEST = 1e6  # ratio to the geometric mean, and its inverse the smallest


def solve_weights(supported: np.ndarray, wished: np.ndarray) -> np.ndarray:
    """Weights (C,) for a sample `supported` (records, C) of bools and wished shares (C,), whose scale doesn't matter.

    A category that no record supports gets weight 0.
    """
    there = supported.any(axis=0) & (wished > 0)
    if not there.any():
        return np.zeros(len(wished))
    some = supported[:, there]
    some = some[some.any(axis=1)].astype(np.float64)
    target = _within_reach(some, wished[there])
    weights = np.ones_like(target)
    for _ in range(_ROUNDS):
        factor = target / np.maximum(realised_shares(some, weights), 1e-12)
        weights = weights * factor
        weights = np.clip(weights / np.exp(np.log(weights).mean()), 1 / _LARGEST, _LARGEST)
        if np.abs(factor - 1).max() < 1e-4:
            break
    result = np.zeros(len(wished))
    result[there] = weights
    return result


def _within_reach(supported: np.ndarray, wished: np.ndarray) -> np.ndarray:
    """Shares that sum to 1, none above what the records can give and none below what they can't help giving."""
    highest = 0.999 * supported.mean(axis=0)  # of the records have this category
    lowest = np.maximum(
        (supported * (supported.sum(axis=1, keepdims=True) == 1)).mean(axis=0), 1e-9
    )  # have nothing else
    highest = np.maximum(highest, lowest)
    target = np.clip(wished / wished.sum(), lowest, highest)
    for _ in range(100):  # what is cut off one share is divided among the others
        target = np.clip(target / target.sum(), lowest, highest)
    return target


def realised_shares(supported: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(C,) the share of each category when every record that can draws one of its categories by weight."""
    chances = supported * weights
    total = chances.sum(axis=1, keepdims=True)
    drawn = np.divide(chances, total, out=np.zeros_like(chances), where=total > 0)
    return drawn.sum(axis=0) / max(1e-12, drawn.sum())


def balanced_weights(supported: np.ndarray, names: Sequence[str], shares: Mapping[str, float]) -> np.ndarray:
    """`solve_weights` for categories such as "summary", "ending/yes", "ending/no" and shares by kind.

    The answers of a yes/no kind get half of its share each. Where one of them is too rare for that, the other is held
    down to what the rarer one reaches, and a kind with one answer only is left out: a question whose answer is known
    before teaches nothing.
    """
    kinds = [name.split("/")[0] for name in names]
    there = np.array(supported.any(axis=0), dtype=bool)
    wished = np.where(there, [shares.get(kind, 0.0) / kinds.count(kind) for kind in kinds], 0.0)
    answers = [
        [i for i, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1
    ]
    for both in answers:
        if not there[both].all():
            wished[both] = 0.0
    wished /= max(wished.sum(), 1e-12)
    weights = solve_weights(supported, wished)
    held = np.zeros(len(names), dtype=bool)
    for _ in range(4):  # holding one answer down moves the others a little
        realised = realised_shares(supported, weights)
        uneven = [
            both for both in answers if wished[both[0]] > 0 and realised[both].max() > 1.03 * realised[both].min()
        ]
        if not uneven:
            break
        for both in uneven:
            wished[both] = realised[both].min()
            held[both] = True
        if (rest := wished[~held].sum()) > 0:
            wished[~held] *= max(0.0, 1 - wished[held].sum()) / rest
        weights = solve_weights(supported, wished)
    return weights
