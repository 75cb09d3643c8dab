"""Read your own chats from files: JSON, JSON Lines, CSV, TSV or YAML, plain or compressed, in the common formats.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…", "train": false}, …], "tools": […]}
    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}, …]}        ShareGPT
    {"instruction": "…", "input": "…", "output": "…"}                                            Alpaca
    {"prompt": "…", "completion": "…"}     texts, or lists of messages
    {"question": "…", "answer": "…"}
    {"text": "<|user|>…<|assistant|>…<|endoftext|>"}

The format is detected for each record, so a file can mix them. All formats but the first two and the last can have a "system" text.
No text is ever interpreted as a control token: the markers in "text" only say where turns begin.

Messages can also have "reasoning" (or "reasoning_content", "thinking") and "tool_calls", as those of OpenAI and Hugging Face have them,
and the role "tool". Which chat formats can render these is another question: `ChatDataset` leaves out and counts the rest.

A file with an error is read to its end, so that all errors are reported at once.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.chat_messages import ROLES, TOOL, check_messages
from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.data.hub_data import local_chats
from mini_chat_gpt.data.json_records import BadRecord, Record
from mini_chat_gpt.data.record_files import read_records

MAX_PROBLEMS = 20  # that an error lists one by one


@dataclass(frozen=True)
class Conversation:
    """One chat of a file."""

    messages: tuple[Message, ...]
    form: str  # the name of its format, as in `FORMATS`
    path: str
    place: str  # where it begins, such as "line 3" or "record 3"
    tools: tuple[dict[str, Any], ...] = ()  # the functions that the assistant can call


@dataclass(frozen=True)
class Problem:
    """A record that can't be used, or the point where a file can't be read any further."""

    path: str
    place: str
    what: str  # a clause, without a period

    def __str__(self) -> str:
        return f"{self.path}, {self.place}: {self.what}"


def read_conversations(
    paths: str | Path | Iterable[str | Path], problems: list[Problem] | None = None
) -> Iterator[Conversation]:
    """The conversations of one or several files, in their order.

    Records that can't be used are skipped and added to `problems`, if given. Otherwise all files are read to their end, and then a
    UserError reports all problems. Also raises UserError for a file that is missing or empty.
    """
    collected: list[Problem] = [] if problems is None else problems
    for path in [paths] if isinstance(paths, str | Path) else paths:
        empty = True
        for place, record in chain.from_iterable(map(read_records, local_chats(path))):
            empty = False
            try:
                form, messages = _messages_of(record)
                tools = _tools(record)
            except (BadRecord, UserError) as error:
                what = str(error).rstrip(".")
                collected.append(Problem(str(path), place, what[:1].lower() + what[1:]))
                continue
            yield Conversation(tuple(messages), form, str(path), place, tools)
        if empty:
            raise UserError(f"{path} contains no conversation; it is empty.")
    if problems is None and collected:
        raise UserError(_report(collected))


def _report(problems: Sequence[Problem]) -> str:
    """The first problems, each on its own line, and the number of others."""
    if len(problems) == 1:
        return f"{problems[0]}; correct it, or skip it with --skip-bad."
    lines = [str(problem) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        files = Counter(problem.path for problem in problems)
        lines.append(
            f"and {len(problems) - MAX_PROBLEMS:,} more ({', '.join(f'{n:,} in {p}' for p, n in files.items())})"
        )
    return (
        f"{len(problems):,} records can't be used:\n  "
        + "\n  ".join(lines)
        + "\nCorrect them, or skip them with --skip-bad."
    )


def _messages_of(record: Record | BadRecord) -> tuple[str, list[Message]]:
    """(name of the format, messages). Raises BadRecord or UserError if the record can't be used for training."""
    if isinstance(record, BadRecord):
        raise record
    if not isinstance(record, dict):
        raise BadRecord(f'it is {_kind(record)}; a conversation is an object such as {{"messages": […]}}')
    record_format = next((known for known in FORMATS if all(key in record for key in known.keys)), None)
    if record_format is None:
        raise BadRecord(_unknown_format(record))
    messages = record_format.read(record)
    # An empty system message means none, in every format.
    messages = [one for one in messages if one.role != "system" or one.content.strip()]
    system = record.get("system")
    if system is not None and not isinstance(system, str):
        raise BadRecord(f'"system" is {_kind(system)}; it must be text')
    if system and system.strip() and not (messages and messages[0].role == "system"):
        messages.insert(0, Message("system", system))
    check_messages(messages)
    if messages[-1].role != "assistant":
        raise BadRecord(f"it ends with a {messages[-1].role} message, which has no reply")
    if not any(message.train for message in messages if message.role == "assistant"):
        raise BadRecord('it has no reply to train on: each has "train": false')
    return record_format.name, messages


