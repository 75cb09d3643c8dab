"""The wording of prompts: which phrasing a task gets, and where the story lies in it.

Phrasings are data (`data/task_phrasings.yaml`). Which one is taken depends on the record's text and a seed alone, so it is
the same in every process and on every machine, and another one in the next epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

from mini_chat_gpt.assets import load
from mini_chat_gpt.tinystories.records import StoryRecord

T = TypeVar("T")


class TemplateSampler:
    """Draws that depend on a record, a seed and the draw's own name, not on what was drawn before."""

    def __init__(self, record: StoryRecord, seed: int) -> None:
        parts = (
            *record.features,
            "",
            *record.words,
            "",
            record.summary or "",
            record.random_sentence or "",
            record.story,
        )
        self._key = hashlib.blake2b(
            "\0".join((str(seed), *parts)).encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()

    def number(self, name: str) -> int:
        """A number below 2**64."""
        return int.from_bytes(hashlib.blake2b(name.encode(), key=self._key, digest_size=8).digest(), "big")

    def one(self, options: Sequence[T], name: str) -> T:
        """One of the options, all equally likely."""
        return options[self.number(name) % len(options)]


@lru_cache(maxsize=1)
def phrasings() -> dict[str, Any]:
    """The content of the data file."""
    return load("task_phrasings.yaml")


def story_prompt(kind: str, story: str, choose: TemplateSampler, **slots: str) -> tuple[str, tuple[int, int]]:
    """A prompt about a story, and the (start, end) of the story in it."""
    before, after = choose.one(phrasings()[kind], kind).split("{story}")
    before, after = before.format(**slots), after.format(**slots)
    return before + story + after, (len(before), len(before) + len(story))


def follow_up_prompt(kind: str, choose: TemplateSampler, **slots: str) -> str:
    """The same question to a story that the conversation has shown already: one of the phrasings that stand behind it."""
    return choose.one(_behind_story(kind), f"{kind} again").format(**slots).strip()


@lru_cache
def _behind_story(kind: str) -> list[str]:
    parts = (text.split("{story}") for text in phrasings()[kind])
    return [after for before, after in parts if not before]


def writing_prompt(choose: TemplateSampler, **slots: str) -> str:
    """A prompt that asks for a story; the slots (words, sentence, features, summary) are what the story has to heed."""
    wording = phrasings()["words"]
    lines = [choose.one(wording["opening_with_words" if "words" in slots else "opening"], "opening")]
    lines += [choose.one(wording[name], name) for name in ("features", "sentence", "summary") if name in slots]
    return "\n".join(line.format(**slots) for line in lines)


def feature_list(features: Sequence[str]) -> str:
    """ "dialogue, a bad ending and a moral" from names in the Features field; names that mean nothing here are left out."""
    names = [phrasings()["feature_names"][name] for name in features if name in phrasings()["feature_names"]]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
