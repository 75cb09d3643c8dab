"""Chats from files of one's own: JSON or JSON Lines, plain or gzipped, in the forms that people have them in.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…", "train": false}, …]}
    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}, …]}        ShareGPT
    {"instruction": "…", "input": "…", "output": "…"}                                            Alpaca
    {"prompt": "…", "completion": "…"}     texts, or lists of messages
    {"question": "…", "answer": "…"}
    {"text": "<|user|>…<|assistant|>…<|endoftext|>"}

Each record is looked at for itself, so a file may mix them; all but the first two and the last may have a "system" text
beside them. What a text says is never taken for a control token: markers in "text" only tell where turns begin.

A file with something wrong in it is read to its end, so that everything that is wrong can be said at once.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from mini_chat_gpt.chat_format import ROLES, Message, check_messages
from mini_chat_gpt.common.errors import UserError

LONGEST_LINE = 16 * 2**20
"""Bytes of a line; no conversation is as long, and a file that isn't what it seems is told from one that is."""
MOST_SHOWN = 20  # problems that an error lists one by one

Record = Any  # what JSON may hold


@dataclass(frozen=True)
class Conversation:
    """One chat as it stands in a file."""

    messages: tuple[Message, ...]
    form: str  # the name of its form, as in `FORMS`
    path: str
    line: int  # on which it begins, from 1


@dataclass(frozen=True)
class Problem:
    """A record that can't be used, or a file that can't be read any further."""

    path: str
    line: int
    what: str  # a clause, without a full stop

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.what}"


class BadRecord(Exception):
    """Says what is wrong with a record."""


def read_conversations(
    paths: str | Path | Iterable[str | Path], problems: list[Problem] | None = None
) -> Iterator[Conversation]:
    """The conversations of one or several files, in their order.

    Records that can't be used are left out and added to `problems`, where that is given. Otherwise all files are read to
    their end, and then one `UserError` says what is wrong. It also says so where a file is not there or holds nothing.
    """
    found: list[Problem] = [] if problems is None else problems
    for path in [paths] if isinstance(paths, str | Path) else paths:
        empty = True
        for line, record in _records(Path(path)):
            empty = False
            try:
                form, messages = _messages_of(record)
            except (BadRecord, UserError) as error:
                what = str(error).rstrip(".")
                found.append(Problem(str(path), line, what[:1].lower() + what[1:]))
                continue
            yield Conversation(tuple(messages), form, str(path), line)
        if empty:
            raise UserError(f"{path} holds no conversation; it is empty.")
    if problems is None and found:
        raise UserError(_listed(found))


def _listed(problems: Sequence[Problem]) -> str:
    """All that is wrong: the first ones each on a line of its own, of the others how many."""
    if len(problems) == 1:
        return f"{problems[0]}; mend it, or leave it out with --skip-bad."
    lines = [str(problem) for problem in problems[:MOST_SHOWN]]
    if len(problems) > MOST_SHOWN:
        files = Counter(problem.path for problem in problems)
        lines.append(
            f"and {len(problems) - MOST_SHOWN:,} more ({', '.join(f'{n:,} in {p}' for p, n in files.items())})"
        )
    return (
        f"{len(problems):,} records can't be used:\n  "
        + "\n  ".join(lines)
        + "\nMend them, or leave them out with --skip-bad."
    )


# ---- from a file to records --------------------------------------------------------------------------------------------


