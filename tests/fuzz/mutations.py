"""Damage to files: bytes, lines, structure, and whole files that are gone or are something else.

`mutate(path, rng)` changes one file and returns a description of the change. The same random state gives the same change.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

RAW = "@RAW@"  # replaced by a text that json.dumps and yaml.dump can't write
RAW_TEXTS = (
    "9" * 5000,
    "-" + "9" * 5000,
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "[" * 300 + "]" * 300,
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 3000 + "1" + "}" * 3000,
    "1e5",
    "0x10",
    "01",
    "tru",
    '"\\ud800"',
    "2001-99-99",
    "!!int abc",
    "!!python/object:os.system x",
    "*x",
    "&x [*x]",
    "? [1, 2]\n",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3.5,
    1e30,
    -0.0,
    2**31,
    2**63,
    10**9,
    "",
    "x",
    "null",
    "12",
    "../../x",
    "a\0b",
    "\u2028é😀",
    "x" * 300_000,
    [],
    {},
    [[]],
    [1, 2],
    {"a": 1},
    {"": {}},
    [None],
)

# Bytes


def flip(data: bytes, rng: Random, bit: int | None = None) -> tuple[bytes, str]:
    """Flip a bit; `bit` is its number in the file."""
    at, bit = divmod(rng.randrange(8 * len(data)) if bit is None else bit, 8)
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], f"bit {bit} of byte {at} flipped"


def _insert(data: bytes, rng: Random) -> tuple[bytes, str]:
    at, new = rng.randrange(len(data) + 1), rng.randbytes(rng.choice((1, 2, 8, 100)))
    return data[:at] + new + data[at:], f"{len(new)} bytes inserted at {at}"


def _delete(data: bytes, rng: Random) -> tuple[bytes, str]:
    at, n = rng.randrange(len(data)), rng.choice((1, 1, 2, 8, 100, 4096))
    return data[:at] + data[at + n :], f"{n} bytes deleted at {at}"


def _cut(data: bytes, rng: Random) -> tuple[bytes, str]:
    n = rng.choice((0, 1, 8, len(data) // 2, len(data) - 1, rng.randrange(len(data))))
    return data[:n], f"cut to {n} bytes"


def _overwrite(data: bytes, rng: Random) -> tuple[bytes, str]:
    at, n = rng.randrange(len(data)), rng.choice((1, 4, 8, 64, 4096, len(data)))
    value = rng.choice((b"\0", b"\xff", b" ", b"9"))
    n = min(n, len(data) - at)
    return data[:at] + value * n + data[at + n :], f"{n} bytes at {at} overwritten with {value!r}"


def _repeat(data: bytes, rng: Random) -> tuple[bytes, str]:
    at, n = rng.randrange(len(data)), rng.choice((1, 8, 64, len(data)))
    times = rng.choice((1, 1, 2, 50))
    part = data[at : at + n]
    return data[: at + n] + part * times + data[at + n :], f"{len(part)} bytes at {at} repeated {times} times"


def _append(data: bytes, rng: Random) -> tuple[bytes, str]:
    tail = rng.choice((b"\0", b"\n", b"}", b"\n---\n", b"\xff\xfe", rng.randbytes(16), bytes(100_000)))
    return data + tail, f"{len(tail)} bytes appended"


def _prepend(data: bytes, rng: Random) -> tuple[bytes, str]:
    head = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b" ", b"\n", b"PK\x03\x04", b"%YAML 9.9\n"))
    return head + data, f"{head!r} put before"


BYTES = (flip, flip, _insert, _delete, _cut, _overwrite, _repeat, _append, _prepend)

# Lines


def _lines(data: bytes, rng: Random) -> tuple[bytes, str]:
    lines = data.splitlines(keepends=True)
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    what = rng.choice(("deleted", "repeated", "swapped", "indented", "blanked", "moved"))
    if what == "deleted":
        lines[at : at + rng.choice((1, 1, 3))] = []
    elif what == "repeated":
        lines[at:at] = [lines[at]] * rng.choice((1, 1, 300))
    elif what == "swapped":
        lines[at], lines[other] = lines[other], lines[at]
    elif what == "indented":
        lines[at] = rng.choice((b" ", b"\t", b"  ")) + lines[at]
    elif what == "blanked":
        lines[at] = b"\n"
    else:
        lines.insert(other, lines.pop(at))
    return b"".join(lines), f"line {at + 1} {what} ({other + 1})"


# Structure


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within `value`, itself included."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def change_structure(value: Any, rng: Random) -> tuple[Any, str, str]:
    """(changed value, text for RAW, description). Changes one place of a value of dicts and lists."""
    places = _places(value)
    path = rng.choice(places)
    where = ".".join(map(str, path)) or "the whole"
    new: Any = rng.choice(VALUES)
    raw = ""
    what = rng.choice(("value", "value", "value", "raw", "type", "removed", "renamed", "wrapped", "near", "swapped"))
    if what == "raw":
        new, raw = RAW, rng.choice(RAW_TEXTS)
    if not path:
        return new, raw, f"{where} replaced by {str(raw or new)[:60]!r}"
    parent, key = _at(value, path[:-1]), path[-1]
    old = parent[key]
    if what == "removed":
        del parent[key]
        return value, "", f"{where} removed"
    if what == "renamed" and isinstance(parent, dict):
        renamed = rng.choice((str(key)[:-1], f"{key}x", str(key).upper(), "", f"../{key}"))
        items = [(renamed if name == key else name, item) for name, item in parent.items()]
        parent.clear()
        parent.update(items)
        return value, "", f"{where} renamed to {renamed!r}"
    if what == "wrapped":
        new = rng.choice(([old], {"x": old}, [old] * 1000 if isinstance(old, int | float) else [old, old]))
    elif what == "type":
        new = str(old) if not isinstance(old, str) else rng.choice((1, [old], {old: old}, None))
    elif what == "near" and isinstance(old, int | float) and not isinstance(old, bool):
        new = rng.choice((old + 1, old - 1, -old, old * 2, old // 2, float(old), old + 0.5, old * 1000))
    elif what == "near" and isinstance(old, str):
        new = rng.choice((old[:-1], old + "x", old.upper(), old + "\n", " " + old, old * 2))
    elif what == "swapped":
        other = rng.choice(places[1:])
        new = json.loads(json.dumps(_at(value, other), default=str))
    parent[key] = new
    return value, raw, f"{where} replaced by {str(raw or new)[:60]!r}"


def _json(data: bytes, rng: Random) -> tuple[bytes, str]:
    value, raw, what = change_structure(json.loads(data), rng)
    text = json.dumps(value, indent=1, ensure_ascii=rng.random() < 0.5).replace(f'"{RAW}"', raw)
    return text.encode("utf-8", "surrogatepass"), what


def _json_line(data: bytes, rng: Random) -> tuple[bytes, str]:
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    value, raw, what = change_structure(json.loads(lines[at]), rng)
    lines[at] = json.dumps(value).replace(f'"{RAW}"', raw).encode() + b"\n"
    return b"".join(lines), f"line {at + 1}: {what}"


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{one}: &{one} [{', '.join(['*' + before] * 10)}]\n" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)


def _yaml(data: bytes, rng: Random) -> tuple[bytes, str]:
    if rng.random() < 0.1:
        extra = rng.choice(
            (ALIASES, "sft:\n  max_steps: 7\n", "5: 6\n", "? [a]\n: b\n", "<<: {sft: {}}\n", "...\n---\nx: 1\n")
        )
        return data + extra.encode(), f"{extra[:20]!r} appended"
    value, raw, what = change_structure(yaml.safe_load(data), rng)
    if raw == "*x":
        raw = "[&x [1], *x]"
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).replace(RAW, raw).encode(), what


# safetensors

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1}
Entry = list[Any]  # [dtype, shape, bytes]


def read_safetensors(data: bytes) -> tuple[dict[str, Entry], Any]:
    """({name: [dtype, shape, bytes]}, metadata) of a safetensors file."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    metadata, body = header.pop("__metadata__", None), data[8 + length :]
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = [entry["dtype"], entry["shape"], body[start:end]]
    return tensors, metadata