def _unknown_format(record: dict[str, Any]) -> str:
    """Names the missing key if a record nearly has a known format, otherwise the keys that it has."""
    for known in FORMATS:
        present = [key for key in known.keys if key in record]
        if present:
            missing = " and ".join(f'"{key}"' for key in known.keys if key not in record)
            return f'it has "{present[0]}" but no {missing}'
    keys = ", ".join(f'"{key}"' for key in list(record)[:8]) or "no keys"
    return f"it has {keys}; known formats are {'; '.join(' + '.join(known.keys) for known in FORMATS)}"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _text(record: dict[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise BadRecord(f'"{key}" is {_kind(value)}; it must be text')
    return value


def _turns(record: dict[str, Any], key: str) -> list[dict[str, Any]]:
    turns = record[key]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRecord(f'"{key}" must be a list of objects, one for each message')
    if not turns:
        raise BadRecord(f'"{key}" is empty')
    return turns


def _from_messages(record: dict[str, Any], key: str = "messages") -> list[Message]:
    messages = []
    for number, turn in enumerate(_turns(record, key), 1):
        reasoning, tool_calls = _reasoning(turn, number), _tool_calls(turn, number)
        for needed in ("role", "content"):
            if needed not in turn and not (needed == "content" and tool_calls):
                raise BadRecord(f'message {number} has no "{needed}"')
        role = TOOL if turn["role"] == "function" else turn["role"]  # an older name
        content = "" if tool_calls and turn.get("content") is None else _content(turn["content"], number)
        if tool_calls or role == TOOL:  # other messages must have a text
            content = content if content.strip() else ""
        train = turn.get("train", turn.get("weight", True))  # OpenAI's files have "weight": 0 instead
        if train not in (True, False):
            raise BadRecord(f'"train" of message {number} is {train!r}; it must be true or false')
        name, call_id = (_optional_text(turn, key, number) for key in ("name", "tool_call_id"))
        if role != TOOL:
            name = call_id = None  # some files name the speakers, which no chat format prints
        messages.append(Message(role, content, bool(train), reasoning, tool_calls, name, call_id))
    return messages


def _optional_text(turn: dict[str, Any], key: str, number: int) -> str | None:
    value = turn.get(key)
    if value is not None and not isinstance(value, str):
        raise BadRecord(f'"{key}" of message {number} is {_kind(value)}; it must be text')
    return value


def _reasoning(turn: dict[str, Any], number: int) -> str | None:
    """What the assistant thought before its reply, under one of the names that such files have; None if it is empty."""
    for key in ("reasoning", "reasoning_content", "thinking"):
        if text := turn.get(key):
            if not isinstance(text, str):
                raise BadRecord(f'"{key}" of message {number} is {_kind(text)}; it must be text')
            return text if text.strip() else None
    return None


def _tool_calls(turn: dict[str, Any], number: int) -> tuple[dict[str, Any], ...] | None:
    """The functions that the assistant calls, each as `Message.tool_calls` describes; None if there are none."""
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRecord(f'"tool_calls" of message {number} must be a list of objects')
    return tuple(_tool_call(call, number) for call in calls) or None


def _tool_call(call: dict[str, Any], number: int) -> dict[str, Any]:
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise BadRecord(f"a tool call of message {number} has no function with a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # OpenAI's files have the text of a JSON object here
        arguments = _parsed(arguments, f"the arguments of a tool call of message {number}")
    if arguments is not None and not isinstance(arguments, dict):
        raise BadRecord(
            f"the arguments of a tool call of message {number} are {_kind(arguments)}; they must be an object"
        )
    call_id = _optional_text(call, "id", number)
    known = {"type": "function"} if call_id is None else {"type": "function", "id": call_id}
    return known | {"function": {"name": name, "arguments": arguments or {}}}


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        raise BadRecord(f"{what} are not JSON: {text[:40]!r}") from None


def _tools(record: Any) -> tuple[dict[str, Any], ...]:
    """The functions that the assistant can call: a list of objects, or the text of one, as data sets of Hugging Face have it."""
    tools = record.get("tools") or []
    if isinstance(tools, str):
        tools = _parsed(tools, '"tools"')
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and tool for tool in tools):
        raise BadRecord('"tools" must be a list of objects, one for each function')
    functions = record.get("functions") or []  # an older name
    if not isinstance(functions, list) or not all(isinstance(function, dict) and function for function in functions):
        raise BadRecord('"functions" must be a list of objects, one for each function')
    return *tools, *({"type": "function", "function": function} for function in functions)


def _content(content: Any, number: int) -> str:
    """The content as text, also if it has parts: texts, or objects such as {"type": "text", "text": "…"}."""
    if isinstance(content, list):
        return "".join(_part(part, number, place) for place, part in enumerate(content, 1))
    if not isinstance(content, str):
        raise BadRecord(f"the content of message {number} is {_kind(content)}; it must be text")
    return content


def _part(part: Any, number: int, place: int) -> str:
    """The text of one part of a content."""
    if isinstance(part, str):
        return part
    where = f"part {place} of the content of message {number}"
    if not isinstance(part, dict):
        raise BadRecord(f"{where} is {_kind(part)}; it must be text")
    if part.get("type", "text") != "text":
        raise BadRecord(f"{where} is of the type {short(part['type'])}; only text can be trained on")
    text = next((part[key] for key in ("text", "value", "content") if key in part), None)
    if not isinstance(text, str):
        raise BadRecord(f"the text of {where} is {_kind(text)}; it must be text")
    return text


SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}


def _from_sharegpt(record: dict[str, Any]) -> list[Message]:
    messages = []
    for number, turn in enumerate(_turns(record, "conversations"), 1):
        if "role" in turn and "content" in turn:  # some files have this key but the messages of the other format
            return _from_messages(record, "conversations")
        for needed in ("from", "value"):
            if needed not in turn:
                raise BadRecord(f'message {number} has no "{needed}"')
        speaker = turn["from"]
        role = SHAREGPT_ROLES.get(speaker, speaker) if isinstance(speaker, str) else None
        if role not in ROLES:
            known = ", ".join([*SHAREGPT_ROLES, *ROLES])
            raise BadRecord(f"message {number} is from {short(speaker)}; known roles are {known}")
        messages.append(Message(role, _content(turn["value"], number)))
    return messages


def _from_alpaca(record: dict[str, Any]) -> list[Message]:
    prompt = _text(record, "instruction")
    extra = record.get("input")
    if extra is not None and not isinstance(extra, str):
        raise BadRecord(f'"input" is {_kind(extra)}; it must be text')
    if extra and extra.strip():
        prompt = f"{prompt}\n\n{extra}" if prompt.strip() else extra
    return [*_history(record), Message("user", prompt), Message("assistant", _text(record, "output"))]


def _history(record: dict[str, Any]) -> list[Message]:
    """Earlier turns, [["question", "answer"], …], which some Alpaca files have."""
    history = record.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    ):
        raise BadRecord('"history" must be a list of pairs [question, answer]')
    return [Message(role, text) for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)]


