"""The messages of the scripted conversation: 20 turns over one held-out story of the sample, and a short second story.

Stories: half are of plots that the train split has ("seen"; one story of each plot), half of the three that it does not have
("new"). All state a moral and a reason; two in five end badly and two in five have no speech, so that "yes" is not nearly always
right. The second story is generated from short_stories.yaml, whose names and plots the sample does not have. The same seed selects
the same stories and messages. Every wording of a list is used before one is used again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml
from conversation_rules import KINDS, Step
from conversation_text import is_known_lower, settings

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.prepare.sample_stories import ANSWERS_NAME, FILE_NAME
from mini_chat_gpt.tinystories.records import stories as stories_of

BAD_ENDINGS, SILENT = 0.4, 0.4
GROUPS = ("seen", "new")


@dataclass(frozen=True)
class Facts:
    """A story and what is known about it."""

    text: str
    name: str
    dialogue: str  # "yes" or "no"
    ending: str  # "yes" if it is a good one, otherwise "no"
    question: str  # why
    reason: str
    fact: str  # the statement that the reason is given for
    summary: str = ""
    moral: str = ""
    plot: str = ""
    group: str = "new"
    words: tuple[str, ...] | None = None


def held_out(folder: Path) -> list[Facts]:
    """The stories of the sample's valid split with a reason. Raises UserError if the files are missing or don't match."""
    texts = list(stories_of(folder / FILE_NAME.format(split="valid")))
    answers_file = folder / ANSWERS_NAME.format(split="valid")
    if not answers_file.is_file():
        raise UserError(
            f"{answers_file} is missing; write it with `python -m mini_chat_gpt.prepare.sample_stories {folder}`."
        )
    answers = [json.loads(line) for line in answers_file.read_text(encoding="utf-8").splitlines()]
    if len(answers) != len(texts):
        raise UserError(f"{answers_file} describes {len(answers)} stories, not {len(texts)}; write the sample again.")
    return [_facts(text, answer) for text, answer in zip(texts, answers, strict=True) if answer["why"]]


def _facts(text: str, answer: dict[str, Any]) -> Facts:
    why = answer["why"][0]
    return Facts(
        text=text,
        name=answer["main_character"],
        dialogue="yes" if answer["dialogue"] else "no",
        ending="yes" if answer["ending"] == "good" else "no",
        question=why["question"],
        reason=why["answer"],
        fact=_fact(text, why["answer"]),
        summary=answer["what_happened"],
        moral=answer["moral"] or "",
        plot=answer["plot"],
        group="seen" if answer["seen"] else "new",
        words=tuple(answer["words"]) if answer["words"] else None,
    )


def _fact(text: str, reason: str) -> str:
    """ "Una was sad" from a story's "Una was sad because she missed Susie.", given "Because she missed Susie." """
    clause = reason.removeprefix("Because ").rstrip(".")
    match = re.search(rf"([A-Z][^.!?\"\n]*?),? because {re.escape(clause)}", text)
    if match is None:
        return ""
    fact = re.sub(r"^(?:(?:But|So|And|Then|Now) |(?:On|Inside|After|When|In) [^,]*, )", "", match[1])
    return fact[0].upper() + fact[1:]


def choose(stories: Sequence[Facts], n: int, seed: int) -> list[Facts]:
    """n stories of each group, in a fixed mixture of endings and speech. Raises UserError if there are too few."""
    chosen: list[Facts] = []
    for group in GROUPS:
        rng = Random(f"{seed} {group}")
        usable = [one for one in stories if one.group == group and one.moral and one.fact]
        rng.shuffle(usable)
        kinds = [("no" if i < BAD_ENDINGS * n else "yes") for i in range(n)]
        speech = [("no" if i < SILENT * n else "yes") for i in range(n)]
        rng.shuffle(speech)
        count: dict[str, int] = {}
        for ending, dialogue in zip(kinds, speech, strict=True):
            fitting = [one for one in usable if (one.ending, one.dialogue) == (ending, dialogue)]
            if not fitting:
                raise UserError(f"The data have too few {group} stories for {n} conversations; write the whole sample.")
            story = min(fitting, key=lambda one: count.get(one.plot, 0))
            usable.remove(story)
            count[story.plot] = count.get(story.plot, 0) + 1
            chosen.append(story)
    return chosen


# Short stories


@cache
def _short() -> dict[str, Any]:
    return dict(yaml.safe_load(Path(__file__).with_name("short_stories.yaml").read_text(encoding="utf-8")))


