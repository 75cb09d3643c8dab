"""Tells one story of the sample data set from a plot, and knows everything about it: who, what, how it ends, and why.

The writing lives in data/sample_plots.yaml (its head explains the notation) and data/sample_words.yaml. Here is only
the machinery: a cast is drawn, the beats whose conditions hold are worded, slots are filled, and what must be true of
every story is checked (length, the main character named most, no fact in the summary that the story leaves out). A
telling that fails is thrown away and told anew. Only `Random.random` is used, whose sequence Python promises to keep.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any, TypeVar

from mini_chat_gpt.assets import load
from mini_chat_gpt.tinystories.records import FEATURES

T = TypeVar("T")
Entry = Mapping[str, Any]

MIN_WORDS, MAX_WORDS = 60, 200
# Out of every five pairs of a main character's name and a main thing, one is kept for the valid part.
HELD_OUT_ONE_IN = 5
CLOSING_SHARE, DOUBLE_MORALS = 0.6, 0.5
PRONOUNS = {
    "boy": {"he": "he", "him": "him", "his": "his", "hers": "his", "himself": "himself"},
    "girl": {"he": "she", "him": "her", "his": "her", "hers": "hers", "himself": "herself"},
}
# Slots that must stand in the story if they stand in its summary.
FACTS = {"hero", "pal", "elder", "stranger", "thing", "adj", "place", "sad", "glad", "scared", "angry"}
VOWEL_SOUND = re.compile(r"(?!uni|use|one|eu)[aeiou]|hour|honest", re.IGNORECASE)
_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
_SLOT = re.compile(r"<(\w+)>")
_ARTICLE = re.compile(r"\b([Aa])n? (?=(\w+))")
_SPEECH = re.compile(r'"[^"]*"')
_REASON = re.compile(r"because ([^.!?\"]+)")


@dataclass(frozen=True)
class Story:
    """A finished story and what is known for certain about it."""

    plot: str
    seen: bool
    """Training shows this plot."""
    text: str
    main_character: str
    character_kind: str
    """What the main character is: girl, boy, fox, ..."""
    thing: str
    adjective: str
    ending: str
    """"good" or "bad"."""
    features: tuple[str, ...]
    """All that hold, in the order of FEATURES."""
    moral: str | None
    """As a sentence; the story's last line states it."""
    why: tuple[dict[str, str], ...]
    """Questions that the story answers with a "because", and the answers."""
    summary: str


@dataclass(frozen=True)
class Wish:
    """What a story is to be like, drawn before it is told."""

    valid: bool
    bad: bool
    talk: bool
    moral: bool
    new_name: bool
    """The main character gets a name that training never shows."""


def is_held_out(name: str, thing: str) -> bool:
    """Whether this main character and this main thing meet only in the valid part."""
    return zlib.crc32(f"{name}/{thing}".encode()) % HELD_OUT_ONE_IN == 0


def pick(rng: Random, items: Sequence[T]) -> T:
    """One of the items; unlike `Random.choice` the same on every version of Python."""
    return items[int(rng.random() * len(items))]


