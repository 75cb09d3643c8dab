"""Random access to the records of a file without loading it: the position of each record, and which fields it has.

One pass over the file finds the offset, the length and a few bits of each record (14 bytes in all). The result is cached next to
the file, or in the user's cache folder if that is not writable, and made again when the file changes.

`scan_record` defines the result: it agrees with `records.parse_record` on what is a story and which fields there are. `scan_block`
gives the same result for a whole block of records. It handles records of the usual shape with numpy, so that the time depends on
the size of the file and not on Python's microseconds per record.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import remove_leftovers, replacing, user_cache
from mini_chat_gpt.tinystories.records import (
    ENDING_UNKNOWN,
    FEATURES,
    FIELDS,
    SEPARATOR,
    StoryRecord,
    decode,
    no_story,
    open_text,
    parse_record,
    whole_records,
)

_VERSION = 1

# One bit for each field and each known feature, and one for bytes that are not UTF-8.
BITS = {name: 1 << place for place, name in enumerate((*FIELDS, *FEATURES, ENDING_UNKNOWN, "not UTF-8"))}


class RecordIndex:
    """The records of one file that have a story: `len(index)`, `index[i]`, `index.has(name)`.

    It can be pickled, and used after a fork and by several threads. Each process opens the file at first use. Raises UserError for
    a file without records (see `read_records`).
    """

    def __init__(self, path: str | Path, cache: bool = True) -> None:
        self.path = Path(path)
        open_text(self.path).close()
        stamp = _stamp(self.path)
        table = _load(self.path, stamp) if cache else None
        if table is None:
            table = _build(self.path)
            if cache:
                _save(self.path, table | {"stamp": np.array(stamp)})
                table = _load(self.path, stamp) or table  # the arrays in the file, which take no memory
        self.offsets: np.ndarray = table["offsets"]  # (records,) int64, bytes from the beginning of the file
        self.lengths: np.ndarray = table["lengths"]  # (records,) uint32, bytes
        self.bits: np.ndarray = table["bits"]  # (records,) uint16, see BITS
        self.without_story = int(table["without_story"])
        """Number of records that are ignored because they have no story."""
        self._handle: tuple[int, int] | None = None  # (process id, file descriptor)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, number: int) -> StoryRecord:
        """Record `number`, from 0."""
        return parse_record(self.text(number))

    def text(self, number: int) -> str:
        """The record as it is in the file, without its separator."""
        return decode(self.raw(number))

    def raw(self, number: int) -> bytes:
        """The bytes of the record, without its separator."""
        return self._read(int(self.offsets[number]), int(self.lengths[number]))

    def has(self, name: str) -> np.ndarray:
        """(records,) bool: which records have this field, or this feature in their Features, or "not UTF-8" bytes."""
        return (self.bits & BITS[name]).astype(bool)

    def notes(self) -> list[str]:
        """A sentence about records without a story, if there are any."""
        n = self.without_story
        return [f"{n:,} {'record' if n == 1 else 'records'} without a story left out."] if n else []

    def _read(self, offset: int, length: int) -> bytes:
        if hasattr(os, "pread"):  # without a shared file position, on which threads and processes could interfere
            if self._handle is None or self._handle[0] != os.getpid():
                self._handle = os.getpid(), os.open(self.path, os.O_RDONLY)
            data = os.pread(self._handle[1], length, offset)
        else:
            with open(self.path, "rb") as file:
                file.seek(offset)
                data = file.read(length)
        if len(data) != length:
            raise UserError(
                f"{self.path} has become shorter since it was opened; do not change it during a run, and start again."
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
    """Scan the file in one pass."""
    feature_bits, blocks = FeatureBits(), []
    for offset, text, end in whole_records(path):
        block = scan_block(text, end, feature_bits)
        blocks.append(block._replace(offsets=block.offsets + offset))
    if not any(len(block.offsets) for block in blocks):
        raise no_story(path)
    return {
        "offsets": np.concatenate([block.offsets for block in blocks]),
        "lengths": np.concatenate([block.lengths for block in blocks]),
        "bits": np.concatenate([block.bits for block in blocks]),
        "without_story": np.int64(sum(block.without_story for block in blocks)),
    }


def _stamp(path: Path) -> list[str]:
    """Identifies a state of the file: version, size, modification time, and a hash of its first and last 64 KiB."""
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
    """The cached index of the current state of the file, or None. A damaged cache is reported and made again."""
    for place in _cache_places(path):
        remove_leftovers(place.parent)
        try:
            _check_size(place)
            with np.load(place, allow_pickle=False) as arrays:
                if list(arrays["stamp"]) != stamp:
                    continue
                table = dict(arrays)
            _check(table, path.stat().st_size)
            # Reading them has verified their checksums. From here on they take no memory of their own.
            return table | {name: _mapped(place, name) for name in ("offsets", "lengths", "bits")}
        except OSError:  # there is none, or it can't be read here
            continue
        except Exception as error:  # damaged bytes make numpy and zipfile raise any exception
            warnings.warn(f"{place} is damaged ({type(error).__name__}); the index is made again.", stacklevel=3)
    return None


def _mapped(place: Path, name: str) -> np.ndarray:
    """An array of an uncompressed .npz file, memory-mapped."""
    with zipfile.ZipFile(place) as archive, open(place, "rb") as file:
        entry = archive.getinfo(f"{name}.npy")
        with archive.open(entry) as content:
            np.lib.format.read_magic(content)
            shape, _, dtype = np.lib.format.read_array_header_1_0(content)
            n_header = content.tell()
        file.seek(
            entry.header_offset + 26
        )  # where the entry's own header has the lengths of its name and of an extra field
        n_name, n_extra = np.frombuffer(file.read(4), dtype="<u2").tolist()
    return np.memmap(place, dtype, "r", entry.header_offset + 30 + n_name + n_extra + n_header, shape)


def _check_size(place: Path) -> None:
    """Raise ValueError unless the arrays take no more memory than the file, as those of np.savez do."""
    size = place.stat().st_size
    if not place.is_file():  # reading a pipe or a device might never end
        raise ValueError("not a regular file")
    with zipfile.ZipFile(place) as archive:
        if any(entry.file_size > size or entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("compressed")


def _check(table: dict[str, Any], file_size: int) -> None:
    """Raise ValueError unless the arrays are those of an index of a file of this size."""
    dtypes = {"offsets": np.int64, "lengths": np.uint32, "bits": np.uint16}
    offsets, lengths, _ = arrays = [table[name] for name in dtypes]
    if any(array.dtype != dtype for array, dtype in zip(arrays, dtypes.values(), strict=True)):
        raise ValueError("another data type")
    if (
        not len(offsets)
        or any(array.shape != (len(offsets),) for array in arrays)
        or table["without_story"].shape != ()
    ):
        raise ValueError("another shape")
    inside = (offsets >= 0) & (offsets <= file_size) & (offsets + lengths <= np.append(offsets[1:], file_size))
    if not inside.all() or int(table["without_story"]) < 0:
        raise ValueError("records that overlap, or outside of the file")


def _save(path: Path, table: dict[str, Any]) -> None:
    """Write the cache. It only saves time, so a disk that can't be written to is not an error."""
    for place in _cache_places(path):
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as temporary, open(temporary, "wb") as file:
                np.savez(file, **table)
            return


