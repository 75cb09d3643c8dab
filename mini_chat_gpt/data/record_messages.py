"""The messages of a record: lists of messages in any of the usual shapes, transcripts, and calls of tools.

{"role": "user", "content": "…"}, {"from": "human", "value": "…"}     also with parts, reasoning and calls of tools
{"input": "…", "output": "…"}, {"human": "…", "assistant": "…"}       an exchange
"\\n\\nHuman: …\\n\\nAssistant: …", "<|user|>…<|assistant|>…<|endoftext|>"    a text
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.chat_messages import TOOL
from mini_chat_gpt.common.chat_keys import CALL, CONTENTS, REASONING, ROLE_NAMES, ROLES, TRAINED
from mini_chat_gpt.common.errors import short
from mini_chat_gpt.data.json_records import TOO_DEEP, BadRecord
from mini_chat_gpt.data.key_proposal import propose_roles, setting
from mini_chat_gpt.data.record_fields import Fields, KeyNames, is_blank, kind_of, not_text

MAX_DEPTH = 100
"""Levels of lists and objects in the arguments of a tool and in its description."""
Unused = set[str]
"""Names of keys that were not used."""


class Turns:
    """Reads lists of messages. `exchange` reads an object that holds a question and its reply; `unused` collects names of keys."""

    def __init__(
        self, keys: KeyNames, unused: Unused, exchange: Callable[[Fields, Unused], list[Message] | None]
    ) -> None:
        self.keys, self.unused, self.exchange = keys, unused, exchange

    def read(self, turns: Any, name: str) -> list[Message]:
        """The messages of a list, or of its JSON text, as tables have it. `name` is its key, in quotes. Raises BadRecord."""
        if isinstance(turns, str) and turns.lstrip().startswith("["):
            turns = parsed_json(turns, name)
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise BadRecord(f"{name} must be a list of objects, one for each message")
        if not turns:
            raise BadRecord(f"{name} is empty")
        return [message for number in range(1, len(turns) + 1) for message in self._turn(turns, number, name)]

    def _turn(self, turns: list[dict[str, Any]], number: int, name: str) -> list[Message]:
        fields = Fields(turns[number - 1], self.keys)
        role_key = fields.first(ROLES)
        if not role_key and (pair := self.exchange(fields, self.unused)) is not None:
            messages = pair
        else:
            messages = [self._message(fields, role_key, number, name, turns)]
        self._add_unused(fields.unused(), name)
        return messages

    def _add_unused(self, names: list[str], *where: str) -> None:
        if names:
            self.unused.update(".".join([*(one.strip('"') for one in where), name]) for name in names)

    def _message(
        self, fields: Fields, role_key: str, number: int, name: str, turns: Sequence[Mapping[Any, Any]]
    ) -> Message:
        shared = "from" in fields.values or "value" in fields.values  # ShareGPT's names
        if not role_key:
            raise BadRecord(f'message {number} has no "{"from" if shared else "role"}"')
        if (role := self._role(fields.get(role_key))) is None:
            proposal = propose_roles(turns, fields.name(role_key).strip('"'), self.keys)
            hint = (
                f"say whose it is with {setting(self.keys, proposal)}"
                if proposal
                else f"known roles are {', '.join(ROLE_NAMES)}"
            )
            raise BadRecord(f"message {number} has the role {short(fields.get(role_key))}, which is not known; {hint}")
        reasoning = self._reasoning(fields, number)
        content_key = fields.first(CONTENTS)
        calls = self._tool_calls(fields, number, name)
        if not content_key and calls is None:
            if key := next((key for key in CONTENTS if fields.has(key)), None):
                raise BadRecord(f"the {_noun(key)} of message {number} is null; it must be text")
            raise BadRecord(f'message {number} has no "{"value" if shared else "content"}"')
        content = self._content(fields.get(content_key), number, name) if content_key else ""
        if role == CALL:
            role, content, calls = "assistant", "", self._parsed_calls(_spelled_calls(content, number), number, name)
        if calls or role == TOOL:  # other messages must have a text
            content = content if content.strip() else ""
        trained = _trained(fields, number)
        function, call_id = (
            _optional_text(fields, key, number) if role == TOOL else None for key in ("name", "tool_call_id")
        )
        return Message(role, content, trained, reasoning, calls, function, call_id)

    def _role(self, role: Any) -> str | None:
        return self.keys.role(role) if isinstance(role, str) else None

    def _reasoning(self, fields: Fields, number: int) -> str | None:
        """What the assistant thought before its reply, under one of the names that files have; None if it is empty."""
        key = fields.first(REASONING)
        text = fields.get(key) if key else None
        if is_blank(text):
            return None
        if text is not None and not isinstance(text, str):
            raise not_text(f"{fields.name(key)} of message {number}", text)
        return text

    def _content(self, content: Any, number: int, name: str) -> str:
        """The content as text, also if it has parts: texts, or objects such as {"type": "text", "text": "…"}."""
        if isinstance(content, list):
            return "".join(self._part(part, number, place, name) for place, part in enumerate(content, 1))
        if not isinstance(content, str):
            raise not_text(f"the content of message {number}", content)
        return content

    def _part(self, part: Any, number: int, place: int, name: str) -> str:
        """The text of one part of a content."""
        if isinstance(part, str):
            return part
        where = f"part {place} of the content of message {number}"
        if not isinstance(part, dict):
            raise not_text(where, part)
        fields = Fields(part, NO_NAMES)
        if (kind := fields.get("type")) is not None and kind not in ("text", "input_text", "output_text"):
            raise BadRecord(f"{where} is of the type {short(kind)}; only text can be trained on")
        key = next((key for key in ("text", "value", "content") if fields.has(key)), "text")
        text = fields.get(key)
        if not isinstance(text, str):
            raise not_text(f"the text of {where}", text)
        self._add_unused(fields.unused(), name, "content")
        return text

    def _tool_calls(self, fields: Fields, number: int, name: str) -> tuple[dict[str, Any], ...] | None:
        """The functions that the assistant calls, each as `Message.tool_calls` describes; None if there are none."""
        calls, one = fields.get("tool_calls"), fields.peek("function_call")
        if not calls and one:
            calls = [fields.get("function_call")]
        if not calls:
            return None
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise BadRecord(f'"tool_calls" of message {number} must be a list of objects')
        return self._parsed_calls(calls, number, name)

    def _parsed_calls(self, calls: list[dict[str, Any]], number: int, name: str) -> tuple[dict[str, Any], ...]:
        parsed = []
        for call in calls:
            one, unused = _tool_call(call, number)
            parsed.append(one)
            self._add_unused(unused, name, "tool_calls")
        return tuple(parsed)


NO_NAMES = KeyNames()


def _noun(key: str) -> str:
    return key if key in ("value", "text") else "content"


def _trained(fields: Fields, number: int) -> bool:
    key = next((key for key in TRAINED if fields.peek(key) is not None), None)  # OpenAI's files have "weight": 0
    train = fields.get(key) if key else True
    if train not in (True, False):
        raise BadRecord(f"{fields.name(key or '')} of message {number} is {short(train)}; it must be true or false")
    return bool(train)


def _optional_text(fields: Fields, key: str, number: int) -> str | None:
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise not_text(f"{fields.name(key)} of message {number}", value)
    return value


# Tools


def _tool_call(call: dict[str, Any], number: int) -> tuple[dict[str, Any], list[str]]:
    """(a call as `Message.tool_calls` describes it, keys that were not used)."""
    fields = Fields(call, NO_NAMES)
    fields.get("type")
    value = fields.get("function") if "function" in call else call
    function = fields if value is call else Fields(value if isinstance(value, dict) else {}, NO_NAMES)
    name, what = function.get("name"), f"the arguments of a tool call of message {number}"
    if not isinstance(name, str) or not name.strip():
        raise BadRecord(f"a tool call of message {number} has no function with a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # OpenAI's files have the text of a JSON object here
        arguments = parsed_json(arguments, what)
    if arguments is not None and not isinstance(arguments, dict):
        raise BadRecord(f"{what} are {kind_of(arguments)}; they must be an object")
    check_depth(arguments, what)
    call_id = _optional_text(fields, "id", number)
    known = {"type": "function"} if call_id is None else {"type": "function", "id": call_id}
    inner = [f"function.{key}" for key in function.unused()] if function is not fields else []
    return known | {"function": {"name": name, "arguments": arguments or {}}}, [*fields.unused(), *inner]


def _spelled_calls(text: str, number: int) -> list[dict[str, Any]]:
    """The calls in the text of a message of the role function_call: an object with name and arguments, or a list of them."""
    value = parsed_json(text, f"the tool calls of message {number}")
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise BadRecord(f"the tool calls of message {number} must be an object with a name and arguments, as JSON")
    return calls


def read_tools(fields: Fields) -> tuple[dict[str, Any], ...]:
    """The functions that the assistant can call: a list of objects, or the text of one, as data sets of Hugging Face have it."""
    tools = _functions(fields, "tools")
    return *tools, *({"type": "function", "function": function} for function in _functions(fields, "functions"))


def _functions(fields: Fields, key: str) -> list[dict[str, Any]]:
    functions = fields.get(key) or []
    if isinstance(functions, str):
        functions = parsed_json(functions, fields.name(key)) or []
    if not isinstance(functions, list) or not all(isinstance(function, dict) and function for function in functions):
        raise BadRecord(f"{fields.name(key)} must be a list of objects, one for each function")
    check_depth(functions, fields.name(key))
    return functions


def parsed_json(text: str, what: str) -> Any:
    """The value of a JSON text; {} if it is blank. Raises BadRecord."""
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        hint = "; it is written by Python, not as JSON: use json.dumps" if re.match(r"[\[{\s]*'", text) else ""
        raise BadRecord(f"{what} can't be read as JSON: {text[:40]!r}{hint}") from None


def check_depth(value: Any, what: str) -> None:
    """Raise BadRecord for values that are nested so deeply that they can't be written as JSON."""
    level, depth = [value], 0
    while level := [inner for one in level for inner in _items(one)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise BadRecord(f"{what}: {TOO_DEEP}")


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


# Texts with several messages

MARKER = re.compile(r"<\|(system|user|assistant|endoftext)\|>")
_OTHER_MARKERS = re.compile(
    r"<\|im_start\|>|\[INST\]|<\|start_header_id\|>|<start_of_turn>|^#{2,3} ?\w+:", re.MULTILINE
)
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def is_transcript(text: str) -> bool:
    """Whether a text has turns as "\\n\\nHuman: …\\n\\nAssistant: …"."""
    return (match := _SPEAKER.match(text)) is not None and match[1] == "Human"


def from_transcript(text: str) -> list[Message]:
    """The messages of such a text. The last "Assistant:" may be followed by nothing: then it asks for a reply."""
    _, *pieces = _SPEAKER.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    messages = [Message(roles[who], said.strip()) for who, said in zip(pieces[::2], pieces[1::2], strict=True)]
    return messages[:-1] if messages[-1] == Message("assistant", "") else messages


def from_marked_text(text: str, name: str, advice: Callable[[], str]) -> list[Message]:
    """The messages of a text with our markers. Raises BadRecord; `advice` gives what to do with a text without any markers, or ""."""
    begin, *pieces = MARKER.split(text)
    if not pieces:
        other = _OTHER_MARKERS.search(text)
        what = (
            f"is in another chat template ({other[0].strip()})" if other else "has no <|user|> or <|assistant|> in it"
        )
        what_to_do = "" if other else advice()
        what_to_do = what_to_do or 'write chats as {"messages": […]}; plain text is for pretraining'
        raise BadRecord(f"{name} {what}; {what_to_do}")
    between = begin, *(said for marker, said in zip(pieces[::2], pieces[1::2], strict=True) if marker == "endoftext")
    if stray := next((said.strip() for said in between if said.strip()), ""):
        raise BadRecord(f"{name} has words outside of all turns: {stray[:40]!r}")
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return [Message(marker, said.strip()) for marker, said in turns if marker != "endoftext"]