class Storyteller:
    """All plots and word lists, ready to tell."""

    def __init__(self) -> None:
        self.words = load("sample_words.yaml")
        data = load("sample_plots.yaml")
        self.plots: list[Entry] = data["plots"]
        self.openings, self.closings = data["openings"], data["closings"]
        self.lead_ins: Entry = data["moral_lead_ins"]

    def tell(self, plot: Entry, wish: Wish, rng: Random) -> Story:
        """A story of this plot that is as wished; raises RuntimeError if the plot's texts never yield a valid one."""
        for _ in range(1000):
            story = self._try(plot, wish, rng)
            if story is not None:
                return story
        raise RuntimeError(f"plot {plot['plot']} yields no valid story")

    def _try(self, plot: Entry, wish: Wish, rng: Random) -> Story | None:
        telling = Telling(self._cast(plot, wish, rng), rng)
        telling.conditions |= {"bad" if wish.bad else "good", "talk" if wish.talk else "quiet"}
        closing = {"any": self.closings["bad" if wish.bad else "good"]}
        for beat in [*self.openings, *plot["beats"], *([closing] if rng.random() < CLOSING_SHARE else [])]:
            telling.add(beat)
        mentioned = telling.mentioned()
        line, moral = self._moral(plot, telling) if wish.moral else ("", None)
        text = telling.lay_out(line)
        summary = telling.fill(telling.choose(plot["summary"]))
        if not telling.mentioned() <= mentioned or not is_sound(text, telling):
            return None
        return Story(
            plot=plot["plot"],
            seen=not plot.get("unseen", False),
            text=text,
            main_character=telling.slots["hero"],
            character_kind=telling.slots["kind"],
            thing=telling.slots["thing"],
            adjective=telling.slots["adj"],
            ending="bad" if wish.bad else "good",
            features=telling.flags(Dialogue=wish.talk, BadEnding=wish.bad, MoralValue=wish.moral),
            moral=moral,
            why=tuple(telling.why),
            summary=summary,
        )

    def _moral(self, plot: Entry, telling: Telling) -> tuple[str, str]:
        """The line that ends the story, and the bare moral as a sentence."""
        kind = "clause" if telling.rng.random() < 0.7 else "order"
        options = plot["morals" if kind == "clause" else "orders"]
        moral = telling.fill(telling.choose(options))
        if telling.rng.random() < DOUBLE_MORALS:  # so many different ones that they have to be read, not remembered
            second = telling.fill(telling.choose(options))
            if second[:10] != moral[:10] and " and " not in moral + second:
                moral = f"{moral} and {second}"
        line = telling.fill(pick(telling.rng, self.lead_ins[kind]).replace("<moral>", moral))
        return line, f"{capitalized(moral)}."

    def _cast(self, plot: Entry, wish: Wish, rng: Random) -> dict[str, str]:
        """Every slot of one story: who, what, where, feelings, and the way that the plot takes."""
        words, way = self.words, dict(pick(rng, plot.get("ways", [{}])))
        group = words["things"][pick(rng, plot["things"])]
        species = pick(rng, plot["heroes"]) if rng.random() < 0.6 else plot["heroes"][0]
        hero, thing = "", ""
        while not hero or (not wish.new_name and is_held_out(hero, thing) != wish.valid):
            hero, gender = self._name(species, rng, self.words["names_only_in_valid" if wish.new_name else "names"])
            thing = pick(rng, group["nouns"])
        other = pick(rng, [noun for noun in group["nouns"] if noun != thing])
        adjective = pick(rng, [word for word in group["adjectives"] if word != thing])
        taken = f"{thing} {other} {' '.join(way.values())}"
        kinds = [kind for kind in words["animal_kinds"] if kind not in taken]
        slots = {"hero": hero, "species": species, "thing": thing, "other": other, "adj": adjective}
        slots["kind"] = gender if species == "child" else pick(rng, kinds)
        slots |= pronouns("", gender) | self._others(slots, kinds, rng) | self._scene(plot, rng) | way
        for mood, feelings in words["feelings"].items():
            slots[mood] = pick(rng, feelings)
            slots[f"{mood}2"] = pick(rng, [feeling for feeling in feelings if feeling != slots[mood]])
        return slots

    @staticmethod
    def _name(species: str, rng: Random, names: Entry) -> tuple[str, str]:
        """A name, and girl or boy."""
        gender = pick(rng, ["girl", "boy"])
        return pick(rng, names[gender if species == "child" else "animal"]), gender

    def _others(self, slots: Mapping[str, str], kinds: Sequence[str], rng: Random) -> dict[str, str]:
        """A friend, a grown-up of the family and a stranger, with their pronouns."""
        pal, gender = slots["hero"], ""
        while pal == slots["hero"]:
            pal, gender = self._name(slots["species"], rng, self.words["names"])
        elder, elder_gender = pick(rng, self.words["elders"])
        stranger, stranger_gender = pick(rng, self.words["strangers"])
        pal_kind = gender if slots["species"] == "child" else pick(rng, kinds)
        friend = ["<his> friend <pal>", "<his> friend <pal>", "<his> best friend <pal>", "<his> cousin <pal>"]
        others = {"pal": pal, "friend": pick(rng, friend), "elder": elder, "stranger": stranger}
        others["someone"] = pick(rng, [others["friend"], f"a {pal_kind} named <pal>"])
        others |= pronouns("pal_", gender) | pronouns("elder_", elder_gender) | pronouns("stranger_", stranger_gender)
        return others

    def _scene(self, plot: Entry, rng: Random) -> dict[str, str]:
        """Time, weather, place and the little things of everyday life."""
        words = self.words
        weather, part = pick(rng, words["weather"]), pick(rng, ["day", "morning", "afternoon"])
        plain = pick(rng, [f"one {part}", f"one {part}", "one fine day", "early one morning"])
        slots = {
            "trait": pick(rng, words["traits"]),
            "day": pick(rng, [plain, f"one {weather} {part}", f"on a {weather} {part}"]),
            "day_plain": plain,
            "home": pick(rng, words["homes"]),
            "home_adjective": pick(rng, words["home_adjectives"]),
            "landmark": pick(rng, words["landmarks"]),
        }
        hobbies = words["hobbies"]
        for number in ("", "2", "3"):
            slots[f"hobby{number}"] = pick(rng, [hobby for hobby in hobbies if hobby not in slots.values()])
        if "places" in plot:
            at = [(where, noun) for where, nouns in words["places"][plot["places"]].items() for noun in nouns]
            preposition, place = pick(rng, at)
            slots |= {"in_place": f"{preposition} the {place}", "to_place": f"to the {place}"}
        return slots


