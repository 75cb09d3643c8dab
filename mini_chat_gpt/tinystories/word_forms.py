"""Check whether a text uses a word in any form: "run" in "The fox was running.", "happy" in "They lived happily."

The forms of an English word are made by rules, and irregular ones come from a table (assets/word_forms.yaml). Expanding the word
to its forms, instead of reducing the words of the text to stems, distinguishes words that look alike: "hoped" is not a form of
"hop", and "stared" is not one of "star".
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import islice

from mini_chat_gpt.assets import load

_WORD = re.compile(r"\w+")
_CLITIC = re.compile(r"(?<=\w)['’]\w*")
# "run", "stop", "quit": the last consonant is doubled. "begin", "visit", "travel": it may be, depending on the stress.
_ONE_SYLLABLE = re.compile(r"(?:[^aeiouy]|qu)*[aeiouy][^aeiouywx]")
_SHORT_VOWEL = re.compile(r".*(?:[^aeiou]|qu)[aeiou][^aeiouwxy]")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, split at hyphens. "Tom's" and "isn't" become "tom" and "isn"."""
    return _WORD.findall(_CLITIC.sub("", text.lower()))


def uses(text: str, word: str) -> bool:
    """Whether `text` contains `word` (or several words, as in "ice cream") in any of its forms, ignoring case.

    A `word` that is not in its base form ("smiled") matches itself and the word that it is a form of ("smile").
    """
    parts, words = words_of(word), words_of(text)
    starts = range(len(words) - len(parts) + 1) if parts else range(0)
    return any(all(_same(words[start + i], part) for i, part in enumerate(parts)) for start in starts)


def first_use(text: str, word: str) -> tuple[int, int] | None:
    """(start, end) of the first word of `text` that is `word` in any form, None if there is none; see `uses`."""
    parts = words_of(word)
    if not parts:
        return None
    words = _lower_case_words(text)
    match = next((other for other in dict.fromkeys(words) if _same(other, parts[0])), None)
    if match is None:
        return None
    return next(islice(_WORD.finditer(text), words.index(match), None)).span()


@lru_cache(maxsize=8)  # a task searches one text for several words
def _lower_case_words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _same(one: str, other: str) -> bool:
    return one == other or one in forms(other) or other in forms(one)


IRREGULAR = ("verbs", "also_regular", "nouns", "adjectives")


@lru_cache(maxsize=1 << 15)
def forms(word: str) -> frozenset[str]:
    """All forms of a base form: plural, past, -ing, -er, -est, -ly, the irregular ones, and the word itself."""
    table, word = _table(), word.lower()
    irregular = {form for name in IRREGULAR for form in table[name].get(word, ())}
    endings = ["ing", "er", "est"] if word in table["verbs"] else ["ed", "ing", "er", "est"]
    regular = _plurals(word) | _adverbs(word) | {form for ending in endings for form in _extended(word, ending)}
    return frozenset({word} | irregular | (regular - table["unrelated"].keys()))


def _plurals(word: str) -> set[str]:
    """The plural of a noun, or the third person of a verb."""
    if re.search(r"[^aeiou]y$", word):
        return {f"{word[:-1]}ies"}
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return {f"{word}es"}
    return {f"{word}s", f"{word}es"} if word.endswith("o") else {f"{word}s"}


def _adverbs(word: str) -> set[str]:
    if word.endswith("y"):
        return {f"{word[:-1]}ily"}
    return {f"{word[:-1]}y"} if re.search(r"[^aeiou]le$", word) else {f"{word}ly"}  # gently; nicely


def _extended(word: str, ending: str) -> set[str]:
    """The word with an ending that begins with a vowel."""
    if ending == "ing":
        if word.endswith("ie"):
            return {f"{word[:-2]}ying"}  # lying
        if re.search(r"[^eoy]e$", word):
            return {f"{word[:-1]}ing"}
    elif word.endswith("e"):
        return {word + ending[1:]}
    elif re.search(r"[^aeiou]y$", word):
        return {f"{word[:-1]}i{ending}"}
    doubled = word + word[-1:] + ending
    if _ONE_SYLLABLE.fullmatch(word):
        return {doubled}
    return {word + ending, doubled} if _SHORT_VOWEL.fullmatch(word) else {word + ending}


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, list[str]]]:
    raw = load("word_forms.yaml")
    unrelated = {word: [word] for word in raw.pop("unrelated").split()}
    table = {name: {word: forms.split() for word, forms in entries.items()} for name, entries in raw.items()}
    return table | {"unrelated": unrelated}
