"""What a model was trained to do, and prompts to try. Every checkpoint of a run says it, and it is kept when the model is copied,
merged or converted. The first screen of a chat shows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mini_chat_gpt.checkpoints.find import META, is_checkpoint, read_meta
from mini_chat_gpt.common.json_files import JSONRecord, check_json
from mini_chat_gpt.common.text import well_formed

KEY = "purpose"
"""In the `info` of mini_chat_gpt.json."""
N_PROMPTS, MAX_PROMPT, MAX_NAMES = 3, 2000, 20
"""Prompts of a model, characters of a prompt, and names in a list."""

Name = Annotated[str, Field(max_length=200)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]


class Purpose(JSONRecord):
    """What a model was trained to do. Empty if it was not trained here."""

    tasks: list[Name] = Field(default=[], max_length=MAX_NAMES)
    """Kinds of story tasks, see `tinystories.tasks`."""
    chats: list[Name] = Field(default=[], max_length=MAX_NAMES)
    """Names of chat files and data sets."""
    prompts: list[Prompt] = Field(default=[], max_length=N_PROMPTS)
    """Held-out prompts; beginnings of held-out texts for a base model."""


def prompts_to_try(prompts: Iterable[str]) -> list[str]:
    """The first of these prompts that have text and are not too long for a screen."""
    texts = [well_formed(prompt).strip() for prompt in prompts]
    return [text for text in dict.fromkeys(texts) if 0 < len(text) <= MAX_PROMPT][:N_PROMPTS]


def read_purpose(source: Path) -> Purpose | None:
    """The purpose of a model: a checkpoint, or a file or folder of another project, for which it is empty.

    None for a model that a version trained which didn't record it. Raises UserError if the checkpoint's metadata are damaged.
    """
    if not is_checkpoint(source):
        return Purpose()
    info = read_meta(source)["info"]
    if KEY in info:
        return check_json(info[KEY], Purpose, f"{source / META}: {KEY}", "use another checkpoint")
    return None if info.get("job") in ("sft", "pretrain") else Purpose()