@dataclass
class Telling:
    """One story while it is being told: its slots, and what the wordings chosen so far have brought with them."""

    slots: dict[str, str]
    rng: Random
    conditions: set[str] = field(default_factory=set)
    features: set[str] = field(default_factory=set)
    why: list[dict[str, str]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    beats: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.conditions |= {"any", self.slots["species"], self.slots.get("tag", "")}

    def choose(self, beat: Entry) -> str | None:
        """One of the wordings whose conditions hold."""
        holds = self.conditions | ({"maybe"} if self.rng.random() < 0.5 else set())
        fitting = [_listed(texts) for condition, texts in beat.items() if holds >= _words_of(condition)]
        options = [text for texts in fitting for text in texts]
        if not options:
            return None
        chosen = pick(self.rng, options)
        # A wording with a feature must be drawn twice, or there would be far more twists than in the public data.
        return pick(self.rng, options) if " !! " in chosen else chosen

    def add(self, beat: Entry) -> None:
        """Tell one beat, if it has a wording for this story."""
        text = self.choose(beat)
        if text is None:
            return
        text, _, feature = text.partition(" !! ")
        text, _, question = text.partition(" ?? ")
        text = self.fill(text)
        if feature:
            self.features.add(feature)
        if question and (reason := _REASON.search(text)):
            self.why.append({"question": self.fill(question), "answer": f"Because {reason[1]}."})
        self.beats.append(text)

    def fill(self, text: str | None) -> str:
        """The text with its choices made, its slots filled, and "a" or "an" as the next word wants it."""
        if text is None:
            raise RuntimeError("a plot has no summary or moral for one of its endings")
        while "<" in text or "|" in text:  # what fills a slot may hold slots again
            text = _SLOT.sub(self._value, _CHOICE.sub(lambda match: pick(self.rng, match[1].split("|")), text))
        text = _ARTICLE.sub(lambda match: match[1] + ("n " if VOWEL_SOUND.match(match[2]) else " "), text)
        return re.sub(r" +(?= |[,.!?]|$)", "", text).replace("“", '"').replace("”", '"')

    def _value(self, match: re.Match[str]) -> str:
        name = match[1].lower()
        self.used.add(name)
        return capitalized(self.slots[name]) if match[1] != name else self.slots[name]

    def mentioned(self) -> set[str]:
        """The facts that the texts filled so far have named."""
        return {name.removeprefix("in_").removeprefix("to_") for name in self.used} & FACTS

    def flags(self, **known: bool) -> tuple[str, ...]:
        """All features of the story, in the usual order."""
        return tuple(name for name in FEATURES if known.get(name) or name in self.features)

    def lay_out(self, moral_line: str) -> str:
        """The beats as paragraphs: on lines of their own, with blank lines between them, or all in one."""
        gap = pick(self.rng, ["\n", "\n", "\n", "\n\n", " "])
        text = self.beats[0]
        for number, beat in enumerate(self.beats[1:], start=1):
            text += (gap if number > 1 and self.rng.random() < 0.4 else " ") + beat
        return text + gap + moral_line if moral_line else text


def is_sound(text: str, telling: Telling) -> bool:
    """What must hold for every story: a fair length, one clear main character, each question asked but once."""
    for told in (text, _SPEECH.sub("", text)):
        hero, *others = (len(re.findall(rf"\b{telling.slots[who]}\b", told)) for who in ("hero", "pal", "elder"))
        if hero < max(others) + 2:
            return False
    questions = [pair["question"] for pair in telling.why]
    return MIN_WORDS <= len(text.split()) <= MAX_WORDS and len(set(questions)) == len(questions) > 0


def pronouns(prefix: str, gender: str) -> dict[str, str]:
    """The pronoun slots of one person: he, him, his, himself, with the person's prefix."""
    return {prefix + form: word for form, word in PRONOUNS[gender].items()}


def capitalized(text: str) -> str:
    """With a capital first letter, the rest as it is; a slot at the start passes the capital on."""
    start = 1 if text.startswith("<") else 0
    return text[:start] + text[start : start + 1].upper() + text[start + 1 :]


@cache
def _words_of(condition: str) -> frozenset[str]:
    return frozenset(condition.split())


def _listed(texts: Sequence[str] | str) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts
