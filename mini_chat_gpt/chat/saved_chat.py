"""Conversations in files: {"messages": [{"role", "content", "reasoning"}, ...], "settings": {...}}. The reasoning is optional."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.chat_messages import check_messages
from mini_chat_gpt.common.errors import UserError, nearest
from mini_chat_gpt.common.files import write_json
from mini_chat_gpt.common.json_files import DamagedJSON, JSONRecord, read_json
from mini_chat_gpt.common.text import well_formed
from mini_chat_gpt.generation.sampling import Sampling

MAX_CHAT = 1 << 26  # bytes of a saved conversation


def write_chat(path: Path, messages: Sequence[Message], sampling: Sampling) -> None:
    """Write a conversation and its settings."""
    entries = [
        {"role": message.role, "content": message.content}
        | ({} if message.reasoning is None else {"reasoning": message.reasoning})
        for message in messages
    ]
    write_json(path, {"messages": entries, "settings": asdict(sampling)})


class _SavedMessage(JSONRecord):
    role: str
    content: str
    reasoning: str | None = None


class _SavedChat(JSONRecord):
    """A file that `ChatSession.save` wrote, or an equal one."""

    messages: list[_SavedMessage]
    settings: dict[str, int | float | None] = Field({})


def read_chat(path: Path, sampling: Sampling) -> tuple[list[Message], Sampling]:
    """The messages of a saved conversation, and `sampling` with the settings of the file.

    Raises UserError with the first problem.
    """
    remedy = 'a saved chat is {"messages": [{"role": ..., "content": ...}, ...], "settings": {"temperature": 0.7, ...}}'
    try:
        saved = read_json(path, _SavedChat, remedy, MAX_CHAT)
    except FileNotFoundError:
        raise UserError(f"{path} can't be read: No such file.") from None
    except DamagedJSON as error:  # more likely another kind of file than a damaged one
        raise UserError(str(error).replace(f"{path} is damaged", f"{path} is not a conversation", 1)) from None
    messages = [_message(one) for one in saved.messages]
    try:
        check_messages(messages)
        return messages, _with_settings(sampling, saved.settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _message(saved: _SavedMessage) -> Message:
    reasoning = saved.reasoning if saved.reasoning is None or saved.reasoning.strip() else None
    return Message(saved.role, well_formed(saved.content), reasoning=reasoning and well_formed(reasoning))


def _with_settings(sampling: Sampling, settings: dict[str, Any]) -> Sampling:
    known = [setting.name for setting in fields(Sampling)]
    for name in settings:
        if name not in known:
            raise UserError(f"there is no setting {name!r}{nearest(name, known)}; the settings are {', '.join(known)}.")
    return replace(sampling, **settings)
