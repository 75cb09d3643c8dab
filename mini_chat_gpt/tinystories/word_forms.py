"""Does a text use a word, in whichever form? "run" in "The fox was running.", "happy" in "They lived happily."

All forms that an English word can have are made by rule, and from a small table where no rule holds
(data/word_forms.yaml). Going from the word to its forms, not from a text's words to their stems, keeps apart what only
looks alike: "hoped" is no form of "hop", nor "stared" one of "star".
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import islice

from mini_chat_gpt.assets import load

_WORD = re.compile(r"\w+")
_CLITIC = re.compile(r"(?<=\w)['’]\w*")
# "run", "stop", "quit": their last consonant is doubled. "begin", "visit", "travel": it may be, the stress decides.
_ONE_SYLLABLE = re.compile(r"(?:[^aeiouy]|qu)*[aeiouy][^aeiouywx]")
_SHORT_VOWEL = re.compile(r".*(?:[^aeiou]|qu)[aeiou][^aeiouwxy]")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, hyphens apart; "Tom's" and "isn't" count as "tom" and "isn"."""
    return _WORD.findall(_CLITIC.sub("", text.lower()))


def uses(text: str, word: str) -> bool:
    """Whether `text` has `word` (or words, as in "ice cream") in any of its forms; case doesn't matter.

    A `word` that isn't in its base form ("smiled") is there as it is, or as the word that it is a form of ("smile").
    """
    wanted, found = words_of(word), words_of(text)
    places = range(len(found) - len(wanted) + 1) if wanted else range(0)
    return any(all(_same(found[place + i], part) for i, part in enumerate(wanted)) for place in places)


def first_use(text: str, word: str) -> tuple[int, int] | None:
    """(start, end) of the first word of `text` that is `word` in any form, None if there is none; see `uses`."""
    wanted = words_of(word)
    if not wanted:
        return None
    words = _in_small_letters(text)
    found = next((word for word in dict.fromkeys(words) if _same(word, wanted[0])), None)
    if found is None:
        return None
    return next(islice(_WORD.finditer(text), words.index(found), None)).span()


@lru_cache(maxsize=8)  # several words are looked for in one text
def _in_small_letters(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _same(found: str, wanted: str) -> bool:
    return found == wanted or found in forms(wanted) or wanted in forms(found)


IRREGULAR = ("verbs", "also_regular", "nouns", "adjectives")


@lru_cache(maxsize=1 << 15)
def forms(word: str) -> frozenset[str]:
    """Every form of a word in its base form: plural, past, -ing, -er, -est, -ly and the irregular ones, and itself."""
    table, word = _table(), word.lower()
    irregular = {form for name in IRREGULAR for form in table[name].get(word, ())}
    endings = ["ing", "er", "est"] if word in table["verbs"] else ["ed", "ing", "er", "est"]
    made = _plurals(word) | _adverbs(word) | {form for ending in endings for form in _extended(word, ending)}
    return frozenset({word} | irregular | (made - table["unrelated"].keys()))


def _plurals(word: str) -> set[str]:
    """Plural of a noun, third person of a verb."""
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