def write_safetensors(tensors: dict[str, Entry], metadata: Any = None) -> bytes:
    """The inverse of `read_safetensors`: offsets follow from the bytes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(entry[2] for entry in tensors.values())


def _safetensors(data: bytes, rng: Random) -> tuple[bytes, str]:
    tensors, metadata = read_safetensors(data)
    name, other = rng.choice([*tensors]), rng.choice([*tensors])
    entry = tensors[name]
    what = rng.choice(("header", "length", "shape", "dtype", "rename", "remove", "swap", "values", "grow", "add"))
    if what == "header":  # inconsistent on purpose
        (length,) = struct.unpack_from("<Q", data)
        text, how = _json(data[8 : 8 + length], rng)
        return struct.pack("<Q", len(text)) + text + data[8 + length :], f"header: {how}"
    if what == "length":
        length = rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + data[8:], f"header length {length}"
    if what == "shape":
        shape = entry[1]
        entry[1] = rng.choice((shape[::-1], [1, *shape], [*shape, 1], [len(entry[2]) // SIZES[entry[0]]]))
    elif what == "dtype":
        entry[0] = rng.choice([dtype for dtype in SIZES if dtype != entry[0]])
        entry[2] = entry[2][: len(entry[2]) // SIZES[entry[0]] * SIZES[entry[0]]]
        if rng.random() < 0.7:  # consistent: same shape, another number of bytes
            n = len(data) and _numel(entry[1])
            entry[2] = (entry[2] * 8)[: n * SIZES[entry[0]]]
        else:
            entry[1] = [len(entry[2]) // SIZES[entry[0]]]
    elif what == "rename":
        tensors[rng.choice((name + "x", name[:-1], "model." + name, other, ""))] = tensors.pop(name)
    elif what == "remove":
        del tensors[name]
    elif what == "swap":
        tensors[name], tensors[other] = tensors[other], entry
    elif what == "values":
        at = rng.randrange(max(1, len(entry[2]) // 4)) * 4
        value = struct.pack("<f", rng.choice((float("nan"), float("inf"), 1e30, 0.0, -1.0)))
        entry[2] = entry[2][:at] + value[: len(entry[2]) - at] + entry[2][at + 4 :]
    elif what == "grow" and entry[1]:
        row = len(entry[2]) // max(1, entry[1][0])
        entry[1], entry[2] = [entry[1][0] + 1, *entry[1][1:]], entry[2] + entry[2][:row]
    else:
        tensors["extra"] = ["F32", [2], bytes(8)]
    return write_safetensors(tensors, metadata), f"{what} of {name} ({other})"


def _numel(shape: list[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


# Whole files


def elsewhere(path: Path, rng: Random) -> Any:
    """Replace a file by something else; returns a description."""
    what = rng.choice(("missing", "renamed", "folder", "empty", "dangling link", "loop", "link", "unreadable", "other"))
    data = path.read_bytes()
    others = sorted(file for file in path.parent.iterdir() if file.is_file() and file != path)
    path.unlink()
    if what == "renamed":
        path.with_name(path.name + "~").write_bytes(data)
    elif what == "folder":
        path.mkdir()
    elif what == "empty":
        path.touch()
    elif what == "dangling link":
        path.symlink_to("nowhere")
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "link" and others:
        path.symlink_to(rng.choice(others).name)
    elif what == "unreadable":
        path.write_bytes(data)
        path.chmod(0)
    elif what == "other" and others:
        shutil.copyfile(rng.choice(others), path)
    return f"file: {what}"


Change = Callable[[Any, Random], Any]
BY_SUFFIX: dict[str, tuple[Change, ...]] = {
    ".json": (_json, _json, _json, _lines),
    ".jsonl": (_json_line, _json_line, _lines),
    ".yaml": (_yaml, _yaml, _yaml, _lines),
    ".safetensors": (_safetensors, _safetensors, _safetensors),
    ".tiktoken": (_lines,),
    ".txt": (_lines,),
    ".jinja": (_lines,),
}


def mutate(path: Path, rng: Random, instead: tuple[Change, ...] = ()) -> str:
    """Change a file and return a description; "" if its bytes are unchanged. `instead` replaces the usual changes."""
    changes: Sequence[Change]
    if instead:
        changes = instead
    elif rng.random() < 0.08:
        changes = (elsewhere,)
    else:
        structural = BY_SUFFIX.get(path.suffix, ())
        changes = structural if structural and rng.random() < 0.6 else BYTES
    change = rng.choice(changes)
    if change is elsewhere or path.is_dir():
        return str(change(path, rng))
    data = path.read_bytes()
    new, what = change(data, rng) if data else (rng.randbytes(3), "3 bytes written")
    replace_file(path, new)
    return what if new != data else ""


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file, so that its inode is another one."""
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(data)
    os.replace(draft, path)
