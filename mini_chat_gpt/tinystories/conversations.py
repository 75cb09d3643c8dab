"""Whole conversations about stories: greetings, questions about the assistant, requests that it can't serve, and stories that are
pasted alone and asked about in later turns.

The tasks of `tasks` ask one thing at a time and show the story with the question. A chat does not: people say hello, paste a
story, ask in their own words, say thanks, and continue with another story. A conversation here is a sequence of such turns; each is a
`Task`, so that its reply is weighted as those of the other tasks are. The wordings are data (assets/conversation.yaml).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Any

from mini_chat_gpt.assets import load
from mini_chat_gpt.common.wordings import pick, worded
from mini_chat_gpt.tinystories.facts import first_speech, sentence_spans
from mini_chat_gpt.tinystories.main_character import main_character
from mini_chat_gpt.tinystories.reasons import Reason, stated_reasons
from mini_chat_gpt.tinystories.records import StoryRecord
from mini_chat_gpt.tinystories.tasks import Task, generate_tasks


@lru_cache(maxsize=1)
def wordings() -> dict[str, Any]:
    """The content of conversation.yaml."""
    return load("conversation.yaml")


QUESTIONS = ("main_character", "ending", "dialogue", "moral", "summary")
"""The kinds of questions about a story, without why."""
SHORT = range(20, 61)
"""Words of a short story."""
RENAMED = 0.35
"""Share of the stories whose main character gets a made-up name."""
BALANCE = {"ending/yes": 0.4, "dialogue/no": 0.5}
"""Share of the questions with the more frequent answer that may be asked."""


def turn_kinds() -> tuple[str, ...]:
    """The kinds of turns that `tasks` does not make."""
    return (*wordings()["turns"], "no_story", "pasted", "fact")


@dataclass(frozen=True)
class Shown:
    """A story of the conversation: the questions that it answers."""

    tasks: dict[str, Task]  # by kind
    reason: Reason | None  # a question why
    told: bool  # by the assistant
    asked: set[str]  # kinds that were asked already

    @classmethod
    def of(cls, record: StoryRecord, rng: Random, told: bool = False) -> Shown:
        """All questions that the record's story answers beyond doubt."""
        tasks = generate_tasks(record, int(2**53 * rng.random()), QUESTIONS)
        # Nine stories in ten end well, and few short ones have dialogue: if all were asked about, the model would not read them.
        tasks = [task for task in tasks if rng.random() < BALANCE.get(task.category, 1)]
        reasons = stated_reasons(record.story)
        return cls({task.kind: task for task in tasks}, pick(rng, reasons) if reasons else None, told, set())


