"""The longest runs of words that some texts share with a stream of others: a suffix array that is walked by many at once.

The suffixes of all the texts are put in order (Manber and Myers 1993, "Suffix arrays: a new method for on-line string
searches"); those that begin with the same run stand together. From each word of the stream on, the longest run that some text
has is found by narrowing that interval word by word, for a whole block of the stream at once. Up to `LEVELS` words deep a table
has the intervals; deeper, where few get, they are found by bisection.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import numpy as np

LEVELS = 8


class RunIndex:
    """A suffix array of N words: the texts' end to end, behind each a separator of its own.

    A node of depth d, a run of d words, is the interval [low, high) of the suffixes that begin with it. Each text belongs to
    one of the groups 0, 1, …: groups (texts,).
    """

    def __init__(self, texts: Sequence[list[str]], groups: Sequence[int]) -> None:
        # Ids from 1 on; 0 is a word that no text has, or the end of a text of the stream.
        self.vocabulary: dict[str, int] = {}
        for words in texts:
            for word in words:
                self.vocabulary.setdefault(word, len(self.vocabulary) + 1)
        separators = range(len(self.vocabulary) + 1, len(self.vocabulary) + 1 + len(texts))
        self.base = separators.stop
        ids = [[*map(self.vocabulary.__getitem__, words), end] for words, end in zip(texts, separators, strict=True)]
        self.ids = np.concatenate([np.array(part, dtype=np.int64) for part in ids])
        self.starts = np.cumsum([0, *(len(part) for part in ids[:-1])])
        self.spans = [(int(start), int(start) + len(words)) for start, words in zip(self.starts, texts, strict=True)]
        self.order = _suffix_order(self.ids)
        self.common = _common(self.ids, self.order)
        self.levels = self._make_levels()
        # How many suffixes of each group stand before each place in the array.
        of_suffix = np.repeat(np.array(groups), [len(part) for part in ids])[self.order]
        self.before = [np.concatenate([[0], np.cumsum(of_suffix == group)]) for group in range(max(groups) + 1)]
        self.reached = np.zeros(len(self.ids), dtype=np.int32)  # at a node's `low`: the depth that was found there
        # Of each group: longest run, where it begins in `ids`, name of the text that has it.
        self.best = [(0, 0, "") for _ in self.before]

    def _make_levels(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each depth d < `LEVELS`: (keys, lows) of the nodes of depth d + 1, in order; a key is the parent's low and the word."""
        levels = []
        parents = np.zeros(len(self.ids), dtype=np.int64)
        for depth in range(LEVELS):
            lows = np.flatnonzero(self.common <= depth)
            words = self.ids[np.minimum(self.order[lows] + depth, len(self.ids) - 1)]
            levels.append((parents[lows] * self.base + words, np.append(lows, len(self.ids))))
            parents = np.repeat(lows, np.diff(levels[-1][1]))
        return levels

    def look_up(self, block: Sequence[Sequence[str]], names: Sequence[str]) -> None:
        """Find what stands in these texts of the stream, given as words, and remember who has the longest run."""
        words = [word for text in block for word in (*text, "")]
        row = np.fromiter(map(self.vocabulary.get, words, repeat(0)), dtype=np.int64, count=len(words))
        ends = np.cumsum([len(text) + 1 for text in block])
        # `at`: the places in the row whose run still goes on. Behind each text stands a 0, where every run ends.
        at = np.flatnonzero(row)
        low, high, depth = np.zeros_like(at), np.full_like(at, len(self.ids)), 0
        while len(at):
            low, high, found = self._deeper(low, high, depth, row[at + depth])
            at, low, high, depth = at[found], low[found], high[found], depth + 1
            self.reached[low] = np.maximum(self.reached[low], depth)
            for group, (longest, _, _) in enumerate(self.best):
                if depth > longest and (found_there := self._first_of(group, low, high)):
                    walker, start = found_there
                    self.best[group] = (depth, start, names[int(np.searchsorted(ends, at[walker], side="right"))])

    def _deeper(
        self, low: np.ndarray, high: np.ndarray, depth: int, word: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(a,) each: the nodes one word further, and for which of them there is one."""
        if depth < LEVELS:
            keys, lows = self.levels[depth]
            wanted = low * self.base + word
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            return lows[place], lows[place + 1], (keys[place] == wanted) & (word > 0)
        low, high = self._bisect(low, high, depth, word), self._bisect(low, high, depth, word + 1)
        return low, high, low < high

    def _bisect(self, low: np.ndarray, high: np.ndarray, depth: int, word: np.ndarray) -> np.ndarray:
        """The first place in each interval where the word at `depth` is no less than `word`."""
        last = len(self.ids) - 1
        while (open_ := low < high).any():
            middle = (low + high) >> 1
            less = self.ids[np.minimum(self.order[np.minimum(middle, last)] + depth, last)] < word
            low, high = np.where(open_ & less, middle + 1, low), np.where(open_ & ~less, middle, high)
        return low

    def _first_of(self, group: int, low: np.ndarray, high: np.ndarray) -> tuple[int, int] | None:
        """(which interval, where a suffix in it begins) of the first interval that has a suffix of the group."""
        before = self.before[group]
        there = np.flatnonzero(before[high] > before[low])
        if not len(there):
            return None
        place = int(np.searchsorted(before, before[low[there[0]]], side="right")) - 1
        return int(there[0]), int(self.order[place])

    def matched(self) -> np.ndarray:
        """(N,) the longest run from each word on that stands in a text of the stream.

        A run found at one suffix is shared by its neighbours as far as they begin alike.
        """
        reached, common = self.reached.tolist(), self.common.tolist()
        for place in range(1, len(reached)):
            reached[place] = max(reached[place], min(reached[place - 1], common[place]))
        for place in range(len(reached) - 1, 0, -1):
            reached[place - 1] = max(reached[place - 1], min(reached[place], common[place]))
        matched = np.empty(len(reached), dtype=np.int64)
        matched[self.order] = reached
        return matched


def _suffix_order(ids: np.ndarray) -> np.ndarray:
    """(N,) where each suffix begins, in their order; by doubling the length by which they are compared."""
    rank, length = ids, 1
    while True:
        following = np.zeros_like(rank)
        following[:-length] = rank[length:] + 1
        key = rank * (int(rank.max()) + 2) + following
        order = np.argsort(key, kind="stable")
        ranks = np.concatenate([[0], np.cumsum(key[order][1:] != key[order][:-1])])
        rank = np.empty_like(ids)
        rank[order] = ranks
        length *= 2
        if ranks[-1] == len(ids) - 1:
            return order


def _common(ids: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(N,) how many words each suffix has in common with the one before it in order, 0 for the first (Kasai et al. 2001)."""
    words, n = [*ids.tolist(), -1], len(ids)
    previous = np.empty(n, dtype=np.int64)
    previous[order] = np.concatenate([[-1], order[:-1]])
    by_start, length = [0] * n, 0
    for start, other in enumerate(previous.tolist()):
        if other < 0:
            length = 0
            continue
        while words[start + length] == words[other + length]:
            length += 1
        by_start[start] = length
        length = max(0, length - 1)
    return np.array(by_start)[order]
