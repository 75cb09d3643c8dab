"""The keys of a record: read by our names or by those of `chats.keys`, and the keys that are not used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mini_chat_gpt.common.chat_keys import ROLE_NAMES
from mini_chat_gpt.common.errors import short
from mini_chat_gpt.data.json_records import BadRecord

Path = tuple[str, ...]
MAX_MET = 1000


class KeyNames:
    """`chats.keys`: our name of a key or role -> the file's name, in which dots lead into objects; None = not read.

    `missing` has the entries that no record has had so far, `met` the keys of the records that were read while there were any.
    """

    def __init__(self, names: Mapping[str, str | None] | None = None) -> None:
        self.names = dict(names or {})
        self.taken = frozenset(name.partition(".")[0] for name in self.names.values() if name is not None)
        """Keys of the file that have another meaning than their own name."""
        self.missing = {ours: theirs for ours, theirs in self.names.items() if theirs is not None}
        self.met: set[str] = set()
        self._roles = {theirs: ours for ours, theirs in self.names.items() if ours in ROLE_NAMES and theirs is not None}

    def role(self, name: str) -> str | None:
        """Our role (or CALL) for a role of the file; None if it is not known."""
        if (ours := self._roles.get(name)) is not None:
            self.missing.pop(ours, None)
            return ROLE_NAMES[ours]
        return ROLE_NAMES.get(name.strip().lower())

    def ordered(self, names: Sequence[str]) -> Sequence[str]:
        """These names, those of `chats.keys` first."""
        return sorted(names, key=lambda name: name not in self.names) if self.names else names


class Fields:
    """An object of a file. A key with null counts as absent; what is left over at the end is named as not used."""

    __slots__ = ("_used", "keys", "values")

    def __init__(self, values: Mapping[Any, Any], keys: KeyNames) -> None:
        self.values, self.keys = values, keys
        self._used: set[Any] = set()
        if keys.missing and len(keys.met) < MAX_MET:
            keys.met.update(map(str, values))

    def name(self, ours: str) -> str:
        """The file's name of a key, quoted."""
        path = self._path(ours)
        return f'"{".".join(map(str, path)) if path else ours}"'

    def has(self, ours: str) -> bool:
        """Whether there is such a key, with any value. It stays unused."""
        return self._path(ours) is not None

    def peek(self, ours: str) -> Any:
        """The value of a key; None if it is absent. It stays unused."""
        if not self.keys.names:  # the usual case, for a million records
            return self.values.get(ours)
        return None if (path := self._path(ours)) is None else self._at(path)

    def get(self, ours: str) -> Any:
        """The value of a key, which now counts as used; None if it is absent."""
        if not self.keys.names:
            self._used.add(ours)
            return self.values.get(ours)
        if (path := self._path(ours)) is None:
            return None
        self._used.add(path[0] if len(path) == 1 else path)
        if self.keys.missing and path != (ours,):
            self.keys.missing.pop(ours, None)
        return self._at(path)

    def first(self, names: Sequence[str]) -> str:
        """The first of these keys that has something in it, otherwise the first that is not null; "" if there is none."""
        blank = ""
        renamed = bool(self.keys.names)
        for name in self.keys.ordered(names) if renamed else names:
            if (value := self.peek(name) if renamed else self.values.get(name)) is not None:
                if not is_blank(value):
                    return name
                blank = blank or name
        return blank

    def text(self, ours: str) -> str | None:
        """The value of a key that must be text; None if it is absent."""
        value = self.get(ours)
        if value is not None and not isinstance(value, str):
            raise not_text(self.name(ours), value)
        return value

    def unused(self) -> list[str]:
        """Names of the keys with something in them that were not used; with dots within an object that was used in part."""
        if self.values.keys() <= self._used:
            return []
        inner: dict[Any, set[Any]] = {}
        for path in self._used:
            if isinstance(path, tuple):
                inner.setdefault(path[0], set()).add(path[1])
        names = []
        for key, value in self.values.items():
            if key in self._used or is_blank(value) or value is None:
                continue
            if key in inner:
                names += [f"{key}.{part}" for part in value if part not in inner[key] and not is_blank(value[part])]
            else:
                names.append(str(key))
        return names

    def _path(self, ours: str) -> Path | None:
        """The keys that lead to a value; None if it is absent."""
        if ours in self.keys.names:
            if (theirs := self.keys.names[ours]) is None:
                return None
            if (path := self._find(theirs)) is not None:
                return path
        return (ours,) if ours in self.values and ours not in self.keys.taken else None

    def _find(self, name: str) -> Path | None:
        """The keys that lead to the value with a name of `chats.keys`, which may have dots in it itself."""
        if name in self.values:
            return (name,)
        path: list[str] = []
        value: Any = self.values
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            path.append(part)
            value = value[part]
        return tuple(path)

    def _at(self, path: Path) -> Any:
        value: Any = self.values
        for key in path:
            value = value[key]
        return value


def is_blank(value: Any) -> bool:
    """Whether a value is a text or a list without anything in it."""
    return (
        (not value or value.isspace())
        if isinstance(value, str)
        else isinstance(value, list | dict | tuple) and not value
    )


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    return _KINDS.get(type(value)) or f"a value of the type {type(value).__name__}"


def not_text(what: str, value: Any) -> BadRecord:
    """The error for a value that must be text."""
    example = f', such as "{short(value, 20)}"' if isinstance(value, int | float) else ""
    return BadRecord(f"{what} is {kind_of(value)}; it must be text{example}")


def quoted(names: Iterable[str], limit: int = 8) -> str:
    """The first names in quotes, and how many others there are."""
    listed = list(names)
    more = [f"and {len(listed) - limit:,} more"] if len(listed) > limit else []
    return ", ".join([*(f'"{str(name)[:60]}"' for name in listed[:limit]), *more])
