"""Values of a chat template while it is rendered without the contents of the messages.

A template is rendered once for all conversations with the same roles. Where a content belongs stands a `Slot`, inside a `Text`: a
string with open places. A template may print a `Text`, join it to others and trim it. Everything else it could do with a text
(compare it, search it, measure it, cut it) raises `ReadsContent`, so whatever is rendered is proved to be the same for all contents.

One fact about contents is known: each has at least one character that is not white space (`chat_format.check_messages`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Slot:
    """The place of a message's content in a rendered conversation."""

    message: int  # index of the message
    steps: tuple[
        tuple[str, str | None], ...
    ] = ()  # (lstrip or rstrip, characters): what the template does to the content

    def stripped(self, side: str, characters: str | None) -> Slot:
        """The slot with one more step."""
        return self if (side, None) in self.steps else replace(self, steps=(*self.steps, (side, characters)))

    def fill(self, content: str) -> str:
        """The content as the template prints it."""
        for side, characters in self.steps:
            content = content.lstrip(characters) if side == "lstrip" else content.rstrip(characters)
        return content


Part = str | Slot


class Text:
    """A string with at least one slot in it. What would read it raises ReadsContent."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts

    def _read(self, *_: object) -> NoReturn:
        raise ReadsContent

    __len__ = __iter__ = __contains__ = __getitem__ = __hash__ = __bool__ = __str__ = __repr__ = _read
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __mod__ = __rmod__ = __mul__ = __rmul__ = _read

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
                parts[end] = part.stripped(side, characters)
        return Text(tuple(parts))


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
            if isinstance(other, Text) or (isinstance(other, str) and other.strip()):
                raise ReadsContent
            return False  # another type, or a blank text
    return cast(bool, left == right)


def contains(container: Any, item: Any) -> bool:
    """`item in container`."""
    if isinstance(container, list | tuple):
        return any(equal(item, one) for one in container)
    if isinstance(container, Text) or (isinstance(container, str) and isinstance(item, Text)):
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
        "a mapping": Mapping,
        "a number": int | float,
        "nothing": type(None),
        "an undefined value": _Undefined,
    }
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), "a function")


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
