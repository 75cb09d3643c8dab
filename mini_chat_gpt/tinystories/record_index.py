"""Any record of a file by its number, without loading the file: where each record lies, and what it has.

One streaming pass over the file finds offset, length and a few bits per record (14 bytes in all); the result is cached beside
the file, or in the user's cache folder where that place can't be written, and thrown away when the file changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import user_cache
from mini_chat_gpt.tinystories.record_scan import BITS, FeatureBits, scan_block
from mini_chat_gpt.tinystories.records import StoryRecord, decode, no_story, open_text, parse_record, whole_records

_VERSION = 1


class RecordIndex:
    """The records with a story of one file: `len(index)`, `index[i]`, `index.has(name)`.

    Can be pickled and used after a fork and from several threads; the file is opened when a process first needs it.
    Raises UserError for a file that holds no record (see `read_records`).
    """

    def __init__(self, path: str | Path, cache: bool = True) -> None:
        self.path = Path(path)
        open_text(self.path).close()
        stamp = _stamp(self.path)
        table = (_load(self.path, stamp) if cache else None) or _build(self.path)
        self.offsets: np.ndarray = table["offsets"]  # (records,) int64, bytes from the beginning of the file
        self.lengths: np.ndarray = table["lengths"]  # (records,) uint32, bytes
        self.bits: np.ndarray = table["bits"]  # (records,) uint16, see BITS
        self.without_story = int(table["without_story"])
        """Records that were left out because they have no story."""
        self._handle: tuple[int, int] | None = None  # (process id, file descriptor)
        if cache and "stamp" not in table:
            _save(self.path, table | {"stamp": np.array(stamp)})

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, number: int) -> StoryRecord:
        """Record `number`, from 0."""
        return parse_record(self.text(number))

    def text(self, number: int) -> str:
        """The record as it stands in the file, without its separator."""
        return decode(self._read(int(self.offsets[number]), int(self.lengths[number])))

    def has(self, name: str) -> np.ndarray:
        """(records,) bool: which records have a line of this field, or this feature in their Features, or "not UTF-8" bytes."""
        return (self.bits & BITS[name]).astype(bool)

    def _read(self, offset: int, length: int) -> bytes:
        if hasattr(os, "pread"):  # no file position to share, so threads and forked processes can't disturb each other
            if self._handle is None or self._handle[0] != os.getpid():
                self._handle = os.getpid(), os.open(self.path, os.O_RDONLY)
            data = os.pread(self._handle[1], length, offset)
        else:
            with open(self.path, "rb") as file:
                file.seek(offset)
                data = file.read(length)
        if len(data) != length:
            raise UserError(
                f"{self.path} has become shorter since it was opened; leave it alone during a run and start again."
            )
        return data

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and handle[0] == os.getpid():
            with contextlib.suppress(OSError):
                os.close(handle[1])


def _build(path: Path) -> dict[str, Any]:
    """One pass over the file."""
    feature_bits, scanned = FeatureBits(), []
    for offset, text, end in whole_records(path):
        found = scan_block(text, end, feature_bits)
        scanned.append(found._replace(offsets=found.offsets + offset))
    if not any(len(found.offsets) for found in scanned):
        raise no_story(path)
    return {
        "offsets": np.concatenate([found.offsets for found in scanned]),
        "lengths": np.concatenate([found.lengths for found in scanned]),
        "bits": np.concatenate([found.bits for found in scanned]),
        "without_story": np.int64(sum(found.without_story for found in scanned)),
    }


def _stamp(path: Path) -> list[str]:
    """What tells one state of a file from another: size, time of change, and a hash of its first and last 64 KiB."""
    stat = path.stat()
    with open(path, "rb") as file:
        head = file.read(1 << 16)
        file.seek(max(0, stat.st_size - (1 << 16)))
        digest = hashlib.sha256(head + file.read()).hexdigest()
    return [str(_VERSION), str(stat.st_size), str(stat.st_mtime_ns), digest]


def _cache_places(path: Path) -> list[Path]:
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return [path.with_name(path.name + ".index.npz"), user_cache() / f"{path.name}.{key}.index.npz"]


def _load(path: Path, stamp: list[str]) -> dict[str, Any] | None:
    """The cached index, if there is one of the file as it is now. A damaged one counts as none."""
    for place in _cache_places(path):
        with contextlib.suppress(Exception), np.load(place, allow_pickle=False) as arrays:
            if list(arrays["stamp"]) == stamp:
                return dict(arrays)
    return None


def _save(path: Path, table: dict[str, Any]) -> None:
    """Keep the index where the next run finds it. The cache only saves time: a disk that refuses it is no error."""
    for place in _cache_places(path):
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.savez(file, **table)
            os.replace(temporary, place)
            return
        except OSError:
            continue
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