# Scanning

_STORY = b"\nStory:"
_NAMES = tuple((f"\n{name}:".encode(), BITS[name]) for name in FIELDS)
_LINES = (_STORY, *(name for name, _ in _NAMES))  # the code of a line is its index here
_NO_LINE = len(_LINES)
_FEATURES_LINE = f"\n{FIELDS[0]}:".encode()
_STORY_BYTES = 64  # this many bytes between `Story:` and the next field count as a story without a check for blanks
_NEWLINE, _CARRIAGE_RETURN, _SPACE = b"\n\r "
_WORD = 8  # bytes that are compared at once
_MARGIN = 4 * _WORD  # bytes after the end of a text that must be readable


class FeatureBits(dict[bytes, int]):
    """The bits of a line of features, cached, because a file has few different ones."""

    def __missing__(self, line: bytes) -> int:
        names = {item.strip() for item in line.decode("utf-8", "replace").split(",")}
        self[line] = sum(BITS[name] for name in (*FEATURES, ENDING_UNKNOWN) if name in names)
        return self[line]


class Scanned(NamedTuple):
    """The records of a text that have a story, in order, and the number of records without one."""

    offsets: np.ndarray  # (records,) int64, bytes from the beginning of the text
    lengths: np.ndarray  # (records,) uint32, bytes
    bits: np.ndarray  # (records,) uint16, see BITS
    without_story: int


def scan_record(chunk: bytes, feature_bits: FeatureBits) -> int | None:
    """The bits of a record, or None if it has no story."""
    lines = b"\n" + chunk.lstrip()
    encoding = 0 if _is_utf8(lines) else BITS["not UTF-8"]
    story = lines.find(_STORY)
    if story < 0:  # a plain story, unless it begins with a field
        return None if lines.startswith(tuple(name for name, _ in _NAMES)) else encoding
    bits, after, end = 0, story + len(_STORY), len(lines)
    for name, bit in _NAMES:
        if lines.find(name, 0, story) >= 0:
            bits |= bit
        elif (at := lines.find(name, after)) >= 0:
            bits |= bit
            end = min(end, at)
    if end - after < _STORY_BYTES and not lines[after:end].strip():
        return None
    if bits & BITS["Features"]:
        begin = lines.index(_FEATURES_LINE) + len(_FEATURES_LINE)
        bits |= feature_bits[lines[begin:].split(b"\n", 1)[0]]
    return bits | encoding


