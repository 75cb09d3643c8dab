"""The records of JSON and JSON Lines, with their places; see `record_files`.

A file is read in pieces, also if it is a single array, so that memory holds one record at a time.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mini_chat_gpt.data.file_kinds import TextStream

MAX_LINE = 16 * 2**20
"""Bytes of a line, or of a record of an array. No conversation is that long: a longer one is a file of another kind."""
_PIECE = 2**16  # characters that are read at a time

Record = Any  # a JSON value


class BadRecord(Exception):
    """What is wrong with a record, as a clause."""


def is_json_lines(first: bytes, start: bytes = b"") -> bool:
    """Whether the first line is a complete record. If not, the file is one JSON text: an array, or objects over several lines.

    A line that is too long or invalid also counts as a record, unless it is the beginning of an array or an object. `start` is the
    beginning of the file: where another line is an object, the first one is a damaged record.
    """
    text = first.strip()
    if text.startswith(b"["):
        return False
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        # An object over several lines fails at the end. Its inner lines don't begin with a key in the first column.
        return error.pos < len(error.doc) or any(line.startswith(b'{"') for line in start.splitlines()[1:])
    except (ValueError, RecursionError):  # not UTF-8, a number of too many digits
        pass
    return True


def from_lines(file: TextStream, first: bytes, number: int) -> Iterator[tuple[str, Record | BadRecord]]:
    """One record per line. `first`, line `number`, has been read already."""
    data = first
    while data:
        if len(data) > MAX_LINE:
            size = len(data)
            while data and not data.endswith(b"\n"):
                data = file.readline(MAX_LINE)
                size += len(data)
            limit = f"the limit for a line is {MAX_LINE >> 20} MiB"
            yield f"line {number}", BadRecord(f"it is {size / 2**20:,.0f} MiB long; {limit}")
        elif data.strip():
            yield f"line {number}", (record := _parsed(data))
            if isinstance(record, BadRecord) and data.startswith(b"{"):
                data, number = _after_indented(file, number + 1)
                continue
        data, number = file.readline(MAX_LINE + 1), number + 1


def _after_indented(file: TextStream, number: int) -> tuple[bytes, int]:
    """(line, number) after the indented lines of an object that begins on the line before: they are part of its error."""
    indented = False
    while (data := file.readline(MAX_LINE + 1)).startswith((b" ", b"\t")):
        number, indented = number + 1, True
    return (file.readline(MAX_LINE + 1), number + 1) if indented and data.startswith(b"}") else (data, number)


def _parsed(line: bytes) -> Record | BadRecord:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _not_utf8(line, error.start)
    except json.JSONDecodeError as error:
        return _invalid_json(error)
    except (ValueError, RecursionError) as error:
        return _refused(error)


class _Text:
    """The text of a file from a position on, of which a piece is in memory."""

    def __init__(self, file: TextStream, first: bytes, line: int) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8")()
        self._piece, self._at = "", 0
        self.line = line  # of the position
        self._ended = False
        self._add(first)

    def next(self) -> str:
        """The next character that is not blank, where the position is moved to; "" at the end."""
        while True:
            match = NOT_BLANK.search(self._piece, self._at)
            self._move(match.start() if match else len(self._piece))
            if match or self._ended:
                return match[0] if match else ""
            self._read(_PIECE)

    def skip(self) -> None:
        """Move past the character that `next` returned."""
        self._move(self._at + 1)

    def value(self) -> Record:
        """The next JSON value, after which the position is moved. Raises JSONDecodeError, RecursionError or ValueError."""
        decoder = json.JSONDecoder()
        while True:
            left = len(self._piece) - self._at
            try:
                value, end = decoder.raw_decode(self._piece, self._at)
            except json.JSONDecodeError:
                if self._ended or left > MAX_LINE:
                    raise
            else:
                if end < len(self._piece) or self._ended:
                    self._move(end)
                    return value
            # It may be incomplete. Each time as much again is read, so that the work stays linear.
            self._read(max(_PIECE, left))

    def _move(self, to: int) -> None:
        self.line += self._piece.count("\n", self._at, to)
        self._at = to

    def _read(self, n: int) -> None:
        data = self._file.read(n)
        self._ended = not data
        self._add(data)

    def _add(self, data: bytes) -> None:
        kept = self._piece[self._at :]
        try:
            self._piece, self._at = kept + self._decoder.decode(data, final=not data), 0
        except UnicodeDecodeError as error:
            before = kept.encode() + error.object[: error.start]
            line = self.line + before.count(b"\n")
            raise _NotUTF8(f"line {line}", _not_utf8(before + error.object[error.start :], len(before))) from None


class _NotUTF8(Exception):
    def __init__(self, place: str, record: BadRecord) -> None:
        super().__init__(str(record))
        self.place, self.record = place, record


def from_text(file: TextStream, first: bytes, line: int) -> Iterator[tuple[str, Record | BadRecord]]:
    """The elements of a JSON array, or several objects in a row."""
    place = f"line {line}"
    try:
        text = _Text(file, first, line)
        if in_array := text.next() == "[":
            text.skip()
        number = 0
        while text.next() not in ("", "]") if in_array else text.next():
            number += 1
            # In an array that is a single line all records are in line 1.
            place = (
                f"record {number}" + (f", line {text.line}" if text.line > 1 else "")
                if in_array
                else f"line {text.line}"
            )
            record = text.value()
            yield place, record
            if in_array and text.next() not in ("", "]"):
                if text.next() != ",":
                    yield place, BadRecord("a comma or ] is missing after it")
                    return
                text.skip()
        if in_array and not text.next():
            yield f"line {text.line}", BadRecord("the file ends before the array's ]; it is incomplete")
        elif in_array:
            text.skip()
            if text.next():
                yield f"line {text.line}", BadRecord("it follows the array's ]; it and what follows can't be read")
    except _NotUTF8 as error:
        yield error.place, error.record
    except json.JSONDecodeError as error:
        yield place, _invalid_json(error, LOST)
    except (ValueError, RecursionError) as error:
        yield place, _refused(error, LOST)


LOST = ", and what follows can't be read"
TOO_DEEP = "it is nested too deeply"


def _refused(error: ValueError | RecursionError, lost: str = "") -> BadRecord:
    return BadRecord((TOO_DEEP if isinstance(error, RecursionError) else "it has a number of too many digits") + lost)


def _not_utf8(data: bytes, at: int) -> BadRecord:
    column = at - data.rfind(b"\n", 0, at)
    return BadRecord(f"byte {column} of it (0x{data[at]:02x}) is not UTF-8; {save_as_utf8(data, at)}")


def save_as_utf8(data: bytes, at: int) -> str:
    """What to do about bytes that are not UTF-8 at a position. A lone byte of more than 7 bits is an accented letter in Windows-1252."""
    lone = data[at] >= 0x80 and all(byte < 0x80 for byte in data[max(0, at - 1) : at] + data[at + 1 : at + 2])
    with suppress(UnicodeDecodeError):
        if lone and data[at : at + 1].decode("cp1252"):
            return "it seems to be Windows-1252: save the file as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW_FILE"
    return "save the file as UTF-8"


def _invalid_json(error: json.JSONDecodeError, lost: str = "") -> BadRecord:
    what = error.msg.removesuffix(" at").removesuffix(" starting")
    near = error.doc[max(0, error.pos - 8) : error.pos + 12].strip()
    place = f"column {error.colno}" + (f", near {near!r}" if error.pos else "")
    if not lost and error.msg not in _JSON_HINTS and error.pos >= len(error.doc.rstrip()) and error.doc.startswith("{"):
        return BadRecord(
            f"it is not valid JSON: the line ends within an object; write each record on one line, {_WITH_JQ}"
        )
    hint = _json_hint(error)
    return BadRecord(f"it is not valid JSON: {what} at {place}{lost}{f'; {hint}' if hint else ''}")


def _json_hint(error: json.JSONDecodeError) -> str:
    """What to do about the usual mistakes in JSON; "" for others."""
    rest = error.doc[error.pos : error.pos + 20].lstrip()
    before = error.doc[max(0, error.pos - 20) : error.pos].rstrip()
    if rest.startswith("'"):
        return "write keys and texts in double quotes, as Python's json.dumps does"
    if rest.startswith(("None", "True", "False")):
        return "write null, true or false"
    if rest.startswith(("]", "}")) and before.endswith(","):
        return "remove the comma before the bracket"
    return _JSON_HINTS.get(error.msg, "")


_WITH_JQ = "for example with jq -c . FILE > NEW_FILE"
_JSON_HINTS = {
    "Extra data": f"write each record on a line of its own, {_WITH_JQ}",
    "Expecting ',' delimiter": 'a comma is missing, or a quotation mark in a text, which is written \\"',
    "Invalid control character at": "write a line break in a text as \\n, and a tab as \\t",
    "Invalid \\escape": "write a backslash as \\\\",
}
"""Message of Python's JSON reader -> what to do."""


NOT_BLANK = re.compile(r"[^ \t\r\n]")
