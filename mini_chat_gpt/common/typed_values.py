"""Read values without quotes as the type of their setting says: text as typed, null as nothing, the rest as numbers and words.

Text is never interpreted: a run named `no`, `1e5` or `2024-01-01` has that name. In a setting that can be null, `null`, `~` and
an empty value mean null.
"""

from __future__ import annotations

import re
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from mini_chat_gpt.common.yaml_files import Plain

NULLS = ("", "null", "Null", "NULL", "~")
_WHOLE = re.compile(r"[-+]?[0-9][0-9_]*")
_NUMBER = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_MAX_DIGITS = 400  # more than any float has


def alternatives(kind: Any) -> list[Any]:
    """The types that a value may have, without unions and annotations around them."""
    if get_origin(kind) is Annotated:
        return alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [one for part in get_args(kind) for one in alternatives(part)]
    return [kind]


def child_type(kind: Any, key: str) -> Any | None:
    """The type of what is at `key` (the index of a list's item as text) in a value of this type; None if nothing can."""
    for one in alternatives(kind):
        if one is Any:
            return Any
        if _is_section(one):
            return one.model_fields[key].annotation if key in one.model_fields else None
        if get_origin(one) is dict:
            return get_args(one)[1]
        if get_origin(one) in (list, tuple):
            return get_args(one)[0] if key.isdigit() else None
    return None


def takes_text(kind: Any) -> bool:
    """Whether a value of this type is a text and never a list or a mapping, so that brackets in it have no meaning."""
    return str in alternatives(kind) and not any(map(_is_container, alternatives(kind)))


def read_as(value: Any, kind: Any) -> Any:
    """A value of a YAML document with each value without quotes in it read as its type in `kind` says."""
    if isinstance(value, dict):
        return {key: read_as(item, child_type(kind, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [read_as(item, _item_type(kind)) for item in value]
    return _read_plain(value, alternatives(kind)) if isinstance(value, Plain) else value


def _read_plain(value: Plain, kinds: list[Any]) -> Any:
    is_null = value in NULLS
    if is_null and NoneType in kinds:
        return None
    if is_null and any(map(_is_container, kinds)):
        return [] if any(get_origin(one) in (list, tuple) for one in kinds) else {}
    if str in kinds or any(map(_is_container, kinds)):
        return str(value)
    if is_null:
        return None
    if any(one is Any or one is None for one in kinds) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return _number(value.strip())


def _number(text: str) -> int | float | str:
    """The number that a text stands for, or the text. Whole numbers are decimal; digits may be grouped by underscores."""
    digits = text.replace("_", "")
    if len(text) <= _MAX_DIGITS and _WHOLE.fullmatch(text):
        return int(digits)
    return float(digits) if len(text) <= _MAX_DIGITS and _NUMBER.fullmatch(text) else str(text)


def _item_type(kind: Any) -> Any:
    """The type of a list's items. Where a mapping is expected, a list names its keys."""
    for one in alternatives(kind):
        if get_origin(one) in (list, tuple, dict):
            return get_args(one)[0]
    return Any


def _is_section(kind: Any) -> bool:
    # In Python 3.10, dict[str, int] is an instance of type, too.
    return get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_container(kind: Any) -> bool:
    return _is_section(kind) or get_origin(kind) in (list, tuple, dict)