def scan_block(text: bytes, end: int, feature_bits: FeatureBits) -> Scanned:
    """`scan_record` for every record of text[:end], which must begin and end between records."""
    if len(text) < end + _MARGIN:
        text += bytes(_MARGIN)
    letters = np.frombuffer(text, dtype=np.uint8)
    begins, ends = _boundaries(letters, end)
    newlines = np.flatnonzero(letters[:end] == _NEWLINE)
    at, codes = _field_lines(letters, newlines)
    record = np.searchsorted(begins, at, "right") - 1
    bits = np.zeros(len(begins), dtype=np.uint16)
    for code, (_, bit) in enumerate(_NAMES, start=1):
        bits[record[codes == code]] |= bit
    usual, story = _usual(letters, begins, ends), _first(record, codes == 0, len(begins))
    following = np.minimum(np.append(at, end)[story + 1], ends)
    has_story = (story >= 0) & (following - np.append(at, 0)[story] - len(_STORY) >= _STORY_BYTES)
    plain = (story < 0) & (bits == 0)
    usual &= (has_story | plain) & (text.isascii() or _is_utf8(text[:end]))

    features = _first(record, codes == _LINES.index(_FEATURES_LINE), len(begins))
    rows = np.flatnonzero(usual & has_story & (features >= 0))
    starts = at[features[rows]] + len(_FEATURES_LINE)
    stops = np.minimum(np.append(newlines, end)[np.searchsorted(newlines, starts)], ends[rows])
    row_bits = [feature_bits[text[start:stop]] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
    bits[rows] |= np.array(row_bits, dtype=np.uint16)

    without_story = 0
    for row in np.flatnonzero(~usual).tolist():  # unusual records, one by one
        chunk = text[begins[row] : ends[row]]
        if chunk and not chunk.isspace():
            record_bits = scan_record(chunk, feature_bits)
            usual[row] = record_bits is not None
            bits[row] = record_bits or 0
            without_story += record_bits is None
    return Scanned(begins[usual], (ends - begins)[usual].astype(np.uint32), bits[usual], without_story)


def _boundaries(letters: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(begins, ends) of the pieces between separators. The last piece is empty if the text ends with a separator."""
    separators = np.flatnonzero(letters[:size] == SEPARATOR[0])
    separators = separators[_begins_with(letters, separators, SEPARATOR)]
    return np.concatenate(([0], separators + len(SEPARATOR))), np.concatenate((separators, [size]))


def _field_lines(letters: np.ndarray, newlines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions, codes) of the newlines before lines that begin with `Story:` or the name of a field."""
    initials = np.zeros(256, dtype=bool)
    initials[[line[1] for line in _LINES]] = True
    places = newlines[initials[letters[newlines + 1]]]
    codes = np.full(len(places), _NO_LINE, dtype=np.uint8)
    for code, line in enumerate(_LINES):
        codes[_begins_with(letters, places, line)] = code
    return places[codes < _NO_LINE], codes[codes < _NO_LINE]


def _begins_with(letters: np.ndarray, places: np.ndarray, text: bytes) -> np.ndarray:
    """Indices into `places` (k,) of those at which this text begins."""
    # The 8-byte word at every byte; consecutive words overlap.
    words: np.ndarray = np.ndarray(len(letters) - _WORD + 1, dtype=np.uint64, buffer=letters, strides=(1,))
    here = np.arange(len(places))
    for start in range(0, len(text), _WORD):
        part = text[start : start + _WORD]
        mask = np.frombuffer((b"\xff" * len(part)).ljust(_WORD, b"\0"), dtype=np.uint64)
        wanted = np.frombuffer(part.ljust(_WORD, b"\0"), dtype=np.uint64)
        here = here[(words[places[here] + start] & mask) == wanted]
    return here


def _first(record: np.ndarray, chosen: np.ndarray, records: int) -> np.ndarray:
    """(records,) index into `record` of the first chosen line of each record, -1 if it has none."""
    first = np.full(records, -1)
    backwards = np.flatnonzero(chosen)[::-1]
    first[record[backwards]] = backwards  # the last assignment counts, which is the first line in the file
    return first


def _usual(letters: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(records,) bool: the first line that is not blank begins without indentation after one or two newlines."""
    one, two, three = (letters[begins + ahead] for ahead in range(3))
    blank = (one == _NEWLINE) | (one == _CARRIAGE_RETURN)
    begun = ((one == _NEWLINE) & (two > _SPACE)) | (blank & (two == _NEWLINE) & (three > _SPACE))
    return begun & (ends - begins > 2)


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
