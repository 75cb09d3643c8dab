"""The filter `tojson` of chat templates, also for values with contents in them, which it does not read (see template_values.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mini_chat_gpt.tokenizer.template_values import LIMIT, Data, Part, TemplateError, Text, join, kind_of, size_of


@dataclass(frozen=True)
class JSONFormat:
    """The options of json.dumps, and how deep in an indented text the value stands."""

    ensure_ascii: bool
    indent: int | str | None
    separators: tuple[str, str] | None
    sort_keys: bool
    depth: int = 0

    def dumps(self, value: Any) -> str:
        """The JSON of a value."""
        text = json.dumps(
            value,
            ensure_ascii=self.ensure_ascii,
            indent=self.indent,
            separators=self.separators,
            sort_keys=self.sort_keys,
        )
        return text.replace("\n", self.line(self.depth))  # within texts a line break is escaped

    def line(self, depth: int) -> str:
        """A line break and the indent of this depth."""
        indent = " " * self.indent if isinstance(self.indent, int) else self.indent or ""
        return "\n" + indent * depth

    @property
    def comma(self) -> str:
        """What separates two items."""
        return "," if self.separators is None and self.indent is not None else (self.separators or (", ", ": "))[0]

    @property
    def colon(self) -> str:
        """What separates a key from its value."""
        return (self.separators or (", ", ": "))[1]


def tojson(
    charge: Callable[[int], None],
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str | Text:
    """`value | tojson(...)`, without the escapes for HTML, as in `transformers`. The contents in the value stay open."""
    size = size_of(value, LIMIT)
    charge(2 * size)
    if isinstance(indent, int | str):
        charge(size * (indent if isinstance(indent, int) else len(indent)))
    elif indent is not None:
        raise TemplateError(f"it indents JSON by {kind_of(indent)}")
    if separators and not (len(separators) == 2 and all(isinstance(one, str) for one in separators)):
        raise TemplateError("it writes JSON with separators that are not a pair of texts")
    pair = (separators[0], separators[1]) if separators else None
    form = JSONFormat(bool(ensure_ascii), indent, pair, bool(sort_keys))
    return join(_json_parts(value, form) if _is_open(value) else [form.dumps(value)])


def _is_open(value: Any) -> bool:
    """Whether there is a content in a value."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, Text | Data) or any(map(_is_open, items))


def _json_parts(value: Any, form: JSONFormat) -> list[Part]:
    """The JSON of a value, in the format of json.dumps."""
    if isinstance(value, Text):
        parts: list[Part] = [
            json.dumps(part, ensure_ascii=form.ensure_ascii)[1:-1]
            if isinstance(part, str)
            else part.then("text", form.ensure_ascii)
            for part in value.parts
        ]
        return ['"', *parts, '"']
    if isinstance(value, Data):
        return [value.slot.then("data", form)]
    if not value or not isinstance(value, Mapping | list | tuple):
        return [form.dumps(value)]
    inner = replace(form, depth=form.depth + 1)
    items: list[list[Part]]
    if isinstance(value, Mapping):
        keys = sorted(value) if form.sort_keys else list(value)
        items = [[form.dumps(key) + form.colon, *_json_parts(value[key], inner)] for key in keys]
    else:
        items = [_json_parts(one, inner) for one in value]
    before, after = ("", "") if form.indent is None else (form.line(inner.depth), form.line(form.depth))
    lines: list[Part] = [part for item in items for part in (form.comma + before, *item)]
    begin, end = "{}" if isinstance(value, Mapping) else "[]"
    return [begin + before, *lines[1:], after + end]
