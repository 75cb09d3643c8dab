"""Generate one story of the sample data set from a plot, together with all its facts: who, what, the ending, and why.

The texts are in assets/sample_plots.yaml (its header explains the notation) and assets/sample_words.yaml. This module
chooses the characters, words the beats whose conditions are true, fills slots, and checks every story (length, the main
character is named most often, the summary has no fact that is not in the story). A story that fails is discarded and
generated again. Only `Random.random` is used, because Python guarantees that its sequence does not change.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

from mini_chat_gpt.assets import load
from mini_chat_gpt.common.wordings import CHOICE, SLOT, pick
from mini_chat_gpt.tinystories.records import FEATURES

Entry = Mapping[str, Any]

MIN_WORDS, MAX_WORDS = 60, 200
# One in five pairs of a main character's name and a main thing occurs in the valid split only.
HELD_OUT_ONE_IN = 5
CLOSING_SHARE, DOUBLE_MORALS = 0.6, 0.5
PRONOUNS = {
    "boy": {"he": "he", "him": "him", "his": "his", "hers": "his", "himself": "himself"},
    "girl": {"he": "she", "him": "her", "his": "her", "hers": "hers", "himself": "herself"},
}
# Slots that must be in the story if they are in its summary.
FACTS = {"hero", "pal", "elder", "stranger", "thing", "adj", "place", "sad", "glad", "scared", "angry"}
VOWEL_SOUND = re.compile(r"(?!uni|use|one|eu)[aeiou]|hour|honest", re.IGNORECASE)
_ARTICLE = re.compile(r"\b([Aa])n? (?=(\w+))")
_SPEECH = re.compile(r'"[^"]*"')
_REASON = re.compile(r"because ([^.!?\"]+)")


@dataclass(frozen=True)
class Story:
    """A story and its facts."""

    plot: str
    seen: bool
    """Whether the plot occurs in training."""
    text: str
    main_character: str
    character_kind: str
    """The kind of main character: girl, boy, fox, ..."""
    thing: str
    adjective: str
    ending: str
    """"good" or "bad"."""
    features: tuple[str, ...]
    """All features of the story, in the order of FEATURES."""
    moral: str | None
    """A sentence, which the story's last line states."""
    why: tuple[dict[str, str], ...]
    """Questions that the story answers with "because", and the answers."""
    summary: str


@dataclass(frozen=True)
class StorySpec:
    """Properties of a story, chosen at random before it is generated."""

    valid: bool
    bad: bool
    talk: bool
    moral: bool
    new_name: bool
    """The main character has a name that never occurs in training."""


def is_held_out(name: str, thing: str) -> bool:
    """Whether this pair of a main character's name and a main thing occurs in the valid split only."""
    return zlib.crc32(f"{name}/{thing}".encode()) % HELD_OUT_ONE_IN == 0