def short_story(number: int, rng: Random) -> Facts:
    """A story of 20 to 60 words. Its plot and its endings follow from the number."""
    plots, names = _short()["plots"], _short()["names"]
    plot = plots[number % len(plots)]
    kind = rng.choice(_short()["kinds"])
    slots = {"name": rng.choice(names[kind]), "kind": kind, **_short()["pronouns"][kind]}
    slots["He"] = slots["he"].capitalize()
    talk, good = rng.random() < 1 - SILENT, rng.random() < 1 - BAD_ENDINGS
    fact, reason = (part.format(**slots) for part in plot["because"])
    parts = [
        plot["start"],
        f"{fact} because {reason}.",
        plot["talk" if talk else "quiet"],
        plot["good" if good else "bad"],
    ]
    question = _question(fact)
    yes_no = {True: "yes", False: "no"}
    text = " ".join(part.format(**slots) for part in parts)
    return Facts(text, slots["name"], yes_no[talk], yes_no[good], question, f"Because {reason}.", fact)


def _question(fact: str) -> str:
    """ "Why was Kip cross?" from "Kip was cross"; "Why did Kip sneeze?" from "Kip sneezed"."""
    name, _, rest = fact.partition(" ")
    for verb in ("was ", "could not "):
        if rest.startswith(verb):
            auxiliary = {"was ": "was", "could not ": "couldn't"}[verb]
            return f"Why {auxiliary} {name} {rest.removeprefix(verb)}?"
    return f"Why did {name} {rest.removesuffix('d')}?"


# Messages


class Wordings:
    """The messages of each kind in a shuffled order, and again from the beginning when all have been used."""

    def __init__(self, seed: int) -> None:
        self._left: dict[str, Iterator[Any]] = {
            kind: _cycle(messages, Random(f"{seed} {kind}")) for kind, messages in settings()["messages"].items()
        }

    def next(self, kind: str) -> dict[str, Any]:
        """The next entry as a mapping with `ask`."""
        entry = next(self._left[kind])
        return dict(entry) if isinstance(entry, dict) else {"ask": entry}


def _cycle(messages: Sequence[Any], rng: Random) -> Iterator[Any]:
    while True:
        order = list(messages)
        rng.shuffle(order)
        yield from order


def listed(words: Sequence[str]) -> str:
    """ "jump, tree and happy"."""
    return f"{', '.join(words[:-1])} and {words[-1]}"


def fill(message: str, story: Facts, words: Sequence[str] = ()) -> str:
    """Fill the slots of a message; see the header of conversation.yaml."""
    clause = _as_clause(story.fact)
    begins = re.search(r"(?:^|[.?!:\n] ?)\{why\}", message)
    return message.format(
        story=story.text,
        name=story.name,
        words=listed(words) if words else "",
        why=story.question if begins else story.question[0].lower() + story.question[1:],
        because=f"why {clause}",
        fact=story.fact,
        clause=clause,
    )


def _as_clause(statement: str) -> str:
    """A statement inside a sentence: "It was late" -> "it was late", but "Una was sad"."""
    first = statement.split()[0]
    return statement[0].lower() + statement[1:] if is_known_lower(first) else statement


def script(story: Facts, short: Facts, words: tuple[str, ...], wordings: Wordings) -> list[Step]:
    """The 20 turns over a story, in order."""
    return [_step(kind, story, short, words, wordings) for kind in KINDS]


def _step(kind: str, story: Facts, short: Facts, words: tuple[str, ...], wordings: Wordings) -> Step:
    if kind == "pasted_story":
        return Step(kind, story.text, answer=story.summary, story=story.text, name=story.name)
    entry = wordings.next(kind)
    about = entry.get("about", "")
    of = short if kind in ("second_story", "this_story") else story
    answers = {
        "main_character": of.name,
        "second_story": of.name,
        "first_story": of.name,
        "dialogue": of.dialogue,
        "ending": of.ending,
        "why": of.reason,
        "summary": of.summary,
        "moral": of.moral,
        "follow_up": of.summary if about == "events" else of.reason,
    }
    return Step(
        kind=kind,
        message=fill(entry["ask"], of, words),
        about=about,
        answer=entry.get("answer", answers.get(about if kind == "this_story" else kind, "")),
        opposite=entry.get("opposite", False),
        story=of.text,
        words=words if kind == "write_story" else (),
        name=of.name,
    )


def scripts(stories: Sequence[Facts], n: int, seed: int) -> list[tuple[Facts, list[Step]]]:
    """2n conversations: each with its story, n stories of each group."""
    wordings, rng = Wordings(seed), Random(f"{seed} short")
    chosen = choose(stories, n, seed)
    words = words_of_group(stories, n, seed)
    return [
        (story, script(story, short_story(number, rng), words[number], wordings)) for number, story in enumerate(chosen)
    ]


def words_of_group(stories: Sequence[Facts], n: int, seed: int) -> list[tuple[str, ...]]:
    """Three words for each conversation, those of n records of each group."""
    words: list[tuple[str, ...]] = []
    for group in GROUPS:
        of_group = [one.words for one in stories if one.group == group and one.words]
        if len(of_group) < n:
            raise UserError(f"The data have only {len(of_group)} {group} records with words; write the whole sample.")
        words += Random(f"{seed} {group} words").sample(of_group, n)
    return words
