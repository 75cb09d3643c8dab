"""The wording of prompts: which template a task gets, and where the story is in the prompt.

The templates are data (`assets/task_prompts.yaml`). Which one is used depends on the record's text and a seed alone, so it is
the same in every process and on every machine. Another seed in each epoch gives another wording.
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
    """Random choices that depend on a record, a seed and the name of the choice, but not on earlier choices."""

    def __init__(self, record: StoryRecord, seed: int) -> None:
        texts = (record.summary or "", record.random_sentence or "", record.story)
        parts = (str(seed), *record.features, "", *record.words, "", *texts)
        key = "\0".join(parts).encode("utf-8", "surrogatepass")
        self._key = hashlib.blake2b(key, digest_size=16).digest()

    def number(self, name: str) -> int:
        """A number below 2**64."""
        return int.from_bytes(hashlib.blake2b(name.encode(), key=self._key, digest_size=8).digest(), "big")

    def one(self, options: Sequence[T], name: str) -> T:
        """One of the options, each with the same probability."""
        return options[self.number(name) % len(options)]


@lru_cache(maxsize=1)
def prompt_templates() -> dict[str, Any]:
    """The content of task_prompts.yaml."""
    return load("task_prompts.yaml")


def story_prompt(kind: str, story: str, sampler: TemplateSampler, **fields: str) -> tuple[str, tuple[int, int]]:
    """A prompt about a story, and the (start, end) of the story in it."""
    before, after = sampler.one(prompt_templates()[kind], kind).split("{story}")
    # The parts are formatted without the story, which may contain braces.
    before, after = before.format(**fields), after.format(**fields)
    return before + story + after, (len(before), len(before) + len(story))


def follow_up_prompt(kind: str, sampler: TemplateSampler, **fields: str) -> str:
    """The question alone, for a conversation that has shown the story already."""
    return sampler.one(_follow_up_templates(kind), f"{kind} again").format(**fields).strip()


@lru_cache
def _follow_up_templates(kind: str) -> list[str]:
    """The questions of the templates that begin with the story; the others may refer to "the following story"."""
    parts = (text.split("{story}") for text in prompt_templates()[kind])
    return [after for before, after in parts if not before]


def writing_prompt(sampler: TemplateSampler, **fields: str) -> str:
    """A prompt that asks for a story. `fields` (words, sentence, features, summary) are what the story must follow."""
    templates = prompt_templates()["words"]
    lines = [sampler.one(templates["opening_with_words" if "words" in fields else "opening"], "opening")]
    lines += [sampler.one(templates[name], name) for name in ("features", "sentence", "summary") if name in fields]
    return "\n".join(line.format(**fields) for line in lines)


def feature_list(features: Sequence[str]) -> str:
    """ "dialogue, a bad ending and a moral" from the names in a Features field. Unknown names are ignored."""
    names = [name for feature in features if (name := prompt_templates()["feature_names"].get(feature))]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
