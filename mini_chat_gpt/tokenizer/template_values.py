"""Values of a chat template while it is rendered without the contents of the messages.

A template is rendered once for all conversations of the same shape. Where a content belongs stands a `Slot`, inside a `Text`: a
string with open places. A template may print a `Text`, join it to others, trim it and write it as JSON. Everything else it could do
with a text (compare it, search it, measure it, cut it) raises `ReadsContent`, so whatever is rendered is proved to be the same for all
contents. The arguments of a tool call are a `Data`: JSON that a template can only print as a whole.

Two facts about contents are known. Each has at least one character that is not white space (`template_inputs.with_slots`). And none has
the name of a control token in it, since a content is ordinary text: where it spells such a name, that is not the token. So a search for
"</think>" finds nothing in a content, if that is a control token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn, cast


class TemplateError(Exception):
    """A template can't be rendered. The message is a clause, without a period."""


class ReadsContent(TemplateError):
    """What the template prints depends on the text of a message."""

    def __init__(self) -> None:
        super().__init__("it depends on the text of a message, not only on the roles")


class Raised(TemplateError):
    """The template itself refuses the conversation, by raise_exception()."""


class _Undefined:
    """A variable, attribute or item that does not exist. It is false, and prints nothing."""

    def __bool__(self) -> bool:
        return False


UNDEFINED: Final = _Undefined()


Path = tuple[str | int, ...]
Step = tuple[str, Any]


@dataclass(frozen=True)
class Slot:
    """The place of a content in a rendered conversation.

    path     where the content is in the template's variables, such as ("messages", 0, "content")
    steps    what the template does to it, in order: (lstrip or rstrip, characters), ("text", ensure_ascii) to write a text as JSON without
             the quotes, or ("data", JSONFormat) to write any value as JSON (template_json.py)
    length   number of characters, if the template may know it
    absent   names that are not in the content
    """

    path: Path
    steps: tuple[Step, ...] = ()
    length: int | None = None
    absent: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @property
    def message(self) -> int | None:
        """Index of the message, None for a content that is not part of a message."""
        return cast(int, self.path[1]) if self.path[0] == "messages" else None

    def then(self, *step: Any) -> Slot:
        """The slot with one more step. A second removal of all white space at the same side changes nothing."""
        if step[1] is None and step in self.steps:
            return self
        return replace(self, steps=(*self.steps, cast(Step, step)), length=None)

    def lacks(self, needle: str) -> bool:
        """Whether it is known that `needle` is not in the content."""
        trimmed_only = all(name in ("lstrip", "rstrip") for name, _ in self.steps)
        return trimmed_only and any(name in needle for name in self.absent)

    def fill(self, variables: Mapping[str, Any]) -> str:
        """The content as the template prints it. `variables` are those of the template, with contents in place of slots.

        Raises ValueError, TypeError or RecursionError for a content that JSON can't express.
        """
        value: Any = variables
        for key in self.path:
            value = value[key]
        for name, argument in self.steps:
            if name == "text":
                value = json.dumps(value, ensure_ascii=argument)[1:-1]
            elif name == "data":
                value = argument.dumps(value)
            else:
                value = getattr(value, name)(argument)
        return cast(str, value)


Part = str | Slot


