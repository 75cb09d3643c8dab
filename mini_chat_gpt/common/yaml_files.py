"""Read YAML that a user wrote: bounded in size, depth and aliases, one sentence with file and line for a mistake.

YAML's own rules guess a type from how a text looks: `no` is false, 1:30 is 90, 010 is 8, 2024-01-01 is a date. Here a value
without quotes stays the text that was typed (`Plain`). The type of the setting decides how it is read (typed_values.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.json_files import open_regular

MAX_BYTES = 2**20
MAX_DEPTH = 20
MAX_VALUES = 100_000
"""Values in a file, where each use of an alias counts as all values that it stands for."""

Place = tuple[str, ...]
"""The keys that lead to a value; the items of a list count from "0"."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser, if available, is ten times as fast
_NOT_ALLOWED = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG = "tag:yaml.org,2002:"
_TAGS: dict[type[yaml.Event], set[str]] = {
    yaml.ScalarEvent: {"!", *(_TAG + name for name in ("str", "int", "float", "bool", "null"))},
    yaml.SequenceStartEvent: {"!", _TAG + "seq"},
    yaml.MappingStartEvent: {"!", _TAG + "map"},
}


class Plain(str):
    """A value without quotes, as it was typed."""

    __slots__ = ()


@dataclass(frozen=True)
class Document:
    """The values of a YAML text, and the line of each (from 1)."""

    value: Any
    lines: dict[Place, int]


class _Mistake(Exception):
    """A mistake in a line."""

    def __init__(self, event: Any, text: str) -> None:
        super().__init__(f"line {event.start_mark.line + 1}: {text}")


def read_yaml(path: Path, what: str, hint: str, content: str, list_key: str | None = None) -> Document:
    """Read the mapping in a YAML file; {} for an empty file.

    A file that is a list is read as the value of `list_key`, if that is given. Raises UserError with file and line. For the
    messages, `what` names the kind of file, `hint` says how to get one, and `content` describes the expected content.
    """
    try:
        with open(path, "rb", opener=open_regular) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"There is no {what} {path}; {hint}.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"The {what} {short(str(path), 200)[1:-1]} can't be read: {reason.lower()}.") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"The {what} {path} is larger than {MAX_BYTES >> 20} MB; {hint}.")
    document = parse_yaml(_decode(data, f"The {what} {path}"), str(path))
    if document.value == "":
        return Document({}, document.lines)
    if isinstance(document.value, list) and list_key is not None:
        lines = {(list_key, *place): line for place, line in document.lines.items()}
        return Document({list_key: document.value}, lines)
    if not isinstance(document.value, dict):
        found = "a list" if isinstance(document.value, list) else f"the text {short(str(document.value))}"
        raise UserError(f"{path}: expected {content}, found {found}.")
    return document


def _decode(data: bytes, what: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{what} can't be read: it is UTF-16; save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{what} can't be read: line {line} is not UTF-8 text; save the file as UTF-8.") from None


def parse_yaml(text: str, source: str) -> Document:
    """Parse YAML text. Raises UserError; `source` names the text in it."""
    if match := _NOT_ALLOWED.search(text):
        line = text.count("\n", 0, match.start()) + 1
        raise UserError(
            f"{source}, line {line}: U+{ord(match[0]):04X} is not a character of a text; is it a binary file?"
        )
    try:
        return _Composer(text).document()
    except _Mistake as mistake:
        raise UserError(f"{source}, {mistake}.") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        raise UserError(f"{source}{_not_yaml(text, mark)}.") from None


def _not_yaml(text: str, mark: Any) -> str:
    lines = text.splitlines()
    if mark is None or not lines:
        return " is not valid YAML"
    number = min(mark.line, len(lines) - 1)
    line = lines[number]
    advice = "check quotes, brackets, colons and indentation there and in the line before"
    if "\t" in line[: len(line) - len(line.lstrip())]:
        advice = "indent with spaces, not with tabs"
    return f", line {number + 1}: {short(line.strip())} is not valid YAML; {advice}"


class _Composer:
    """Builds the values from the parser's events."""

    def __init__(self, text: str) -> None:
        self.events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self.lines: dict[Place, int] = {}
        self.anchors: dict[str, tuple[Any, int]] = {}  # name -> (value, number of values in it)
        self.n_values = 0

    def document(self) -> Document:
        value: Any = Plain("")
        n_documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                n_documents += 1
                if n_documents > 1:
                    raise _Mistake(event, "a second document begins here; a file has one")
            elif isinstance(event, yaml.NodeEvent):
                value = self.value(event, ())
        return Document(value, self.lines)

    def value(self, event: Any, place: Place) -> Any:
        """The value that begins with `event`."""
        self.lines.setdefault(place, event.start_mark.line + 1)
        if len(place) > MAX_DEPTH:
            raise _Mistake(event, f"values are nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise _Mistake(
                    event, f"*{event.anchor} refers to nothing: there is no complete value &{event.anchor} before it"
                )
            value, size = self.anchors[event.anchor]
            self._count(size, event)
            return value
        before = self.n_values
        self._count(1, event)
        self._check_tag(event)
        if isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(place)
        elif isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(place)
        else:
            is_plain = not event.style and event.tag not in ("!", _TAG + "str")
            value = Plain(event.value) if is_plain else event.value
        if event.anchor:
            self.anchors[event.anchor] = value, self.n_values - before
        return value

    def _count(self, n: int, event: Any) -> None:
        self.n_values += n
        if self.n_values > MAX_VALUES:
            raise _Mistake(event, f"more than {MAX_VALUES:,} values, with aliases (*) replaced by what they stand for")

    def _check_tag(self, event: Any) -> None:
        if event.tag and event.tag not in _TAGS[type(event)]:
            tag = event.tag.replace(_TAG, "!!")
            raise _Mistake(event, f"the tag {short(tag)[1:-1]} is not supported here; remove it")

    def _sequence(self, place: Place) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.value(event, (*place, str(len(items)))))
        return items

    def _mapping(self, place: Place) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key, line = self._key(event, place), event.start_mark.line + 1
            name = ".".join((*place, key))
            if key in lines:
                raise _Mistake(
                    event, f"{short(name, 100)[1:-1]} is set again, after line {lines[key]}; remove one of the two"
                )
            lines[key] = line
            if isinstance(key, Plain) and key == "<<":
                merged = self._merged(next(self.events), place)
                continue
            self.lines[(*place, str(key))] = line
            own[str(key)] = self.value(next(self.events), (*place, str(key)))
        return merged | own

    def _key(self, event: Any, place: Place) -> str:
        key = self.value(event, place) if isinstance(event, yaml.ScalarEvent | yaml.AliasEvent) else None
        if not isinstance(key, str):
            raise _Mistake(event, "a key must be a text, not a list or a mapping")
        return key

    def _merged(self, event: Any, place: Place) -> dict[str, Any]:
        """What `<<: *name` or `<<: [*one, *two]` adds; the first one wins."""
        value = self.value(event, (*place, "<<"))
        merged: dict[str, Any] = {}
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, dict):
                raise _Mistake(event, "<< takes a mapping, such as *name, or a list of mappings")
            merged = item | merged
        return merged