class Conversation:
    """A conversation under construction: `turns` is a `Task` each, with the user's text as its prompt, the reply as its target.

    `next_record` gives another record each time. There may be more turns than fit a context; who renders them ends before that.
    """

    def __init__(self, rng: Random, next_record: Callable[[], StoryRecord]) -> None:
        self.rng, self.next_record = rng, next_record
        self.turns: list[Task] = []
        self.shown: list[Shown] = []

    def fill(self) -> None:
        """Choose what happens: no story, one, two, one that the assistant writes, or all of that."""
        plan = self.rng.random()
        self._begin()
        if plan < 0.15:
            self._chat(1 + self._below(6))
        elif plan < 0.4:
            self._story(0.4, 2 + self._below(7))
        elif plan < 0.55:
            self._story(0.5, 1 + self._below(4))
            self._story(0.7, 2 + self._below(4))
        elif plan < 0.68:
            self._write()
        else:  # a model that has read only short conversations loses its way in long ones
            self._chat(1 + self._below(4))
            self._story(0.1, 4 + self._below(6))
            self._story(0.8, 2 + self._below(4))
            self._write()
            self._chat(1 + self._below(3))
        self._end()

    # Turns without a story

    def _begin(self) -> None:
        if self._chance(0.5):
            self._small_talk("greeting")
        if self._chance(0.1):
            self._small_talk("how_are_you")
        if self._chance(0.5):
            self._chat(1)

    def _chat(self, n: int) -> None:
        """`n` turns about the assistant, or about something else than stories."""
        kinds = ["identity", "abilities", "off_topic", "off_topic", "off_topic", "sad", "glad", "thanks"]
        if not self.shown:  # otherwise these could mean the story
            kinds += ["unclear", "no_story", "no_story"]
        for _ in range(n):
            kind = pick(self.rng, kinds)
            if kind == "no_story":
                self._ask_for_story()
            else:
                self._small_talk(kind)

    def _end(self) -> None:
        if self._chance(0.6):
            self._small_talk("thanks")
        if self._chance(0.6):
            self._small_talk("goodbye")

    def _small_talk(self, kind: str) -> None:
        texts = wordings()["turns"][kind]
        text = self._worded(pick(self.rng, texts["user"]))
        if kind in ("identity", "abilities", "off_topic"):
            text = self._with_lead(text, "only")
        self._add(kind, self._casual(text), pick(self.rng, texts["assistant"]))

    def _ask_for_story(self) -> None:
        """The user asks about a story without having shown one."""
        texts, questions = wordings()["no_story"], wordings()["questions"]
        options = texts["user"] if self._chance(0.5) else questions[pick(self.rng, QUESTIONS)]
        text = self._with_lead(self._worded(pick(self.rng, options), story="only"), "only")
        self._add("no_story", self._casual(text), pick(self.rng, texts["assistant"]))

    # Turns with a story

    def _story(self, chance_of_short: float, n_questions: int) -> None:
        """A story, alone or with a question, then questions about it and sometimes about the one before."""
        record = self._record()
        if self._chance(chance_of_short):
            record = short_story(record, self.rng) or record
        if self._chance(RENAMED):
            record = renamed(record, self.rng)
        self.shown.append(Shown.of(record, self.rng))
        if self._chance(0.5) and (turn := self._question(self.shown[-1], "only")):
            self.turns.append(self._with_story(turn, record.story))
        else:
            self._paste(record.story)
        for _ in range(n_questions):
            self._ask(len(self.shown) - 1 - (len(self.shown) > 1 and self._chance(0.4)))
            if self._chance(0.25):
                self._aside()

    def _record(self) -> StoryRecord:
        """A record; those with a moral or a bad ending, which are rare, come twice as often."""
        record = self.next_record()
        if not {"MoralValue", "BadEnding"} & set(record.features) and self._chance(0.5):
            record = self.next_record()
        return record

    def _with_story(self, turn: Task, story: str) -> Task:
        """The question and the story in one message, in the wording of `tasks` or in one of a conversation."""
        original = self.shown[-1].tasks.get(turn.kind)
        if original is not None and self._chance(0.5):
            return original
        lead_in = f"{self._lead_in()}{self._gap()}" if self._chance(0.3) else ""
        parts = [turn.prompt, f"{lead_in}{story}"] if self._chance(0.4) else [f"{lead_in}{story}", turn.prompt]
        return replace(turn, prompt=self._gap().join(parts))

    def _aside(self) -> None:
        """A turn that is not about the story, or only doubts the last answer."""
        kinds = ["thanks", "thanks", "off_topic", "off_topic", "identity", "abilities", "glad"]
        if self.turns[-1].kind in (*QUESTIONS, "why"):
            kinds += ["sure"] * 3
        self._small_talk(pick(self.rng, kinds))

    def _lead_in(self) -> str:
        return self._casual(self._worded(pick(self.rng, self._of_pasted("lead_in"))))

    def _paste(self, story: str) -> None:
        if self._chance(0.5):
            story = f"{self._lead_in()}{self._gap()}{story}"
        self._add("pasted", story, pick(self.rng, self._of_pasted("assistant")))

    def _of_pasted(self, name: str) -> list[str]:
        """The wordings around a story that is pasted alone: a later one has its own."""
        return wordings()["pasted"][f"{'next_' if len(self.shown) > 1 else ''}{name}"]

    def _write(self) -> None:
        """The assistant writes a story, and may be asked about it."""
        record = self._record()
        self.turns.append(self._writing(record))
        self.shown.append(Shown.of(record, self.rng, told=True))
        for _ in range(self._below(4)):
            self._ask(len(self.shown) - 1)

    def _writing(self, record: StoryRecord) -> Task:
        """A request for a story: with all words of the record, with one, or with none."""
        texts, words, rng = wordings()["questions"], record.words, self.rng
        # In the public files the second of three words is a noun; and a character is introduced by its kind ("a fox named Tom").
        nouns = [word for word in words[1:2] if re.search(rf"\b(?:an?|the) (?:\w+ )?{re.escape(word)}\b", record.story)]
        nouns += [match[1] for match in [_NAMED.search(record.story)] if match]
        if words and self._chance(0.6):
            text = self._worded(pick(rng, texts["words"]), words=_listed(words, rng))
        elif nouns and self._chance(0.7):
            words = (pick(rng, nouns),)
            article = "an" if words[0][0] in "aeiou" else "a"
            text = self._worded(pick(rng, texts["one_word"]), word=f"{article} {words[0]}")
        else:
            words, text = (), self._worded(pick(rng, texts["any"]))
        return Task("words", self._casual(text), record.story, None, ", ".join(words) or None, required=words)

    def _ask(self, number: int) -> None:
        """A question about story `number`, which names it where there are others; sometimes a fact and then why it is so."""
        shown, last = self.shown[number], number == len(self.shown) - 1
        if last and (len(self.shown) == 1 or self._chance(0.4)):
            name = "told" if shown.told else "only"
        else:
            name = "first" if not last else "told" if shown.told else "second"
        texts = wordings()["reasons"]
        if last and shown.reason and "why" not in shown.asked and self._chance(0.2):
            fact = shown.reason.question[4:-1]  # "Why was Tom sad?" -> "was Tom sad"
            self._add("fact", self._worded(pick(self.rng, texts["fact"]), story=name, fact=fact), "Yes.")
            text = self._casual(self._worded(pick(self.rng, texts["why"]), story=name))
            self.turns.append(self._why(shown, text))
        elif turn := self._question(shown, name):
            self.turns.append(turn)

    def _question(self, shown: Shown, name: str) -> Task | None:
        """A question that was not asked yet, if there is one."""
        options = [kind for kind in (*shown.tasks, "why") if kind not in shown.asked]
        if shown.reason is None:
            options = [kind for kind in options if kind != "why"]
        if not options:
            return None
        kind, texts = pick(self.rng, options), wordings()["questions"]
        if kind == "why":
            assert shown.reason is not None
            template = pick(self.rng, wordings()["reasons"]["question"])
            return self._why(shown, self._worded(template, story=name, question="w" + shown.reason.question[1:-1]))
        shown.asked.add(kind)
        task = shown.tasks[kind]
        text = self._worded(pick(self.rng, texts[kind]), story=name)
        if name == "first":  # only its name tells the stories apart
            names = wordings()["names_of_story"]["first"]
            while not any(one in text for one in names):
                text = self._worded(pick(self.rng, texts[kind]), story=name)
        return replace(task, prompt=self._casual(self._with_lead(text, name)), story_span=(0, 0), evidence=None)

    @staticmethod
    def _why(shown: Shown, text: str) -> Task:
        assert shown.reason is not None
        shown.asked.add("why")
        return Task("why", text, shown.reason.answer, (0, 0))

    # Wording

    def _add(self, kind: str, prompt: str, target: str) -> None:
        # With a span, though there is no story in it: the first word of the reply decides, as it does in an answer.
        self.turns.append(Task(kind, prompt, target, story_span=(0, 0)))

    def _worded(self, text: str, story: str = "", **fields: str) -> str:
        """A wording of a template; `story` is the entry of `names_of_story` for <story>."""

        def value(name: str) -> str:
            if name in fields:
                return fields[name]
            return pick(self.rng, wordings()["names_of_story"][story] if name == "story" else wordings()["words"][name])

        text = worded(text, self.rng, value)
        return text[:1].upper() + text[1:]

    def _with_lead(self, text: str, story: str) -> str:
        """The text with something said before or after it, sometimes."""
        texts = wordings()
        if self._chance(0.25):
            text = f"{self._worded(pick(self.rng, texts['leads']), story=story)} {text[:1].lower()}{text[1:]}"
        if self._chance(0.1):
            text = text.rstrip(".?!") + pick(self.rng, ["", "?", "."]) + pick(self.rng, texts["tails"])
        return text

    def _casual(self, text: str) -> str:
        """The text as typed in a hurry, sometimes: without capitals."""
        return text.lower() if self._chance(0.25) else text

    def _gap(self) -> str:
        return pick(self.rng, [" ", "\n", "\n\n"])

    def _chance(self, share: float) -> bool:
        return self.rng.random() < share

    def _below(self, n: int) -> int:
        return int(n * self.rng.random())