class StoryGenerator:
    """Generates stories from the plots and word lists."""

    def __init__(self) -> None:
        self.words = load("sample_words.yaml")
        data = load("sample_plots.yaml")
        self.plots: list[Entry] = data["plots"]
        self.openings, self.closings = data["openings"], data["closings"]
        self.lead_ins: Entry = data["moral_lead_ins"]

    def generate(self, plot: Entry, spec: StorySpec, rng: Random) -> Story:
        """Return a story of this plot with the given properties. Raises RuntimeError if none passes the checks."""
        for _ in range(1000):
            story = self._try(plot, spec, rng)
            if story is not None:
                return story
        raise RuntimeError(f"plot {plot['plot']} yields no valid story")

    def _try(self, plot: Entry, spec: StorySpec, rng: Random) -> Story | None:
        draft = StoryDraft(self._cast(plot, spec, rng), rng)
        draft.conditions |= {"bad" if spec.bad else "good", "talk" if spec.talk else "quiet"}
        closing = {"any": self.closings["bad" if spec.bad else "good"]}
        for beat in [*self.openings, *plot["beats"], *([closing] if rng.random() < CLOSING_SHARE else [])]:
            draft.add(beat)
        mentioned = draft.mentioned()
        line, moral = self._moral(plot, draft) if spec.moral else ("", None)
        text = draft.to_text(line)
        summary = draft.fill(draft.choose(plot["summary"]))
        if not draft.mentioned() <= mentioned or not is_sound(text, draft):
            return None
        return Story(
            plot=plot["plot"],
            seen=not plot.get("unseen", False),
            text=text,
            main_character=draft.slots["hero"],
            character_kind=draft.slots["kind"],
            thing=draft.slots["thing"],
            adjective=draft.slots["adj"],
            ending="bad" if spec.bad else "good",
            features=draft.flags(Dialogue=spec.talk, BadEnding=spec.bad, MoralValue=spec.moral),
            moral=moral,
            why=tuple(draft.why),
            summary=summary,
        )

    def _moral(self, plot: Entry, draft: StoryDraft) -> tuple[str, str]:
        """The last line of the story, and the moral alone as a sentence."""
        kind = "clause" if draft.rng.random() < 0.7 else "order"
        options = plot["morals" if kind == "clause" else "orders"]
        moral = draft.fill(draft.choose(options))
        if draft.rng.random() < DOUBLE_MORALS:  # gives so many different morals that a model can't memorize them
            second = draft.fill(draft.choose(options))
            if second[:10] != moral[:10] and " and " not in moral + second:
                moral = f"{moral} and {second}"
        line = draft.fill(pick(draft.rng, self.lead_ins[kind]).replace("<moral>", moral))
        return line, f"{capitalized(moral)}."

    def _cast(self, plot: Entry, spec: StorySpec, rng: Random) -> dict[str, str]:
        """All slots of one story: characters, things, place, feelings, and the chosen sub-plot (way)."""
        words, way = self.words, dict(pick(rng, plot.get("ways", [{}])))
        group = words["things"][pick(rng, plot["things"])]
        species = pick(rng, plot["heroes"]) if rng.random() < 0.6 else plot["heroes"][0]
        hero, thing = "", ""
        while not hero or (not spec.new_name and is_held_out(hero, thing) != spec.valid):
            hero, gender = self._name(species, rng, self.words["names_only_in_valid" if spec.new_name else "names"])
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
        """A friend, an adult of the family and a stranger, with their pronouns."""
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
        """Time, weather, place and details of everyday life."""
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
class StoryDraft:
    """A story under construction: its slots, and the beats, features and reasons so far."""

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
        """Choose one of the wordings whose conditions are true, or None if there is none."""
        true_conditions = self.conditions | ({"maybe"} if self.rng.random() < 0.5 else set())
        matching = [_listed(texts) for condition, texts in beat.items() if true_conditions >= _words_of(condition)]
        options = [text for texts in matching for text in texts]
        if not options:
            return None
        chosen = pick(self.rng, options)
        # A wording with a feature must be chosen twice, otherwise there would be far more twists than in the public data.
        return pick(self.rng, options) if " !! " in chosen else chosen

    def add(self, beat: Entry) -> None:
        """Add one beat, if it has a wording for this story."""
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
        """Make the choices of a text, fill its slots, and correct "a" and "an"."""
        if text is None:
            raise RuntimeError("a plot has no summary or moral for one of its endings")
        while "<" in text or "|" in text:  # values of slots may contain slots
            text = SLOT.sub(self._value, CHOICE.sub(lambda match: pick(self.rng, match[1].split("|")), text))
        text = _ARTICLE.sub(lambda match: match[1] + ("n " if VOWEL_SOUND.match(match[2]) else " "), text)
        return re.sub(r" +(?= |[,.!?]|$)", "", text).replace("“", '"').replace("”", '"')

    def _value(self, match: re.Match[str]) -> str:
        name = match[1].lower()
        self.used.add(name)
        return capitalized(self.slots[name]) if match[1] != name else self.slots[name]

    def mentioned(self) -> set[str]:
        """The facts in the texts that were filled so far."""
        return {name.removeprefix("in_").removeprefix("to_") for name in self.used} & FACTS

    def flags(self, **known: bool) -> tuple[str, ...]:
        """All features of the story, in the order of FEATURES."""
        return tuple(name for name in FEATURES if known.get(name) or name in self.features)

    def to_text(self, moral_line: str) -> str:
        """Join the beats to a text in which paragraphs are separated by line breaks, blank lines, or spaces."""
        gap = pick(self.rng, ["\n", "\n", "\n", "\n\n", " "])
        text = self.beats[0]
        for number, beat in enumerate(self.beats[1:], start=1):
            text += (gap if number > 1 and self.rng.random() < 0.4 else " ") + beat
        return text + gap + moral_line if moral_line else text


def is_sound(text: str, draft: StoryDraft) -> bool:
    """Check a story: its length, that one character is named most often, and that no question occurs twice."""
    for part in (text, _SPEECH.sub("", text)):
        hero, *others = (len(re.findall(rf"\b{draft.slots[who]}\b", part)) for who in ("hero", "pal", "elder"))
        if hero < max(others) + 2:
            return False
    questions = [pair["question"] for pair in draft.why]
    return MIN_WORDS <= len(text.split()) <= MAX_WORDS and len(set(questions)) == len(questions) > 0


def pronouns(prefix: str, gender: str) -> dict[str, str]:
    """The pronoun slots of one person: he, him, his, himself, with the person's prefix."""
    return {prefix + form: word for form, word in PRONOUNS[gender].items()}


def capitalized(text: str) -> str:
    """Capitalize the first letter; a slot at the start is capitalized when it is filled."""
    start = 1 if text.startswith("<") else 0
    return text[:start] + text[start : start + 1].upper() + text[start + 1 :]


@cache
def _words_of(condition: str) -> frozenset[str]:
    return frozenset(condition.split())


def _listed(texts: Sequence[str] | str) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts
