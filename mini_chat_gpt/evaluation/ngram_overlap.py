"""How much of some texts also occurs, word for word, in training texts: n-gram overlap and the longest shared run of words.

The training texts can be far larger than memory. They are read once, a block at a time. For each block the search keeps every
position whose last words also occur in one of the texts, and extends all of these matches by one word at a time. An n-gram is
identified by the pair (its first n - 1 words, its last word), not by a hash, so the counts are exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat

import numpy as np

from mini_chat_gpt.common.errors import UserError

BLOCK = 1 << 18  # training words that are searched together
SOURCE_LENGTH = 200  # characters of a training text that a passage quotes

# A run of letters and digits; an apostrophe inside a word doesn't split it.
_WORD = re.compile(r"[^\W_]+(?:['’]+[^\W_]+)*")
_ASCII = {code: None if chr(code) == "'" else " " for code in range(128) if not chr(code).isalnum()}


@dataclass(frozen=True)
class Passage:
    """The longest run of words that a group of texts shares with a training text."""

    n_words: int
    text: str  # as written in the text of the group
    source: str  # the beginning of the training text that contains it


@dataclass(frozen=True)
class Overlap:
    """What each text of a group shares with the training texts."""

    longest: tuple[int, ...]  # words of the longest shared run
    shares: tuple[float | None, ...]  # of the text's n-grams, from 0 to 1; None for a text shorter than n words
    passage: Passage | None  # None if the group shares no word


def ngram_overlap(
    groups: Mapping[str, Sequence[str]],
    training_texts: Iterable[str],
    n: int = 8,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Overlap], int]:
    """(overlap by group, number of training texts). Runs don't cross from one text into the next; `words_of` defines a word.

    `progress` is called with the number of training characters read so far. Raises UserError if there is no group, if a group
    has no text, and for n < 1.
    """
    if not groups or not all(groups.values()):
        raise UserError("There is no text to search for; generate at least one.")
    if n < 1:
        raise UserError(f"n-grams of {n} words can't be searched for; n must be at least 1.")
    search = _Search(groups, n)
    n_texts = n_characters = 0
    for block in _blocks(training_texts):
        search.add_block(block)
        n_texts += len(block)
        n_characters += sum(len(text) for text, _ in block)
        if progress is not None:
            progress(n_characters)
    return {name: search.overlap(number, name) for number, name in enumerate(groups)}, n_texts


class _Search:
    """The texts of all groups as one row of word ids, and what has been found of them so far."""

    def __init__(self, groups: Mapping[str, Sequence[str]], n: int) -> None:
        self.groups, self.n = groups, n
        words = [words_of(text) for texts in groups.values() for text in texts]
        # Ids count from 1. In the row of the texts, 0 ends each text. In a training block, `self.unknown` stands for the end
        # of a text and for each word that the texts don't have. Neither id occurs in the other row, so no match crosses it.
        self.vocabulary: dict[str, int] = {}
        for word in (word for text in words for word in text):
            self.vocabulary.setdefault(word, len(self.vocabulary) + 1)
        self.unknown = len(self.vocabulary) + 1
        self.ids = np.array([i for text in words for i in (*map(self.vocabulary.__getitem__, text), 0)], dtype=np.int64)
        self.starts = np.array([0, *accumulate(len(text) + 1 for text in words)])
        self.text_of = np.repeat(np.arange(len(words)), np.diff(self.starts))  # (words,) number of the text
        self.group_of = np.repeat(np.arange(len(groups)), [len(texts) for texts in groups.values()])  # (texts,)
        self.longest = np.zeros(len(words), dtype=np.int64)
        self.shared = np.zeros(
            len(self.ids), dtype=bool
        )  # whether the n-gram that begins here occurs in a training text
        self.best = [(0, 0, "") for _ in groups]  # length of the longest run, its position in `ids`, source

    def add_block(self, block: Sequence[tuple[str, list[str]]]) -> None:
        """Search for the texts in a block of training texts, each with its words."""
        words = [word for _, of_text in block for word in (*of_text, "")]
        row = np.fromiter(map(self.vocabulary.get, words, repeat(self.unknown)), dtype=np.int64, count=len(words))
        ends = np.cumsum([len(of_text) + 1 for _, of_text in block])
        # The two sides of each match: positions in `row` and in `ids`. A node identifies the n-gram that begins at a position.
        at, mine = np.arange(len(row)), np.arange(len(self.ids))
        node, my_node = np.zeros_like(at), np.zeros_like(mine)
        length = 0
        while True:
            keys, my_node = np.unique(my_node * (self.unknown + 1) + self.ids[mine + length], return_inverse=True)
            wanted = node * (self.unknown + 1) + row[at + length]
            node = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            match = keys[node] == wanted
            at, node = at[match], node[match]
            if not len(at):
                return
            occurs = np.zeros(len(keys), dtype=bool)
            occurs[node] = True
            mine, my_node = mine[occurs[my_node]], my_node[occurs[my_node]]
            length += 1
            self._record(length, mine)
            for group in set(self.group_of[self.text_of[mine]].tolist()):
                if length > self.best[group][0]:
                    first = int(np.argmax(self.group_of[self.text_of[mine]] == group))
                    there = int(at[np.argmax(node == my_node[first])])
                    text, _ = block[int(np.searchsorted(ends, there, side="right"))]
                    self.best[group] = (length, int(mine[first]), text[:SOURCE_LENGTH])

    def _record(self, length: int, positions: np.ndarray) -> None:
        """The runs of `length` words that begin at these positions of `ids` occur in a training text."""
        self.longest[self.text_of[positions]] = np.maximum(self.longest[self.text_of[positions]], length)
        if length == self.n:
            self.shared[positions] = True

    def overlap(self, group: int, name: str) -> Overlap:
        """The result for one group."""
        numbers = np.flatnonzero(self.group_of == group)
        shares = []
        for number in numbers:
            start, stop = self.starts[number], self.starts[number + 1] - self.n  # n - 1 words and the 0 begin no n-gram
            shares.append(float(self.shared[start:stop].mean()) if stop > start else None)
        length, position, source = self.best[group]
        passage = None
        if length:
            number = self.text_of[position]
            text = self.groups[name][number - numbers[0]]
            spans = [match.span() for match in _WORD.finditer(text)][position - self.starts[number] :]
            passage = Passage(length, text[spans[0][0] : spans[length - 1][1]], source)
        return Overlap(tuple(self.longest[numbers].tolist()), tuple(shares), passage)


def words_of(text: str) -> list[str]:
    """The words of a text without case and punctuation: runs of letters and digits, without apostrophes ("isnt")."""
    if text.isascii():  # same result, five times as fast
        return text.lower().translate(_ASCII).split()
    return " ".join(_WORD.findall(text)).casefold().replace("'", "").replace("’", "").split()


def cut_to_same_length(text: str, other: str) -> tuple[str, str]:
    """Both texts, the longer one cut to the number of words of the shorter one."""
    spans = [[match.span() for match in _WORD.finditer(each)] for each in (text, other)]
    n = min(map(len, spans))
    cut = [each[: of_words[n - 1][1]] if n else "" for each, of_words in zip((text, other), spans, strict=True)]
    return cut[0], cut[1]


def _blocks(texts: Iterable[str]) -> Iterator[list[tuple[str, list[str]]]]:
    """Texts with their words, in blocks of at least `BLOCK` words."""
    block, size = [], 0
    for text in texts:
        words = words_of(text)
        block.append((text, words))
        size += len(words) + 1
        if size >= BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block
