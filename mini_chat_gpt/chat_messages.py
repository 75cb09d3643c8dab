"""The messages of a conversation, and what every chat format requires of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_chat_gpt.common.errors import UserError

ROLES = ("system", "user", "assistant")
TOOL = "tool"
"""Role of a message with the result of a function that the assistant called. Our own format has no such messages."""
Tools = Sequence[Mapping[str, Any]]
"""Functions that the assistant can call, as JSON objects: {"type": "function", "function": {"name": …, "parameters": …}}."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str  # one of ROLES, or TOOL
    content: str
    train: bool = True  # False excludes an assistant's turn from the loss; other roles are never trained on
    reasoning: str | None = None  # what the assistant thought before its reply
    # Functions that the assistant calls: {"type": "function", "id": …, "function": {"name": …, "arguments": {…}}}; the id is optional.
    tool_calls: tuple[Mapping[str, Any], ...] | None = None
    name: str | None = None  # of the function whose result this is
    tool_call_id: str | None = None  # id of the call whose result this is


def check_messages(messages: Sequence[Message], add_generation_prompt: bool = False) -> None:
    """Raise `UserError`, naming the message, unless the roles are (system)? user assistant user assistant ..."""
    if not messages:
        raise UserError("The conversation is empty; give it at least one user message.")
    for number, message in enumerate(messages, start=1):
        where = _where(messages, number - 1)
        if message.role not in (*ROLES, TOOL):
            where = f"Message {number} of {len(messages)}"
            raise UserError(f"{where} has the role {message.role!r}; the roles are {', '.join((*ROLES, TOOL))}.")
        # Data files may have numbers or null here, which would fail deep inside the tokenizer.
        if not isinstance(message.content, str):
            raise UserError(f"{where} has a {type(message.content).__name__} as its content; it must be text.")
        _check_extras(message, where)
        # An empty reply would train the model to end immediately.
        may_be_empty = message.tool_calls is not None or message.role == TOOL
        if not message.content.strip() and not (may_be_empty and message.content == ""):
            raise UserError(f"{where} has no text; add text, or remove the conversation.")
        _check_order(messages, number - 1, where)
    # In training a reply always follows a user message or the result of a function, so the model has learned nothing else.
    if add_generation_prompt and messages[-1].role not in ("user", TOOL):
        raise UserError(
            f"A reply can only follow a user message, but the last message has the role {messages[-1].role}; "
            "end the conversation with a user message, or leave add_generation_prompt off."
        )


def _where(messages: Sequence[Message], index: int) -> str:
    return f"Message {index + 1} of {len(messages)} (role {messages[index].role})"


def _check_extras(message: Message, where: str) -> None:
    """Check reasoning and tool calls, which only assistants have."""
    if message.role != "assistant" and (message.reasoning is not None or message.tool_calls is not None):
        raise UserError(
            f"{where} has reasoning or tool calls, which only the assistant's messages can have; remove them."
        )
    if message.reasoning is not None and not message.reasoning.strip():
        raise UserError(f"{where} has a reasoning without text; leave the reasoning out.")
    for call in message.tool_calls or ():
        function = call.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), Mapping):
            raise UserError(f'{where} has a tool call without a "function" with "arguments", an object; add it.')
        if not isinstance(function.get("name"), str) or not function["name"].strip():
            raise UserError(f"{where} has a tool call without the name of the function; add it.")


def refuse_extras(messages: Sequence[Message], tools: Tools) -> None:
    """Raise UserError for what a format without reasoning and tools can't render."""
    for index, message in enumerate(messages):
        extras = {
            "reasoning": message.reasoning is not None,
            "tool calls": message.tool_calls is not None,
            "the result of a tool": message.role == TOOL,
        }
        for extra in (name for name, present in extras.items() if present):
            raise UserError(
                f"{_where(messages, index)} has {extra}, which the chat format can't render; "
                "leave the conversation out, or use a model with a chat template for it."
            )
    if tools:
        raise UserError(
            "The conversation has tools, which the chat format can't render; leave it out, or use a model with a chat template for them."
        )


def _check_order(messages: Sequence[Message], index: int, where: str) -> None:
    # Alternating turns only: chat templates expect them, and the model would meet anything else for the first time in a chat.
    role = messages[index].role
    before = messages[index - 1].role if index else None
    if role == "system" and before is not None:
        raise UserError(f"{where} is out of place; only the first message can be a system message.")
    if role == "user" and before == "user":
        raise UserError(
            f"{where} follows another user message; join the two, or put the assistant's reply between them."
        )
    if role == "user" and before == TOOL:
        raise UserError(f"{where} follows the result of a tool; put the assistant's reply between them.")
    if role == "assistant" and before not in ("user", TOOL):
        follows = "opens the conversation" if before is None else f"follows a message of the role {before}"
        raise UserError(f"{where} {follows}; an assistant message must follow a user message.")
    if role == TOOL and before != TOOL and (before is None or messages[index - 1].tool_calls is None):
        raise UserError(f"{where} does not follow a message in which the assistant calls a tool; put it after one.")