def _records(path: Path) -> Iterator[tuple[int, Record | BadRecord]]:
    """(line, record) of a file, or (line, what is wrong there)."""
    line = 1
    try:
        with _opened(path) as file:
            first = file.readline(LONGEST_LINE + 1).removeprefix(codecs.BOM_UTF8)
            while first and not first.strip():
                first, line = file.readline(LONGEST_LINE + 1), line + 1
            if first and _is_json_lines(first):
                for number, record in _from_lines(file, first, line):
                    line = number
                    yield number, record
            else:
                yield from _from_text(first + file.read(), line)
    except EOFError:
        yield line, BadRecord("the gzip file ends in the midst; get it again")
    except (zlib.error, gzip.BadGzipFile) as error:
        yield line, BadRecord(f"the gzip file is damaged ({error})")
    except OSError as error:
        raise UserError(
            f"{path} can't be read ({error.strerror or error}); give the path of a JSON or JSONL file."
        ) from None


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    """For reading, unpacked where the first bytes are gzip's, whatever the name says."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")


def _is_json_lines(first: bytes) -> bool:
    """Whether the first line is a record of its own: else the file is one JSON text, an array or an object over many lines.

    A line that is too long or is no JSON is taken for a record too, unless it only begins an array or object.
    """
    text = first.strip()
    if text.startswith(b"["):
        return False
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos < len(error.doc)  # something wrong before its end; an object that goes on breaks off at it
    except (UnicodeDecodeError, RecursionError):
        pass
    return True


def _from_lines(file: IO[bytes] | gzip.GzipFile, first: bytes, number: int) -> Iterator[tuple[int, Record | BadRecord]]:
    """One record a line; `first`, line `number`, has been read already."""
    data = first
    while data:
        if len(data) > LONGEST_LINE:
            size = len(data)
            while data and not data.endswith(b"\n"):
                data = file.readline(LONGEST_LINE)
                size += len(data)
            most = f"a conversation on one line has at most {LONGEST_LINE >> 20} MiB"
            yield number, BadRecord(f"it is {size / 2**20:,.0f} MiB long; {most}")
        elif data.strip():
            yield number, _parsed(data)
        data, number = file.readline(LONGEST_LINE + 1), number + 1


def _parsed(line: bytes) -> Record | BadRecord:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _not_utf8(line, error)
    except json.JSONDecodeError as error:
        return _no_json(error)
    except RecursionError:
        return BadRecord(TOO_DEEP)


def _from_text(data: bytes, line: int) -> Iterator[tuple[int, Record | BadRecord]]:
    """The elements of a JSON array, or objects one after the other."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        yield line + data.count(b"\n", 0, error.start), _not_utf8(data, error)
        return
    decoder, at, counted = json.JSONDecoder(), _past_blanks(text, 0), 0
    in_array = text.startswith("[", at)
    at = _past_blanks(text, at + in_array)
    while at < len(text) and not (in_array and text[at] == "]"):
        line, counted = line + text.count("\n", counted, at), at
        try:
            record, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            yield line + text.count("\n", counted, error.pos), _no_json(error)
            return
        except RecursionError:
            yield line, BadRecord(TOO_DEEP)
            return
        yield line, record
        at = _past_blanks(text, at)
        if in_array and at < len(text) and text[at] != "]":
            if text[at] != ",":
                missing = BadRecord("a comma or ] is missing between two records")
                yield line + text.count("\n", counted, at), missing
                return
            at = _past_blanks(text, at + 1)
    if in_array and at >= len(text):
        yield line + text.count("\n", counted), BadRecord("the file ends before the array's ]; it is cut short")


TOO_DEEP = "it is nested too deep"


def _not_utf8(data: bytes, error: UnicodeDecodeError) -> BadRecord:
    column = error.start - data.rfind(b"\n", 0, error.start)
    return BadRecord(f"byte {column} of it (0x{data[error.start]:02x}) is not UTF-8; save the file as UTF-8")


def _no_json(error: json.JSONDecodeError) -> BadRecord:
    return BadRecord(f"it is no JSON: {error.msg} at column {error.colno}")


NOT_BLANK = re.compile(r"[^ \t\r\n]")


def _past_blanks(text: str, at: int) -> int:
    found = NOT_BLANK.search(text, at)
    return found.start() if found else len(text)


# ---- from a record to messages -----------------------------------------------------------------------------------------


