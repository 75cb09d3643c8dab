"""Read the records of JSON and JSON Lines files, plain or gzipped, with their line numbers.

A damaged record does not end the file: it is returned as a `BadRecord`, so that a caller can report everything that is wrong.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import open_regular

MAX_LINE = 16 * 2**20
"""Bytes. No conversation is that long; a longer line means that the file is of another kind."""

Record = Any  # a JSON value


class BadRecord(Exception):
    """What is wrong with a record, as a clause."""


def read_json_records(path: Path) -> Iterator[tuple[int, Record | BadRecord]]:
    """(line, record) for each record, or (line, BadRecord). Raises UserError if the file can't be read."""
    line = 1
    try:
        with _opened(path) as file:
            first = file.readline(MAX_LINE + 1).removeprefix(codecs.BOM_UTF8)
            while first and not first.strip():
                first, line = file.readline(MAX_LINE + 1), line + 1
            if first and _is_json_lines(first):
                for number, record in _from_lines(file, first, line):
                    line = number
                    yield number, record
            else:
                yield from _from_text(first + file.read(), line)
    except EOFError:
        yield line, BadRecord("the gzip file is incomplete; get it again")
    except (zlib.error, gzip.BadGzipFile) as error:
        yield line, BadRecord(f"the gzip file is damaged ({error})")
    except OSError as error:
        raise UserError(
            f"{path} can't be read ({error.strerror or error}); give the path of a JSON or JSONL file."
        ) from None


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    """Open for reading. A file that begins with gzip's signature is decompressed, whatever its name is."""
    with open(path, "rb", opener=open_regular) as file:  # a device may have no end, and a pipe can't be read twice
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else path.open("rb")


def _is_json_lines(first: bytes) -> bool:
    """Whether the first line is a complete record. If not, the file is one JSON text: an array, or objects over several lines.

    A line that is too long or invalid also counts as a record, unless it is the beginning of an array or an object.
    """
    text = first.strip()
    if text.startswith(b"["):
        return False
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos < len(error.doc)  # an error before the end; an object over several lines fails at the end
    except (UnicodeDecodeError, RecursionError):
        pass
    return True


def _from_lines(file: IO[bytes] | gzip.GzipFile, first: bytes, number: int) -> Iterator[tuple[int, Record | BadRecord]]:
    """One record per line. `first`, line `number`, has been read already."""
    data = first
    while data:
        if len(data) > MAX_LINE:
            size = len(data)
            while data and not data.endswith(b"\n"):
                data = file.readline(MAX_LINE)
                size += len(data)
            limit = f"the limit for a line is {MAX_LINE >> 20} MiB"
            yield number, BadRecord(f"it is {size / 2**20:,.0f} MiB long; {limit}")
        elif data.strip():
            yield number, _parsed(data)
        data, number = file.readline(MAX_LINE + 1), number + 1


def _parsed(line: bytes) -> Record | BadRecord:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _not_utf8(line, error)
    except json.JSONDecodeError as error:
        return _invalid_json(error)
    except RecursionError:
        return BadRecord(TOO_DEEP)


def _from_text(data: bytes, line: int) -> Iterator[tuple[int, Record | BadRecord]]:
    """The elements of a JSON array, or several objects in a row."""
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
            yield line + text.count("\n", counted, error.pos), _invalid_json(error)
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
        yield line + text.count("\n", counted), BadRecord("the file ends before the array's ]; it is incomplete")


TOO_DEEP = "it is nested too deeply"


def _not_utf8(data: bytes, error: UnicodeDecodeError) -> BadRecord:
    column = error.start - data.rfind(b"\n", 0, error.start)
    return BadRecord(f"byte {column} of it (0x{data[error.start]:02x}) is not UTF-8; save the file as UTF-8")


def _invalid_json(error: json.JSONDecodeError) -> BadRecord:
    return BadRecord(f"it is not valid JSON: {error.msg} at column {error.colno}")


NOT_BLANK = re.compile(r"[^ \t\r\n]")


def _past_blanks(text: str, at: int) -> int:
    match = NOT_BLANK.search(text, at)
    return match.start() if match else len(text)
