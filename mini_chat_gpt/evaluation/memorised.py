"""What a model's stories share with the stories it was trained on: does it tell, or recite?

For each text: the longest run of words that also stands in a training text, and the share of its runs of n words that do.
Real stories that no model was trained on share phrases with the training stories too ("once upon a time there was a little
girl"); what they share is the yardstick. A longer text has more chances of a long run, so the yardstick should be about as long.

The training texts, which may be far larger than memory, go by once as a stream; kept is an index of the texts in question
(shared_runs.py). Runs are the same word for word; there are no hashes that could collide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.evaluation.ngram_overlap import RunIndex

BLOCK = 1 << 17  # training words looked at together
SHOWN = 200  # characters of a training text

# A run of letters and digits; an apostrophe within it parts nothing.
_WORD = re.compile(r"[^\W_]+(?:['’]+[^\W_]+)*")
_ASCII = {code: None if chr(code) == "'" else " " for code in range(128) if not chr(code).isalnum()}


@dataclass(frozen=True)
class Passage:
    """The longest run of words that a text shares with a training text."""

    number: int  # of the text it was found in
    n_words: int
    text: str  # as it stands there
    source: str  # how the training text begins that has it too


@dataclass(frozen=True)
class Shared:
    """What each of some texts shares with the training texts."""

    n_words: tuple[int, ...]
    longest: tuple[int, ...]  # words
    shares: tuple[float | None, ...]  # of its runs of n words, from 0 to 1; None: it is shorter than that
    passage: Passage | None  # None: not one word is shared

    @property
    def mean_longest(self) -> float:
        return fmean(self.longest)

    @property
    def median_longest(self) -> float:
        return float(median(self.longest))

    @property
    def mean_share(self) -> float | None:
        """Over the texts that are long enough; None if none is."""
        told = [share for share in self.shares if share is not None]
        return fmean(told) if told else None


@dataclass(frozen=True)
class Memorised:
    """What each group of texts shares with the training texts."""

    n: int
    shared: dict[str, Shared]
    n_training_texts: int
    n_training_words: int


def memorised(
    groups: Mapping[str, Sequence[str]],
    training_texts: Iterable[str],
    n: int = 8,
    progress: Callable[[int], None] | None = None,
) -> Memorised:
    """What groups of texts share with the training texts, each run within one text; see `words_of` for words.

    The training texts are read once, a block at a time. Memory goes with the words of the groups' texts: about 300 bytes for
    each. `progress` is called with the number of training characters read. Raises UserError for no group, a group without
    a text, and for n < 1.
    """
    empty = [name for name, texts in groups.items() if not texts]
    if empty or not groups:
        where = f" in {', '.join(empty)}" if empty else ""
        raise UserError(f"There is no text to look up{where}; generate at least one.")
    if n < 1:
        raise UserError(f"Runs of {n} words can't be looked up; n must be at least 1.")
    texts = [text for ours in groups.values() for text in ours]
    numbers = [number for number, ours in enumerate(groups.values()) for _ in ours]
    index = RunIndex([words_of(text) for text in texts], numbers)
    n_texts = n_words = n_characters = 0
    for block in _blocks(training_texts):
        index.look_up([words for _, words in block], [text[:SHOWN] for text, _ in block])
        n_texts += len(block)
        n_words += sum(len(words) for _, words in block)
        n_characters += sum(len(text) for text, _ in block)
        if progress is not None:
            progress(n_characters)
    matched = index.matched()
    shared = {
        name: _shared(index, matched, ours, number, numbers.index(number), n)
        for number, (name, ours) in enumerate(groups.items())
    }
    return Memorised(n, shared, n_texts, n_words)


def of_equal_length(text: str, other: str) -> tuple[str, str]:
    """Both texts, the longer one cut to as many words as the shorter one has."""
    spans = [[match.span() for match in _WORD.finditer(each)] for each in (text, other)]
    n = min(map(len, spans))
    cut = [each[: where[n - 1][1]] if n else "" for each, where in zip((text, other), spans, strict=True)]
    return cut[0], cut[1]


def words_of(text: str) -> list[str]:
    """The words of a text without case and punctuation: runs of letters and digits, apostrophes left out ("isnt")."""
    if text.isascii():  # the same, five times as fast
        return text.lower().translate(_ASCII).split()
    return " ".join(_WORD.findall(text)).casefold().replace("'", "").replace("’", "").split()


def _blocks(texts: Iterable[str]) -> Iterator[list[tuple[str, list[str]]]]:
    """Texts with their words, as many at a time as have `BLOCK` words."""
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


def _shared(index: RunIndex, matched: np.ndarray, texts: Sequence[str], group: int, first: int, n: int) -> Shared:
    """Read off what the texts of a group share, the first of which has this number; matched (N,) is `RunIndex.matched`'s."""
    runs = [matched[start:stop] for start, stop in index.spans[first : first + len(texts)]]
    best, place, source = index.best[group]
    passage = None
    if best:
        number = int(np.searchsorted(index.starts, place, side="right")) - 1
        spans = [match.span() for match in _WORD.finditer(texts[number - first])]
        begin = place - int(index.starts[number])
        text = texts[number - first][spans[begin][0] : spans[begin + best - 1][1]]
        passage = Passage(number - first, best, text, source)
    return Shared(
        n_words=tuple(len(run) for run in runs),
        longest=tuple(int(run.max(initial=0)) for run in runs),
        shares=tuple(float((run[: len(run) - n + 1] >= n).mean()) if len(run) >= n else None for run in runs),
        passage=passage,
    )
