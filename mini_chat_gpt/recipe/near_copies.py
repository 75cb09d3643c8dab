"""Near copies of texts: pairs whose sets of words are nearly equal."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from mini_chat_gpt.common.text import word_set

SIMILAR = 0.8
"""Two texts are near copies if this share of the words in either is in both (Jaccard's index), ignoring case and order."""


def near_copies(texts: Sequence[str], known: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(number in `texts`, number in `known`) of each text that has a near copy among the known ones, with the first of them.

    Sets with an index of at least s share a word among the first n - ⌈s·n⌉ + 1 of the n words of either, in any fixed order.
    With the rarest words first, few pairs have to be compared (Chaudhuri et al. 2006, "A primitive operator for similarity
    joins in data cleaning").
    """
    sets, known_sets = [word_set(text) for text in texts], [word_set(text) for text in known]
    counts = Counter(word for words in known_sets for word in words)

    def rare_words(words: frozenset[str]) -> list[str]:
        ordered = sorted(words, key=lambda word: (counts[word], word))
        return ordered[: len(words) - math.ceil(SIMILAR * len(words)) + 1]

    with_word: dict[str, list[int]] = defaultdict(list)
    for number, words in enumerate(known_sets):
        for word in rare_words(words):
            with_word[word].append(number)
    for number, words in enumerate(sets):
        candidates = sorted({other for word in rare_words(words) for other in with_word.get(word, ())})
        for other in candidates:
            if len(words & known_sets[other]) >= SIMILAR * len(words | known_sets[other]):
                yield number, other
                break