def renamed(record: StoryRecord, rng: Random) -> StoryRecord:
    """The record with a made-up name for its main character: answers must be copied, they can't be remembered."""
    name = main_character(record.story)
    if name is None:
        return record
    syllables = [pick(rng, _ONSETS) + pick(rng, _VOWELS) for _ in range(1 + (rng.random() < 0.75))]
    new = "".join([*syllables, pick(rng, _ENDS if len(syllables) > 1 else _ENDS_OF_SHORT_ONES)]).capitalize()
    pattern = re.compile(rf"\b{re.escape(name)}\b")
    summary = pattern.sub(new, record.summary) if record.summary else None
    return replace(record, story=pattern.sub(new, record.story), summary=summary)


_ONSETS = (*"bdfghjklmnprstvwz" * 2, "br", "ch", "dr", "fl", "gr", "kl", "sh", "st", "tr")
_VOWELS = (*"aeiouaeio", "ai", "ee", "ia")
_ENDS = ("", "", "", "n", "r", "l", "s", "ck", "nda", "x", "ny")
_ENDS_OF_SHORT_ONES = ("ck", "nda", "ny", "lo", "ra")


def short_story(record: StoryRecord, rng: Random) -> StoryRecord | None:
    """A story of 20 to 60 words from a longer one: its summary, its first sentences, or its first and last ones.

    None if there is none. Only what is known of the short text remains: how it ends, if its end is there, and a moral that it states.
    """
    sentences = [record.story[slice(*span)] for span in sentence_spans(record.story)]
    firsts = [sentences[:n] for n in range(2, len(sentences))]
    texts = [(text, False) for text in map(" ".join, firsts)]
    texts += [
        (" ".join([*sentences[:n], *sentences[-m:]]), True) for n in (1, 2, 3) for m in (1, 2) if n + m < len(sentences)
    ]
    texts += [(record.summary, True)] * 3 if record.summary else []
    options = [(text, ends) for text, ends in texts if len(text.split()) in SHORT]
    if not options:
        return None
    text, ends = pick(rng, options)
    labels = [label for label in record.features if label != "Dialogue"] if ends else []
    if labels and first_speech(text):
        labels.append("Dialogue")
    return StoryRecord(features=tuple(labels), story=text)


_NAMED = re.compile(r"\b(?:[Aa]n?|the) (?:\w+ )?(\w+) named [A-Z]")


def _listed(words: Sequence[str], rng: Random) -> str:
    """ "cat, tree, happy", "cat, tree and happy" or "cat tree happy"."""
    if rng.random() < 0.3 and len(words) > 1:
        return f"{', '.join(words[:-1])} and {words[-1]}"
    return " ".join(words) if rng.random() < 0.15 else ", ".join(words)