def _messages_of(record: Record | BadRecord) -> tuple[str, list[Message]]:
    """(name of its form, messages). Raises `BadRecord` or `UserError` for what can't be trained on."""
    if isinstance(record, BadRecord):
        raise record
    if not isinstance(record, dict):
        raise BadRecord(f'it is {_kind(record)}; a conversation is an object such as {{"messages": […]}}')
    form = next((form for form in FORMS if all(key in record for key in form.keys)), None)
    if form is None:
        raise BadRecord(_no_form(record))
    messages = form.read(record)
    system = record.get("system")
    if isinstance(system, str) and system.strip() and not (messages and messages[0].role == "system"):
        messages.insert(0, Message("system", system))
    check_messages(messages)
    if messages[-1].role != "assistant":
        raise BadRecord(f"it ends with a {messages[-1].role} message, which nobody answers")
    if not any(message.train for message in messages if message.role == "assistant"):
        raise BadRecord('no reply of it is to be trained: each has "train": false')
    return form.name, messages


def _no_form(record: dict[str, Any]) -> str:
    """Which key is missing, where a record is nearly of a form; else what it has."""
    for form in FORMS:
        there = [key for key in form.keys if key in record]
        if there:
            missing = " and ".join(f'"{key}"' for key in form.keys if key not in record)
            return f'it has "{there[0]}" but no {missing}'
    keys = ", ".join(f'"{key}"' for key in list(record)[:8]) or "no key at all"
    return f"it has {keys}; known are {'; '.join(' + '.join(form.keys) for form in FORMS)}"


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")


def _text(record: dict[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise BadRecord(f'"{key}" is {_kind(value)}; it must be a text')
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
        for needed in ("role", "content"):
            if needed not in turn:
                raise BadRecord(f'message {number} has no "{needed}"')
        train = turn.get("train", turn.get("weight", True))  # "weight": 0 is OpenAI's way to say it
        if train not in (True, False):
            raise BadRecord(f'"train" of message {number} is {train!r}; it must be true or false')
        messages.append(Message(turn["role"], _content(turn["content"], number), bool(train)))
    return messages


def _content(content: Any, number: int) -> str:
    """A text, also where it comes in parts, [{"type": "text", "text": "…"}, …]."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise BadRecord(f"the content of message {number} is {_kind(content)}; it must be a text")
    return content


SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}


def _from_sharegpt(record: dict[str, Any]) -> list[Message]:
    messages = []
    for number, turn in enumerate(_turns(record, "conversations"), 1):
        if "role" in turn and "content" in turn:  # some files have the one key with the other's messages
            return _from_messages(record, "conversations")
        for needed in ("from", "value"):
            if needed not in turn:
                raise BadRecord(f'message {number} has no "{needed}"')
        role = SHAREGPT_ROLES.get(turn["from"], turn["from"])
        if role not in ROLES:
            known = ", ".join([*SHAREGPT_ROLES, *ROLES])
            raise BadRecord(f"message {number} is from {turn['from']!r}; known are {known}")
        messages.append(Message(role, _content(turn["value"], number)))
    return messages


def _from_alpaca(record: dict[str, Any]) -> list[Message]:
    prompt = _text(record, "instruction")
    more = record.get("input") or ""
    if not isinstance(more, str):
        raise BadRecord(f'"input" is {_kind(more)}; it must be a text')
    if more.strip():
        prompt = f"{prompt}\n\n{more}" if prompt.strip() else more
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
        given = [replace(m, train=m.role != "assistant") for m in _from_messages(record, "prompt")]
        return [*given, *_from_messages(record, "completion")]
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
        raise BadRecord(f'"text" has words that belong to nobody: {stray[:40]!r}')
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return [Message(marker, text.strip()) for marker, text in turns if marker != "endoftext"]


@dataclass(frozen=True)
class Form:
    """A way in which files hold conversations: the keys that tell it, and how its messages are read."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[dict[str, Any]], list[Message]]


FORMS = (
    Form("messages", ("messages",), _from_messages),
    Form("sharegpt", ("conversations",), _from_sharegpt),
    Form("alpaca", ("instruction", "output"), _from_alpaca),
    Form("completion", ("prompt", "completion"), _from_completion),
    Form("question", ("question", "answer"), _from_question),
    Form("text", ("text",), _from_marked_text),
)
