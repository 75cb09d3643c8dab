"""What a chat template is given: messages and tools as `transformers` passes them, and the same with slots in place of the contents.

The template knows the shape of a conversation: the roles, which messages have reasoning or call functions, and which keys the calls
and tools have. It does not know what the messages say, nor the names and arguments of functions.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.tokenizer.template_values import Data, Path, Slot, Text

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys under which templates look for the reasoning of a message, in the order in which they are tried."""
KEYS = frozenset(("type", "id", "function", "name", "description", "parameters", "arguments", "strict", "return"))
"""Keys of tools and tool calls that a template may know. An object that has another one can only be printed as a whole."""
WHOLE = ("parameters", "arguments", "return")
"""Keys of values that a template can only print as a whole."""


def values_of(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], reasoning_key: str) -> dict[str, Any]:
    """The variables `messages` and `tools` of a template."""
    return {"messages": [_message(one, reasoning_key) for one in messages], "tools": list(tools) or None}


def _message(message: Message, reasoning_key: str) -> dict[str, Any]:
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        value[reasoning_key] = message.reasoning
    if message.tool_calls is not None:
        value["tool_calls"] = list(message.tool_calls)
    optional = {"name": message.name, "tool_call_id": message.tool_call_id}
    return value | {key: text for key, text in optional.items() if text is not None}


def with_slots(values: Mapping[str, Any], absent: frozenset[str]) -> dict[str, Any]:
    """The variables with a slot for each content. `absent` are the names that no content has in it."""
    messages = [_open_message(one, ("messages", at), absent) for at, one in enumerate(values["messages"])]
    tools = [_open_value(one, ("tools", at), absent) for at, one in enumerate(values["tools"] or ())]
    return {"messages": messages, "tools": tools or None}


def _open_message(message: Mapping[str, Any], path: Path, absent: frozenset[str]) -> dict[str, Any]:
    opened: dict[str, Any] = {}
    for key, value in message.items():
        inner = (*path, key)
        if key == "role":
            opened[key] = value
        elif key == "tool_calls":
            opened[key] = [_open_value(call, (*inner, at), absent) for at, call in enumerate(value)]
        else:
            opened[key] = _open_text(value, inner, absent)
    return opened


def _open_text(text: str, path: Path, absent: frozenset[str]) -> str | Text:
    # Some templates check the length of ids. A text without words is the same in the skeleton as in the conversation.
    length = len(text) if path[-1] in ("id", "tool_call_id") else None
    return Text((Slot(path, (), length, absent),)) if text.strip() else text


def _open_value(value: Any, path: Path, absent: frozenset[str]) -> Any:
    """A tool or a tool call, or a value in it."""
    if isinstance(value, str):
        return value if path[-1] == "type" and value == "function" else _open_text(value, path, absent)
    if not value or not isinstance(value, Mapping | list | tuple):
        return value
    if not isinstance(value, Mapping) or path[-1] in WHOLE or not value.keys() <= KEYS:
        return Data(Slot(path, absent=absent), isinstance(value, Mapping))
    return {key: _open_value(one, (*path, key), absent) for key, one in value.items()}


def shape_of(value: Any) -> Hashable:
    """Equal for variables with the same slots, whatever the contents are."""
    if isinstance(value, Text):
        return "text", tuple(part if isinstance(part, str) else part.length for part in value.parts)
    if isinstance(value, Data):
        return "data", value.is_mapping
    if isinstance(value, Mapping):
        return tuple((key, shape_of(one)) for key, one in value.items())
    if isinstance(value, list | tuple):
        return "list", tuple(map(shape_of, value))
    return type(value).__name__, value


def required_slots(variables: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """(path, description) of what a template must print: contents, the names and arguments of functions, and something of each tool."""
    for number, message in enumerate(variables["messages"], 1):
        where = f"message {number} (role {message['role']})"
        if isinstance(message["content"], Text):
            yield _path_of(message["content"]), where
        for call in message.get("tool_calls", ()):
            function = call["function"] if isinstance(call, Mapping) and "function" in call else call
            values = [function] if isinstance(function, Data) else [function.get("name"), function.get("arguments")]
            for value in values:
                if isinstance(value, Text | Data):
                    yield _path_of(value), f"the tool calls of {where}"
    for at, _ in enumerate(variables["tools"] or ()):
        yield ("tools", at), "the tools"


def _path_of(value: Text | Data) -> Path:
    slot = value.slot if isinstance(value, Data) else value.parts[0]
    assert isinstance(slot, Slot)  # as `_open_text` makes it
    return slot.path