def _from_completion(record: dict[str, Any]) -> list[Message]:
    if isinstance(record["prompt"], list) and isinstance(record["completion"], list):
        prompt = [replace(m, train=m.role != "assistant") for m in _from_messages(record, "prompt")]
        return [*prompt, *_from_messages(record, "completion")]
    return [Message("user", _text(record, "prompt")), Message("assistant", _text(record, "completion"))]


def _from_question(record: dict[str, Any]) -> list[Message]:
    return [Message("user", _text(record, "question")), Message("assistant", _text(record, "answer"))]


MARKER = re.compile(r"<\|(system|user|assistant|endoftext)\|>")


def _from_marked_text(record: dict[str, Any]) -> list[Message]:
    begin, *pieces = MARKER.split(_text(record, "text"))
    if not pieces:
        raise BadRecord('"text" has no <|user|> or <|assistant|> in it; plain text is for pretraining')
    between = begin, *(text for marker, text in zip(pieces[::2], pieces[1::2], strict=True) if marker == "endoftext")
    if stray := next((text.strip() for text in between if text.strip()), ""):
        raise BadRecord(f'"text" has words outside of all turns: {stray[:40]!r}')
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return [Message(marker, text.strip()) for marker, text in turns if marker != "endoftext"]


@dataclass(frozen=True)
class RecordFormat:
    """A format of records: the keys that identify it, and the function that reads its messages."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[dict[str, Any]], list[Message]]


FORMATS = (
    RecordFormat("messages", ("messages",), _from_messages),
    RecordFormat("sharegpt", ("conversations",), _from_sharegpt),
    RecordFormat("alpaca", ("instruction", "output"), _from_alpaca),
    RecordFormat("completion", ("prompt", "completion"), _from_completion),
    RecordFormat("question", ("question", "answer"), _from_question),
    RecordFormat("text", ("text",), _from_marked_text),
)
