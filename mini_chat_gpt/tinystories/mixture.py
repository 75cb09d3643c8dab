"""How often each kind of task is drawn, so that the examples have the shares that `data.mixture` asks for.

Every record gives one example, of a kind that it supports. If all supported kinds were equally likely, their shares would be
those of the data: few morals, and "yes" nine times out of ten. Instead, the probability of a category c is

    P(c | record) = w_c / sum of w over the categories that the record supports

The weights w are found by iterative proportional fitting (Deming and Stephan, 1940) on a sample of records: multiply each w_c by
its requested share over its current share until they agree. A category that is too rare for its share is drawn wherever it
occurs. A category that is the only one of too many records is drawn there and nowhere else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mini_chat_gpt.tinystories.prompts import TemplateSampler
from mini_chat_gpt.tinystories.records import StoryRecord
from mini_chat_gpt.tinystories.tasks import TASK_KINDS, Task, categories, generate_tasks

_MAX_ITERATIONS = 300
_MAX_RATIO = 1e6  # of a weight to the geometric mean of all, or the inverse


class TaskMixture:
    """Draws the tasks of a record with the requested shares by kind.

    shares: category ("summary", "ending/no") -> its share of the examples. kinds: the kinds that are drawn at all.
    """

    def __init__(self, records: Sequence[StoryRecord], seed: int, requested: Mapping[str, float]) -> None:
        """Fit the weights on a sample of records. `requested` has a share for each kind; their scale does not matter."""
        names = categories()
        wanted = [kind for kind, share in requested.items() if share > 0]
        supported = np.zeros((len(records), len(names)), dtype=bool)
        for row, record in enumerate(records):
            for task in generate_tasks(record, seed, wanted):
                supported[row, names.index(task.category)] = True
        weights = balanced_weights(supported, names, requested)
        self._weights = {name: weight for name, weight in zip(names, weights.tolist(), strict=True) if weight > 0}
        self.shares: dict[str, float] = dict(zip(names, realized_shares(supported, weights).tolist(), strict=True))
        drawn = {name.split("/")[0] for name in self._weights}
        self.kinds = [kind for kind in TASK_KINDS if kind in drawn]
        n_supporting = dict(zip(names, supported.sum(axis=0).tolist(), strict=True))
        n_first = {name: share * len(records) for name, share in self.shares.items()}
        self._follow_up_rates = {name: _balancing_rate(name, n_supporting, n_first) for name in names}

    def draw(self, record: StoryRecord, seed: int, salt: str) -> Iterator[Task]:
        """The record's tasks in the order in which they are drawn by weight. Each is made only when it is requested."""
        # The task with the largest u ** (1 / w) is c with probability w_c / sum of w (Efraimidis and Spirakis, 2006).
        keys = {name: math.log((hash64(salt + name) + 1) / 2**64) / weight for name, weight in self._weights.items()}
        sampler, made = TemplateSampler(record, seed), dict[str, Task | None]()
        for category in sorted(keys, key=keys.__getitem__, reverse=True):
            kind = category.split("/")[0]
            if kind not in made:
                made[kind] = TASK_KINDS[kind](record, sampler)
            task = made[kind]
            if task is not None and task.category == category:
                yield task

    def may_follow(self, task: Task, salt: str) -> bool:
        """Whether a task may follow another one in a conversation: always, but the more frequent answer only sometimes."""
        return hash64(f"{salt}{task.category}/again") < self._follow_up_rates[task.category] * 2**64


def hash64(text: str) -> int:
    """A number below 2**64 that depends on the text alone, in every process (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _balancing_rate(category: str, n_supporting: Mapping[str, int], n_first: Mapping[str, float]) -> float:
    """How often a category may be a follow-up, so that "yes" and "no" are equally frequent; 1 for other kinds.

    `n_supporting` is the number of records that support each category, `n_first` of those in which it is the first question.
    """
    kind, _, answer = category.partition("/")
    if not answer:
        return 1.0
    target = min(n_supporting[f"{kind}/yes"], n_supporting[f"{kind}/no"])
    missing = max(0.0, target - n_first[category])
    return min(1.0, missing / max(1e-9, n_supporting[category] - n_first[category]))


def balanced_weights(supported: np.ndarray, names: Sequence[str], shares: Mapping[str, float]) -> np.ndarray:
    """`solve_weights` for categories such as "summary", "ending/yes", "ending/no" and shares by kind.

    Each answer of a yes/no kind gets half of its share. If one answer is too rare for that, the other is limited to the same
    share. A kind with one answer only is excluded: the model would learn to give it without reading the story.
    """
    kinds = [name.split("/")[0] for name in names]
    occurs = np.array(supported.any(axis=0), dtype=bool)
    requested = np.where(occurs, [shares.get(kind, 0.0) / kinds.count(kind) for kind in kinds], 0.0)
    pairs = [
        [i for i, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1
    ]
    for pair in pairs:
        if not occurs[pair].all():
            requested[pair] = 0.0
    requested /= max(requested.sum(), 1e-12)
    weights = solve_weights(supported, requested)
    limited = np.zeros(len(names), dtype=bool)
    for _ in range(4):  # limiting one answer changes the others a little
        realized = realized_shares(supported, weights)
        uneven = [
            pair for pair in pairs if requested[pair[0]] > 0 and realized[pair].max() > 1.03 * realized[pair].min()
        ]
        if not uneven:
            break
        for pair in uneven:
            requested[pair] = realized[pair].min()
            limited[pair] = True
        if (rest := requested[~limited].sum()) > 0:
            requested[~limited] *= max(0.0, 1 - requested[limited].sum()) / rest
        weights = solve_weights(supported, requested)
    return weights


def solve_weights(supported: np.ndarray, requested: np.ndarray) -> np.ndarray:
    """Weights (C,) for a sample `supported` (records, C) of bools and requested shares (C,), whose scale does not matter.

    A category that no record supports gets weight 0.
    """
    possible = supported.any(axis=0) & (requested > 0)
    if not possible.any():
        return np.zeros(len(requested))
    used = supported[:, possible]
    used = used[used.any(axis=1)].astype(np.float64)
    target = _reachable(used, requested[possible])
    weights = np.ones_like(target)
    for _ in range(_MAX_ITERATIONS):
        factor = target / np.maximum(realized_shares(used, weights), 1e-12)
        weights = weights * factor
        weights = np.clip(weights / np.exp(np.log(weights).mean()), 1 / _MAX_RATIO, _MAX_RATIO)
        if np.abs(factor - 1).max() < 1e-4:
            break
    result = np.zeros(len(requested))
    result[possible] = weights
    return result


def _reachable(supported: np.ndarray, requested: np.ndarray) -> np.ndarray:
    """The nearest shares that the records can give: they sum to 1 and are within the bounds of each category."""
    highest = 0.999 * supported.mean(axis=0)  # records that support it
    only_one = supported.sum(axis=1, keepdims=True) == 1
    lowest = np.maximum((supported * only_one).mean(axis=0), 1e-9)  # records that support nothing else
    highest = np.maximum(highest, lowest)
    target = np.clip(requested / requested.sum(), lowest, highest)
    for _ in range(100):  # the excess of a clipped share is divided among the others
        target = np.clip(target / target.sum(), lowest, highest)
    return target


def realized_shares(supported: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(C,) the share of each category if every record draws one of its categories by weight."""
    chances = supported * weights
    total = chances.sum(axis=1, keepdims=True)
    drawn = np.divide(chances, total, out=np.zeros_like(chances), where=total > 0)
    return drawn.sum(axis=0) / max(1e-12, drawn.sum())
