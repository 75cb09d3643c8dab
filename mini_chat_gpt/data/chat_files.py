"""Read your own chats from files: JSON or JSON Lines, plain or gzipped, in the common formats.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…", "train": false}, …]}
    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}, …]}        ShareGPT
    {"instruction": "…", "input": "…", "output": "…"}                                            Alpaca
    {"prompt": "…", "completion": "…"}     texts, or lists of messages
    {"question": "…", "answer": "…"}
    {"text": "<|user|>…<|assistant|>…<|endoftext|>"}

The format is detected for each record, so a file can mix them. All formats but the first two and the last can have a "system" text.
No text is ever interpreted as a control token: the markers in "text" only say where turns begin.

A file with an error is read to its end, so that all errors are reported at once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mini_chat_gpt.chat_format import ROLES, Message, check_messages
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.json_records import BadRecord, Record, read_json_records

MAX_PROBLEMS = 20  # that an error lists one by one


@dataclass(frozen=True)
class Conversation:
    """One chat of a file."""

    messages: tuple[Message, ...]
    form: str  # the name of its format, as in `FORMATS`
    path: str
    line: int  # where it begins, from 1


@dataclass(frozen=True)
class Problem:
    """A record that can't be used, or the point where a file can't be read any further."""

    path: str
    line: int
    what: str  # a clause, without a period

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.what}"


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
        for line, record in read_json_records(Path(path)):
            empty = False
            try:
                form, messages = _messages_of(record)
            except (BadRecord, UserError) as error:
                what = str(error).rstrip(".")
                collected.append(Problem(str(path), line, what[:1].lower() + what[1:]))
                continue
            yield Conversation(tuple(messages), form, str(path), line)
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
    system = record.get("system")
    if isinstance(system, str) and system.strip() and not (messages and messages[0].role == "system"):
        messages.insert(0, Message("system", system))
    if any(message.reasoning is not None or message.tool_calls is not None for message in messages):
        return record_format.name, messages  # `ChatDataset` skips and counts it: no chat format renders these yet
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
        content = "" if tool_calls and turn.get("content") is None else _content(turn["content"], number)
        train = turn.get("train", turn.get("weight", True))  # OpenAI's files have "weight": 0 instead
        if train not in (True, False):
            raise BadRecord(f'"train" of message {number} is {train!r}; it must be true or false')
        messages.append(Message(turn["role"], content, bool(train), reasoning, tool_calls))
    return messages


def _reasoning(turn: dict[str, Any], number: int) -> str | None:
    """What the assistant thought before its reply, under one of the names that such files have; None if it is empty."""
    for key in ("reasoning", "reasoning_content", "thinking"):
        if text := turn.get(key):
            if not isinstance(text, str):
                raise BadRecord(f'"{key}" of message {number} is {_kind(text)}; it must be text')
            return text
    return None


def _tool_calls(turn: dict[str, Any], number: int) -> tuple[dict[str, Any], ...] | None:
    """The functions that the assistant calls; None if there are none."""
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRecord(f'"tool_calls" of message {number} must be a list of objects')
    return tuple(calls) or None


def _content(content: Any, number: int) -> str:
    """The content as text, also if it has parts, [{"type": "text", "text": "…"}, …]."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise BadRecord(f"the content of message {number} is {_kind(content)}; it must be text")
    return content


SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}


def _from_sharegpt(record: dict[str, Any]) -> list[Message]:
    messages = []
    for number, turn in enumerate(_turns(record, "conversations"), 1):
        if "role" in turn and "content" in turn:  # some files have this key but the messages of the other format
            return _from_messages(record, "conversations")
        for needed in ("from", "value"):
            if needed not in turn:
                raise BadRecord(f'message {number} has no "{needed}"')
        role = SHAREGPT_ROLES.get(turn["from"], turn["from"])
        if role not in ROLES:
            known = ", ".join([*SHAREGPT_ROLES, *ROLES])
            raise BadRecord(f"message {number} is from {turn['from']!r}; known roles are {known}")
        messages.append(Message(role, _content(turn["value"], number)))
    return messages


def _from_alpaca(record: dict[str, Any]) -> list[Message]:
    prompt = _text(record, "instruction")
    extra = record.get("input") or ""
    if not isinstance(extra, str):
        raise BadRecord(f'"input" is {_kind(extra)}; it must be text')
    if extra.strip():
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