class Text:
    """A string with at least one slot in it. What would read it raises ReadsContent."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts

    def _read(self, *_: object) -> NoReturn:
        raise ReadsContent

    __len__ = __iter__ = __contains__ = __getitem__ = __hash__ = __bool__ = __str__ = __repr__ = _read
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __mod__ = __rmod__ = __mul__ = __rmul__ = _read

    def length(self) -> int:
        """Number of characters. Raises ReadsContent unless it is known of all contents."""
        sizes = [len(part) if isinstance(part, str) else part.length for part in self.parts]
        if None in sizes:
            raise ReadsContent
        return sum(size for size in sizes if size is not None)

    def lacks(self, needle: str) -> bool:
        """True if `needle` is not in the text, False if it is. Raises ReadsContent if that depends on a content."""
        if any(isinstance(part, str) and needle in part for part in self.parts):
            return False
        # With other text next to a content, the needle could begin in one and end in the other.
        if len(self.parts) == 1 and isinstance(part := self.parts[0], Slot) and part.lacks(needle):
            return True
        raise ReadsContent

    def without_end(self, n: int) -> Text:
        """The text without its last n characters. Raises ReadsContent if they are not all known."""
        end = self.parts[-1]
        if not isinstance(end, str) or n > len(end):
            raise ReadsContent
        return Text((*self.parts[:-1], *([end[:-n]] if n < len(end) else [])))

    def stripped(self, sides: Iterable[str], characters: str | None) -> Text:
        """The text without white space at its ends, or only those of the `characters`. `sides`: lstrip, rstrip or both."""
        if characters is not None and characters.strip():
            raise ReadsContent  # only of white space is it known that it does not remove a whole content
        parts = list(self.parts)
        for side in sides:
            end = 0 if side == "lstrip" else -1
            while isinstance(part := parts[end], str):
                part = part.lstrip(characters) if side == "lstrip" else part.rstrip(characters)
                if part:
                    parts[end] = part
                    break
                del parts[end]
            else:
                parts[end] = part.then(side, characters)
        return Text(tuple(parts))


@dataclass(frozen=True)
class Data:
    """A JSON object or list that is not empty. A template can only print its JSON."""

    slot: Slot
    is_mapping: bool


def join(values: Iterable[str | Text | Slot]) -> str | Text:
    """Concatenate."""
    parts: list[Part] = []
    for value in values:
        for part in value.parts if isinstance(value, Text) else (value,):
            if isinstance(part, str) and parts and isinstance(last := parts[-1], str):
                parts[-1] = last + part
            elif part != "":
                parts.append(part)
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    return Text(tuple(parts)) if parts else ""


def printed(value: Any) -> str | Text:
    """What `{{ value }}` prints."""
    if isinstance(value, str | Text):
        return value
    if value is UNDEFINED:
        return ""
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    raise TemplateError(f"it prints {kind_of(value)}")


def truth(value: Any) -> bool:
    """Whether a value is true. A text with a content in it is not empty."""
    return True if isinstance(value, Text) else bool(value)


def equal(left: Any, right: Any) -> bool:
    """`left == right`. Raises ReadsContent if only a content could tell."""
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Text):
            if isinstance(other, Text) or (isinstance(other, str) and other.strip() and not one.lacks(other)):
                raise ReadsContent
            return False  # another type, or a blank text
        if isinstance(one, Data):
            if isinstance(other, Mapping | list | Data):
                raise ReadsContent
            return False
    return cast(bool, left == right)


def contains(container: Any, item: Any) -> bool:
    """`item in container`."""
    if isinstance(container, list | tuple):
        return any(equal(item, one) for one in container)
    if isinstance(container, Text) and isinstance(item, str):
        return not container.lacks(item)
    if isinstance(container, Text | Data) or (isinstance(container, str) and isinstance(item, Text)):
        raise ReadsContent
    if container is UNDEFINED:
        return False
    if isinstance(container, str | Mapping | range):
        return item in container
    raise TemplateError(f"it searches {kind_of(container)}")


def kind_of(value: Any) -> str:
    """The type of a value in words."""
    kinds = {
        "a text": str | Text,
        "a list": list | tuple | range,
        "a mapping": Mapping | Data,
        "a number": int | float,
        "nothing": type(None),
        "an undefined value": _Undefined,
    }
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), "a function")


LIMIT = 1 << 20
"""Sizes are counted up to this one, which no template can pay for."""


def size_of(value: Any, limit: int) -> int:
    """Cost of reading a value with all that is in it, counted up to `limit`. What occurs twice counts twice, as it is read twice."""
    size, rest = 0, [value]
    while rest and size <= limit:
        size += 1
        one = rest.pop()
        if isinstance(one, str):
            size += len(one) // 16
        elif isinstance(one, Text):
            size += len(one.parts)
        elif isinstance(one, Mapping):
            rest += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            rest += one
        elif isinstance(one, range):
            size += len(one) // 4
    return size
