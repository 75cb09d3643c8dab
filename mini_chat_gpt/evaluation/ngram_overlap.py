"""How much of some texts also occurs, word for word, in training texts: n-gram overlap and the longest shared run of words.

The training texts can be far larger than memory. They are read once, a block at a time. In each block the search begins with the
words that also occur in the texts, and extends all matches together by one word at a time. N-grams are not hashed, so the counts
are exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, repeat

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
    """The texts of all groups as one row of word ids, with the matches so far."""

    def __init__(self, groups: Mapping[str, Sequence[str]], n: int) -> None:
        self.groups, self.n = groups, n
        words = [words_of(text) for texts in groups.values() for text in texts]
        # Ids count from 1. In `ids`, 0 is the end of a text. In a training block, `unknown` is the end of a text, or a word that
        # the texts don't have. Each of the two ids occurs on one side only, so no match includes it.
        self.vocabulary: dict[str, int] = {}
        for word in (word for text in words for word in text):
            self.vocabulary.setdefault(word, len(self.vocabulary) + 1)
        self.unknown = len(self.vocabulary) + 1
        self.base = self.unknown + 1
        self.ids = np.array([i for text in words for i in (*map(self.vocabulary.__getitem__, text), 0)], dtype=np.int64)
        self.starts = np.array([0, *accumulate(len(text) + 1 for text in words)])
        self.text_of = np.repeat(np.arange(len(words)), np.diff(self.starts))  # (words,) number of the text
        self.group_of = np.repeat(np.arange(len(groups)), [len(texts) for texts in groups.values()])  # (texts,)
        self.longest = np.zeros(len(words), dtype=np.int64)
        # Whether the n-gram that begins at each position occurs in a training text.
        self.shared = np.zeros(len(self.ids), dtype=bool)
        self.best = [(0, 0, "") for _ in groups]  # length of the longest run, its position in `ids`, source

    def add_block(self, block: Sequence[tuple[str, list[str]]]) -> None:
        """Match the texts with a block of training texts, each given with its words."""
        words = [word for _, of_text in block for word in (*of_text, "")]
        row = np.fromiter(map(self.vocabulary.get, words, repeat(self.unknown)), dtype=np.int64, count=len(words))
        ends = np.cumsum([len(of_text) + 1 for _, of_text in block])
        # Positions in the block and in `ids` whose n-grams occur on the other side. Equal n-grams have equal names.
        row_at, ids_at = np.arange(len(row)), np.arange(len(self.ids))
        row_name, ids_name = np.zeros_like(row_at), np.zeros_like(ids_at)
        for length in count(1):
            # The pair (name of the first n - 1 words, last word) identifies an n-gram; its rank is the new name.
            keys, ids_name = np.unique(ids_name * self.base + self.ids[ids_at + length - 1], return_inverse=True)
            row_key = row_name * self.base + row[row_at + length - 1]
            row_name = np.minimum(np.searchsorted(keys, row_key), len(keys) - 1)
            match = keys[row_name] == row_key
            row_at, row_name = row_at[match], row_name[match]
            if not len(row_at):
                return
            occurs = np.zeros(len(keys), dtype=bool)
            occurs[row_name] = True
            ids_at, ids_name = ids_at[occurs[ids_name]], ids_name[occurs[ids_name]]
            self.longest[self.text_of[ids_at]] = np.maximum(self.longest[self.text_of[ids_at]], length)
            if length == self.n:
                self.shared[ids_at] = True
            groups = self.group_of[self.text_of[ids_at]]
            for group in np.flatnonzero(np.bincount(groups)).tolist():
                if length > self.best[group][0]:
                    first = int(np.argmax(groups == group))
                    place = row_at[np.argmax(row_name == ids_name[first])]
                    source, _ = block[int(np.searchsorted(ends, place, side="right"))]
                    self.best[group] = (length, int(ids_at[first]), source[:SOURCE_LENGTH])

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
