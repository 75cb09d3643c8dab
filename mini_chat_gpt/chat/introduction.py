"""The first screen of a chat: what the model was trained to do, and prompts to try."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mini_chat_gpt.assets import load
from mini_chat_gpt.checkpoints.purpose import N_PROMPTS, Purpose
from mini_chat_gpt.tinystories.conversation_dataset import KIND as CONVERSATION

MAX_FILES = 3
"""Names of chat files that the line lists."""


@dataclass(frozen=True)
class Introduction:
    """A sentence about a model, "" if nothing is known, and prompts to try."""

    line: str = ""
    prompts: Sequence[str] = ()


def introduce(purpose: Purpose | None, is_base: bool) -> Introduction:
    """The introduction of a model with this purpose. `is_base`: it has no chat format."""
    texts = load("introduction.yaml")
    if is_base:
        return Introduction(
            "This is a base model: it only continues text. Type the beginning of one; the model continues each text separately "
            "and remembers nothing.",
            (purpose.prompts if purpose is not None else ()) or texts["base_prompts"],
        )
    if purpose is None:
        return Introduction()
    if not purpose.tasks and not purpose.chats:
        return Introduction(
            "This model was not trained here. Like most chat models, it answers questions and follows instructions.",
            texts["chat_prompts"],
        )
    abilities = []
    if purpose.chats:
        abilities.append(f"reply as in the chats of {_listed(purpose.chats)}")
    kinds = [kind for kind in purpose.tasks if kind not in texts["tasks"]]
    topics = [texts["topics"].get(kind, kind.replace("_", " ")) for kind in kinds]
    if named := dict.fromkeys(filter(None, topics)):
        abilities.append(f"answer questions about a story ({', '.join(named)})")
    prompts = purpose.prompts
    if CONVERSATION in purpose.tasks:
        prompts = [texts["conversation_prompt"], *prompts][:N_PROMPTS]
    abilities += [texts["tasks"][kind] for kind in purpose.tasks if kind in texts["tasks"]]
    return Introduction(f"This model was trained to {_joined(abilities or kinds)}.", prompts)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_FILES
    return ", ".join(names[:MAX_FILES]) + (f" and {more} more" if more > 0 else "")


def _joined(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)}{',' if len(first) > 1 else ''} and {last}" if first else last
