"""Find the main character of a story, if it is beyond doubt.

The main character is the one whom the narrator names first and clearly most often. There is no answer if another character is named
almost as often (two children who do everything together), if a mother or father is named as often, or if the story begins with an
unnamed character and is about that one. Quoted speech does not count.

A name is a capitalized word that no list excludes (pronouns, days, places, "Mommy", words that begin sentences) and for which there
is evidence: it is introduced ("a girl named ..."), is capitalized inside a sentence, begins several sentences, or is a known given
name.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

from mini_chat_gpt.assets import load
from mini_chat_gpt.tinystories.facts import MASK, mask_speech, sentence_spans

_MAX_SENTENCE = 2  # the main character is named in one of the first three sentences
_MIN_SENTENCES = 3  # an unknown word that begins this many sentences, and is never in lower case, is a name
_WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*")
_CAPITALIZED = r"[A-Z][A-Za-z]*(?:-[A-Za-z]+)*"
_RUN = re.compile(rf"[A-Z](?<=\b.)[A-Za-z]*(?:-[A-Za-z]+)*(?:(?:(?<=\bMr|\bDr)\.|(?<=\bMrs)\.)? {_CAPITALIZED})*")
_INTRODUCED = re.compile(
    r"[nc](?=amed |alled |ame )(?<=\b.)"
    r"(?<!city .)(?<!town .)(?<!village .)(?<!country .)(?<!place .)(?<!island .)(?<!planet .)"
    r"(?:(?<=n)amed|(?<=c)alled|(?<=n)ame (?:was|is)) (?:Mrs?\. |Dr\. )?([A-Z][A-Za-z]+(?: [A-Z][a-z]+)*)"
)
_BEFORE_SENTENCE = frozenset(("", ".", "!", "?", "…", ":", MASK, "\n", '"', "“", "”", "‘", "'", "*", "("))
_SECOND_OF_TWO = re.compile(r"[A-Z][a-z]*\.? and (?:[A-Z][a-z]*\.? )?$")
_WITH_COMPANION = re.compile(r"(?:,? and|,) (?:(?:his|her|the|little) (?:[a-z]+ ){0,2})?([A-Z][a-z]+)")
_UNNAMED = re.compile(
    r"\b(?:was|were|lived|is|came|saw) (?:an?|two|some) ([a-z][a-z ,-]*?)"
    r"(?= (?:who|that|which|in|on|at|with|living|and|near|by|lived|went|was|from|of|wanted|loved|liked)\b|[.,])"
)


@lru_cache(maxsize=1)
def _words() -> dict[str, frozenset[str]]:
    return {name: frozenset(words.split()) for name, words in load("character_words.yaml").items()}


@dataclass
class _Tally:
    """The characters whom the narrator names, by the bare name ("Tom" for "Mr. Tom")."""

    count: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)  # position of the first mention
    forms: dict[str, Counter[str]] = field(default_factory=dict)  # as written: "Tom", "Mr. Tom"
    kin: Counter[str] = field(default_factory=Counter)  # "Mommy", "Grandpa": people without a name


def main_character(story: str) -> str | None:
    """The name of the main character as the story writes it ("Sara", "Little Jack"), or None if there is any doubt."""
    narration = mask_speech(story)
    tally = _tally(story, narration)
    if not tally.count:
        return None
    name, count = tally.count.most_common(1)[0]
    if name != min(tally.first, key=tally.first.__getitem__) or max(tally.kin.values(), default=0) >= count:
        return None
    spans = sentence_spans(narration)
    sentence_of = {other: _sentence_at(spans, at) for other, at in tally.first.items()}
    if sentence_of[name] > _MAX_SENTENCE or not _stands_out(name, tally, sentence_of, narration):
        return None
    if sentence_of[name] > 0 and _begins_with_unnamed_character(narration, spans[0], count):
        return None
    return _as_written(name, tally, story)


def _tally(story: str, narration: str) -> _Tally:
    introduced = {word for match in _INTRODUCED.finditer(story) for word in _WORD.findall(match[1])}
    titles, kin, openers, tally = _words()["titles"], _words()["kin"], _words()["openers"], _Tally()
    inside: set[str] = set()
    beginning: dict[str, int] = {}
    runs: list[tuple[int, str, list[str]]] = []  # in the narrator's words: (position, as written, the words)
    for match in _RUN.finditer(story):
        written, start = match[0], match.start()
        if written.lower() in openers and written not in introduced:  # half of all runs
            continue
        run, begins = _without_openers(story, written, start, introduced)
        if not run:
            continue
        if begins:
            beginning[run[0]] = beginning.get(run[0], 0) + 1
        inside.update(run[1:] if begins else run)
        if narration[start] != MASK:
            runs.append((start, written[written.index(run[0]) :], run))
    inside |= {word for word, times in beginning.items() if times >= _MIN_SENTENCES}
    others: set[str] = set()  # words that are not names
    for start, written, run in runs:
        name = next((word for word in run if word in introduced or word.lower() not in titles), None)
        if len(run) == 1 and (name is None or name.lower() in kin):
            tally.kin[run[0].lower()] += 1
        elif name is not None and name not in others:
            if name not in tally.count:
                if not _is_name(name, story, introduced, inside):
                    others.add(name)
                    continue
                tally.first[name], tally.forms[name] = start, Counter()
            tally.count[name] += 1
            tally.forms[name][written] += 1
    return tally


def _without_openers(story: str, written: str, start: int, introduced: set[str]) -> tuple[list[str], bool]:
    """The words of a capitalized run without a leading "Then" or "One", and whether they begin the sentence."""
    openers = _words()["openers"]
    run = _WORD.findall(written)
    begins = story[max(0, start - 3) : start].rstrip(" ")[-1:] in _BEFORE_SENTENCE
    while run and run[0].lower() in openers and run[0] not in introduced:
        run, begins = run[1:], False
    return run, begins


def _is_name(word: str, story: str, introduced: set[str], inside: set[str]) -> bool:
    words, lower = _words(), word.lower()
    if len(word) < 2 or lower in words["kin"]:
        return False
    if word in introduced:
        return True
    if lower in words["places"] or lower in words["calendar"]:
        return False
    # A word that the story also writes in lower case is a thing or a kind of animal, not a name.
    return lower in words["names"] or (word in inside and find_word(story, lower) is None)


def _sentence_at(spans: list[tuple[int, int]], at: int) -> int:
    return next((number for number, (_, end) in enumerate(spans) if at < end), len(spans))


def _stands_out(name: str, tally: _Tally, sentence_of: dict[str, int], narration: str) -> bool:
    """Whether no other character is named almost as often. The margin is larger for a companion from the beginning."""
    count, at = tally.count[name], tally.first[name]
    if _SECOND_OF_TWO.search(narration[max(0, at - 20) : at]):  # "Dog and Cat", "Mr. and Mrs. Beaver"
        return False
    companion = _WITH_COMPANION.match(narration, at + len(name))
    others = [other for other in tally.count if other != name]
    if not others:
        alone = companion is None or companion[1].lower() in _words()["kin"]
        return alone and (count >= 2 or (sentence_of[name] == 0 and name.lower() in _words()["names"]))
    most = max(tally.count[other] for other in others)
    if min(sentence_of[other] for other in others) > sentence_of[name]:
        times = 1.3
    else:
        times = 3 if companion else 1.6
    return count >= most + 2 and count >= times * most


def _begins_with_unnamed_character(narration: str, first_sentence: tuple[int, int], count: int) -> bool:
    """ "There was a bossy giant. ... One day a girl named Amy": about the giant, if he is mentioned half as often as Amy."""
    for match in _UNNAMED.finditer(narration[slice(*first_sentence)]):
        kind = match[1].split()[-1]
        if 2 * len(re.findall(rf"\b[Tt]he (?:[a-z]+ )?{re.escape(kind)}\b", narration)) >= count:
            return True
    return False


def _as_written(name: str, tally: _Tally, story: str) -> str | None:
    """The form that the story uses; None if several characters have the same bare name ("Mama Bear", "Baby Bear")."""
    forms = tally.forms[name]
    if sum(form != name for form in forms) > 1:
        return None
    form = forms.most_common(1)[0][0]
    introduced = any(find_word(story, f"{how} {name}") for how in ("named", "called", "name was"))
    return name if form != name and introduced else form


def find_word(text: str, word: str) -> tuple[int, int] | None:
    """(start, end) of the first occurrence of `word` as a whole word, or None."""
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        if not _is_word_character(text[start - 1 : start]) and not _is_word_character(text[end : end + 1]):
            return start, end
        start = text.find(word, start + 1)
    return None


def _is_word_character(character: str) -> bool:
    return character.isalnum() or character == "_"


def is_opener(word: str) -> bool:
    """Whether a capitalized word is a pronoun, "Then" or the like, and therefore not a name."""
    return word.lower() in _words()["openers"]
