"""Read the records of a file in any of the usual forms: JSON, JSON Lines, CSV, TSV, YAML, Parquet, Arrow.

`file_kinds` says how a file is packed.

The form is detected from the content, not from the name. A record that can't be used does not end the file: it is returned as a
`BadRecord`, so that a caller can report everything that is wrong.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mini_chat_gpt.common.chat_keys import LISTS, PREFERENCE, PROMPTS, REPLIES, SYSTEMS
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.yaml_files import MAX_BYTES, parse_yaml
from mini_chat_gpt.data.arrow_files import kind_of, read_rows
from mini_chat_gpt.data.file_kinds import START, IncompleteData, TextStream, open_text
from mini_chat_gpt.data.json_records import (
    LOST,
    MAX_LINE,
    BadRecord,
    Record,
    from_lines,
    from_text,
    is_json_lines,
    save_as_utf8,
)

Records = Iterator[tuple[str, Record | BadRecord]]
COLUMNS = frozenset({*LISTS, *PROMPTS, *REPLIES, *SYSTEMS, *PREFERENCE, "context", "text"})
"""Names of columns by which a table is distinguished from a text with commas; upper case counts as lower case."""
_VALUES = frozenset({*LISTS, *PREFERENCE, "prompt", "completion", "answer", "answers"})
"""Columns that have texts, or lists and objects as JSON."""
FORMS = "JSON, JSON Lines, CSV, TSV, YAML, Parquet or Arrow"


def read_records(path: Path) -> Records:
    """(place, record) for each record, or (place, BadRecord), with a place such as "line 7" or "record 7".

    Raises UserError if the file can't be read, or has no records.
    """
    place = "line 1"
    try:
        if (kind := kind_of(path)) is not None:
            for place, record in read_rows(path, kind):
                yield place, record if isinstance(record, BadRecord) else _named(record)
            return
        with open_text(path) as file:
            line, first = 1, file.readline(MAX_LINE + 1).removeprefix(codecs.BOM_UTF8)
            while first and not first.strip():
                first, line = file.readline(MAX_LINE + 1), line + 1
            for place, record in _reader(path, file, first, line) if first else ():
                yield place, record
    except IncompleteData as error:
        yield place, BadRecord(str(error))
    except OSError as error:
        raise UserError(
            f"{path} can't be read ({error.strerror or error}); give the path of a file in {FORMS}."
        ) from None


def holds_records(path: Path) -> bool:
    """Whether a file of any name begins like records, JSON or a table, and not like a text."""
    try:
        with open_text(path) as file:
            lines = (line.strip() for line in file.start.removeprefix(codecs.BOM_UTF8).splitlines())
            first = next(filter(None, lines), b"")
    except (OSError, UserError):  # which is reported where the file is read
        return False
    return bool(_JSON.match(first)) or _delimiter(first.decode("utf-8", "replace")) is not None


_JSON = re.compile(rb'(\[\s*(\{\s*)?|\{\s*)("|$)')  # a novel can begin with [Illustration]


def _reader(path: Path, file: TextStream, first: bytes, line: int) -> Records:
    """The records of a file whose first line that is not blank has been read."""
    if _begins_json(first):
        return from_lines(file, first, line) if is_json_lines(first, file.start) else from_text(file, first, line)
    text = first.decode("utf-8", "replace").partition("\r")[0]
    if (delimiter := _delimiter(text) or _unknown_table(path, text, file.start)) is not None:
        return _from_table(file, first, line, delimiter)
    if re.match(r"---|%YAML|-\s+\S|\"?\w+\"?:(\s|$)|#", text) and (found := _from_yaml(path, file, first)) is not None:
        return found
    if any(map(_begins_json, file.start.splitlines())):
        return from_lines(file, first, line)  # a line of JSON Lines is damaged, or a comment
    if first.lstrip().startswith(b"<?xml"):
        raise UserError(f"{path} is XML; convert it to JSON Lines or CSV.")
    if _SUFFIX.search(path.name):
        raise UserError(
            f"{path} has no known column: its first line is {text.strip()[:60]!r}; write the names of the columns there, such as "
            "question,answer."
        )
    raise UserError(
        f"{path} is plain text: no line of its beginning is a record. Chats are read from {FORMS}; a text to pretrain on is "
        "named in pretrain.dataset_path, and stories in sft.dataset_path."
    )


def _begins_json(line: bytes) -> bool:
    """Whether a line begins like an object or an array of JSON, and not like "[12/03/24, 10:00] Anna: Hi"."""
    text = line.strip()
    if not text.startswith(b"["):
        return text.startswith(b"{")
    inner = text[1:].lstrip()
    return inner[:1] in b'{["]' or re.match(rb"(-?[\d.]+|null|true|false)\s*[],]", inner) is not None


# Tables


def _delimiter(header: str) -> str | None:
    """What separates the columns, if a line is the header of a table."""
    for delimiter in (",", "\t", ";", "|"):
        try:
            names = next(csv.reader([header], delimiter=delimiter, strict=True), [])
        except csv.Error:  # a quote that does not end
            continue
        if {name.strip().lower() for name in names} & COLUMNS and all(len(name) < 60 for name in names):
            return delimiter
    return None


def _unknown_table(path: Path, header: str, start: bytes) -> str | None:
    """What separates the columns of a table whose names are not known: short names, and as many columns in each line.

    The name of the file counts where there is no whole second row.
    """
    for delimiter in (",", "\t", ";", "|"):
        names = header.strip().split(delimiter)
        if len(names) < 2 or not all(_COLUMN.fullmatch(name) for name in names):
            continue
        if _SUFFIX.search(path.name):
            return delimiter
        rows: list[list[str]] = []
        with suppress(csv.Error):  # the last one may be cut
            rows.extend(
                csv.reader(io.StringIO(start.decode("utf-8", "replace"), newline=""), delimiter=delimiter, strict=True)
            )
        rows = [row for row in rows[: -1 if len(start) >= START else None] if row]
        if len(rows) >= 2 and {len(row) for row in rows} == {len(names)}:
            return delimiter
    return None


_COLUMN = re.compile(r'"?[^\W\d][\w.-]*(?: [\w.-]+){0,2}"?')  # prose has a space after a comma
_SUFFIX = re.compile(r"\.[ct]sv\b", re.IGNORECASE)


def _from_table(file: TextStream, first: bytes, line: int, delimiter: str) -> Records:
    """The rows of a table as {column: text}. A column of lists (messages) has them as JSON."""
    csv.field_size_limit(MAX_LINE)
    rows = csv.reader(_lines(file, first), delimiter=delimiter, strict=True)
    number, begins = 0, line
    names: list[str] = []
    for row in _until_error(rows):
        place = f"record {number}, line {begins}" if number else f"line {line}"
        if isinstance(row, BadRecord):
            yield place, row
        elif not number:
            names = [name.strip() for name in row]
            if repeated := {name for name in names if name and names.count(name) > 1}:
                yield place, BadRecord(f"several columns are named {min(repeated)!r}; rename or remove one")
                return
        elif not row:
            number -= 1
        elif len(row) != len(names):
            what = f"it has {len(row)} columns, and the first line has {len(names)}; quote texts with {delimiter!r} in them"
            yield place, BadRecord(what)
        else:
            yield place, _named(dict(zip(names, row, strict=True)))
        number, begins = number + 1, line + rows.line_num


def _until_error(rows: Iterator[list[str]]) -> Iterator[list[str] | BadRecord]:
    """The rows of a table; where one can't be read, so can't those after it."""
    try:
        yield from rows
    except csv.Error as error:
        yield BadRecord(f"it is not a row of a table: {error}{LOST}")
    except UnicodeDecodeError as error:
        wrong = f"0x{error.object[error.start]:02x} in it is not UTF-8{LOST}"
        yield BadRecord(f"{wrong}; {save_as_utf8(error.object, error.start)}")


def _lines(file: TextStream, first: bytes) -> Iterator[str]:
    """The lines of a table, which may end with a carriage return alone."""
    data = first
    while data:
        yield from io.StringIO(data.decode(), newline="") if b"\r" in data else [data.decode()]
        data = file.readline(MAX_LINE)


def _named(row: dict[str, Any]) -> Record:
    """A row with its known columns in lower case, and without a column that has no name, as an index has none."""
    lower = {name: name.lower() for name in row if name.lower() in COLUMNS and name.lower() not in row}
    return {lower.get(name, name): _cell(lower.get(name, name), value) for name, value in row.items() if name}


def _cell(name: str, text: Any) -> Any:
    """A list of messages or an object with answers may be JSON in a table; everything else is as it is."""
    if name in LISTS and isinstance(text, dict):  # a list for each key, as `datasets` stores some lists of objects
        lists = [*text.values()]
        if all(isinstance(one, list) for one in lists) and len(set(map(len, lists))) == 1:
            return [dict(zip(text, items, strict=True)) for items in zip(*lists, strict=True)]
    if name not in _VALUES or not isinstance(text, str) or not text.startswith(("[", "{")):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    parts = value if isinstance(value, list) else [value]
    is_list = all(isinstance(part, dict) for part in parts) or name in ("answer", "answers")
    return value if parts and is_list else text


# YAML


def _from_yaml(path: Path, file: TextStream, first: bytes) -> Records | None:
    """The items of a YAML list, or a single mapping; None if it is neither."""
    data = first
    while len(data) <= MAX_BYTES and (more := file.read(MAX_BYTES)):
        data += more
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} is YAML of more than {MAX_BYTES >> 20} MiB; convert it to JSON Lines.")
    value = parse_yaml(text, str(path)).value
    records = value if isinstance(value, list) else [value]
    if not all(isinstance(record, dict) for record in records):
        return None
    return ((f"record {number}", record) for number, record in enumerate(records, 1))
