"""Read JSON files from disk: bounded in size and depth, checked against a declared structure, one sentence for a mistake.

Every JSON file that the program reads back goes through here. A file can be cut, edited or damaged, so its structure is never
assumed: it is declared as a subclass of `JSONRecord` (or any type that pydantic can check).
"""

from __future__ import annotations

import codecs
import json
import os
import stat
from collections.abc import Hashable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.errors import short as short

T = TypeVar("T")
MAX_BYTES = 16 * 2**20
"""Default limit on the size of a file. Parsed values can take forty times as much memory as their text."""


class JSONRecord(BaseModel):
    """Base class of structures that are stored as JSON. Keys that a structure does not declare are ignored: later versions add some."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class DamagedJSON(UserError):
    """A JSON file can't be read, is not JSON, or does not have the declared structure."""


def read_json(path: Path | str, structure: type[T], remedy: str, max_bytes: int = MAX_BYTES) -> T:
    """Read a JSON file as `structure`, a type that pydantic can check, such as a `JSONRecord` or dict[str, int].

    Raises FileNotFoundError if there is no file, and DamagedJSON, one sentence that ends with `remedy`, for anything else.
    """
    path = Path(path)
    try:
        with open(path, "rb", opener=open_regular) as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise DamagedJSON(f"{short(str(path), 300)[1:-1]} can't be read ({reason}); {remedy}.") from None
    if len(data) > max_bytes:
        raise DamagedJSON(f"{path} is larger than the {max_bytes >> 20} MB that such a file can have; {remedy}.")
    return parse_json(data.removeprefix(codecs.BOM_UTF8), structure, str(path), remedy)


def open_regular(path: str, flags: int) -> int:
    """Open a file for `open`. Reading a pipe or a device might never end, so they are refused."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe doesn't wait for its writer
    if not stat.S_ISREG(mode := os.fstat(handle).st_mode):
        os.close(handle)
        raise IsADirectoryError("is a directory") if stat.S_ISDIR(mode) else OSError("not a regular file")
    return handle


def parse_json(data: bytes | str, structure: type[T], source: str, remedy: str) -> T:
    """Parse JSON text as `structure`. `source` names it in the error, for example "FILE, line 3". Raises DamagedJSON."""
    try:
        return cast(T, _adapter(cast(Hashable, structure)).validate_json(data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DamagedJSON(f"{source} is damaged: {describe_problem(first)}; {remedy}.") from None
    except (ValueError, RecursionError, MemoryError) as error:  # a validator of the structure, a number of 5,000 digits
        raise DamagedJSON(f"{source} is damaged ({type(error).__name__}); {remedy}.") from None


def check_json(value: Any, structure: type[T], source: str, remedy: str) -> T:
    """Check values that were parsed from JSON before, like `parse_json`. Raises DamagedJSON."""
    # As text again, because pydantic takes Python objects more literally: a tuple is not a list, a mapping not a record.
    return parse_json(json.dumps(value), structure, source, remedy)


@lru_cache
def _adapter(structure: Any) -> TypeAdapter[Any]:
    return TypeAdapter(structure)


_PROBLEMS = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "model_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "none_required": "must be null",
}
"""pydantic's error types in our words."""
_LIMITS = {
    "greater_than": ("must be above", "gt"),
    "greater_than_equal": ("must be at least", "ge"),
    "less_than": ("must be below", "lt"),
    "less_than_equal": ("must be at most", "le"),
    "literal_error": ("must be", "expected"),
    "too_short": ("must have at least this number of items:", "min_length"),
    "string_too_long": ("must have at most this number of characters:", "max_length"),
    "too_long": ("must have at most this number of items:", "max_length"),
}
"""Error types with a value that belongs to the words, and its key in the error's context."""


def problem_words(item: Mapping[str, Any]) -> str:
    """What one of pydantic's problems (an item of `ValidationError.errors()`) demands, as "must be a list"."""
    kind, context = item["type"], item.get("ctx", {})
    if kind in _LIMITS and _LIMITS[kind][1] in context:
        words, key = _LIMITS[kind]
        value = context[key]
        return f"{words} {value}" if isinstance(value, str) else f"{words} {value:,}".removesuffix(".0")
    if (known := _PROBLEMS.get(kind)) is not None:
        return known
    words = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return words[:1].lower() + words[1:].removesuffix(".")


def describe_problem(item: Mapping[str, Any]) -> str:
    """One of pydantic's problems (an item of `ValidationError.errors()`) as "KEY must be a list, not 3"."""
    kind, value = item["type"], item.get("input")
    if kind == "json_invalid":
        return "it is not valid JSON (" + item["msg"].removeprefix("Invalid JSON: ") + ")"
    key = short(".".join(str(part) for part in item["loc"]), 100)[1:-1] or "the file"
    words = problem_words(item)
    if kind == "value_error":
        return f"{key} {words}" if words.startswith(("must ", "has ")) else f"{key}: {words}"
    return f"{key} {words}" if kind == "missing" else f"{key} {words}, not {shown(value)}"


def shown(value: Any) -> str:
    """`short`, with null, true and false as JSON and YAML have them."""
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or isinstance(value, bool)
        else short(value)
    )
