"""What each record of a file of stories has, found without parsing it: a whole block of records at a time.

`scan_record` looks at one record and is the rule; it agrees with `story_records.parse_record` about what is a story and which
fields there are. `scan_block` gives what `scan_record` would give for each record, with numpy for those of the usual
shape, so that the time for a file goes with its bytes rather than with Python's microseconds for each record.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mini_chat_gpt.tinystories.records import ENDING_UNKNOWN, FEATURES, FIELDS, SEPARATOR

# One bit per record for each field and each named feature, and one for bytes that are not UTF-8.
BITS = {name: 1 << place for place, name in enumerate((*FIELDS, *FEATURES, ENDING_UNKNOWN, "not UTF-8"))}

_STORY = b"\nStory:"
_NAMES = tuple((f"\n{name}:".encode(), BITS[name]) for name in FIELDS)
_LINES = (_STORY, *(name for name, _ in _NAMES))  # a line's code is its place here
_NO_LINE = len(_LINES)
_FEATURES_LINE = f"\n{FIELDS[0]}:".encode()
_SURE = 64  # bytes between `Story:` and the next field that are taken for a story unseen: nobody writes so many blanks
_NEWLINE, _CARRIAGE_RETURN, _SPACE = b"\n\r "
_WORD = 8  # bytes that are compared at a time
_MARGIN = 4 * _WORD  # bytes that can be looked at behind a text's end


class FeatureBits(dict[bytes, int]):
    """The bits of the features by the line that lists them. A file has few different ones."""

    def __missing__(self, line: bytes) -> int:
        listed = {item.strip() for item in line.decode("utf-8", "replace").split(",")}
        self[line] = sum(BITS[name] for name in (*FEATURES, ENDING_UNKNOWN) if name in listed)
        return self[line]


class Scanned(NamedTuple):
    """The records of a text that have a story, in order, and the number of those that have none."""

    offsets: np.ndarray  # (records,) int64, bytes from the beginning of the text
    lengths: np.ndarray  # (records,) uint32, bytes
    bits: np.ndarray  # (records,) uint16, see BITS
    without_story: int


def scan_record(chunk: bytes, feature_bits: FeatureBits) -> int | None:
    """The bits of a record, None if it has no story."""
    lines = b"\n" + chunk.lstrip()
    encoding = 0 if _is_utf8(lines) else BITS["not UTF-8"]
    story = lines.find(_STORY)
    if story < 0:  # a plain story, unless it begins like a record
        return None if lines.startswith(tuple(name for name, _ in _NAMES)) else encoding
    found, after, end = 0, story + len(_STORY), len(lines)
    for name, bit in _NAMES:
        if lines.find(name, 0, story) >= 0:
            found |= bit
        elif (at := lines.find(name, after)) >= 0:
            found |= bit
            end = min(end, at)
    if end - after < _SURE and not lines[after:end].strip():
        return None
    if found & BITS["Features"]:
        begin = lines.index(_FEATURES_LINE) + len(_FEATURES_LINE)
        found |= feature_bits[lines[begin:].split(b"\n", 1)[0]]
    return found | encoding


def scan_block(text: bytes, end: int, feature_bits: FeatureBits) -> Scanned:
    """`scan_record` for every record of text[:end], which neither begins nor ends within a record."""
    if len(text) < end + _MARGIN:
        text += bytes(_MARGIN)
    letters = np.frombuffer(text, dtype=np.uint8)
    begins, ends = _borders(letters, end)
    newlines = np.flatnonzero(letters[:end] == _NEWLINE)
    at, codes = _field_lines(letters, newlines)
    record = np.searchsorted(begins, at, "right") - 1
    bits = np.zeros(len(begins), dtype=np.uint16)
    for code, (_, bit) in enumerate(_NAMES, start=1):
        bits[record[codes == code]] |= bit
    usual, story = _usual(letters, begins, ends), _first(record, codes == 0, len(begins))
    following = np.minimum(np.append(at, end)[story + 1], ends)
    told = (story >= 0) & (following - np.append(at, 0)[story] - len(_STORY) >= _SURE)
    plain = (story < 0) & (bits == 0)
    usual &= (told | plain) & (text.isascii() or _is_utf8(text[:end]))

    features = _first(record, codes == _LINES.index(_FEATURES_LINE), len(begins))
    rows = np.flatnonzero(usual & told & (features >= 0))
    starts = at[features[rows]] + len(_FEATURES_LINE)
    stops = np.minimum(np.append(newlines, end)[np.searchsorted(newlines, starts)], ends[rows])
    listed = [feature_bits[text[start:stop]] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
    bits[rows] |= np.array(listed, dtype=np.uint16)

    without_story = 0
    for row in np.flatnonzero(~usual).tolist():  # the others one by one
        chunk = text[begins[row] : ends[row]]
        if chunk and not chunk.isspace():
            found = scan_record(chunk, feature_bits)
            usual[row] = found is not None
            bits[row] = found or 0
            without_story += found is None
    return Scanned(begins[usual], (ends - begins)[usual].astype(np.uint32), bits[usual], without_story)


def _borders(letters: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(begins, ends) of everything between separators, the last piece too, which is empty behind a separator."""
    separators = np.flatnonzero(letters[:size] == SEPARATOR[0])
    separators = separators[_begins_with(letters, separators, SEPARATOR)]
    return np.concatenate(([0], separators + len(SEPARATOR))), np.concatenate((separators, [size]))


def _field_lines(letters: np.ndarray, newlines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places, codes) of the newlines behind which a line begins with `Story:` or a field's name."""
    initials = np.zeros(256, dtype=bool)
    initials[[line[1] for line in _LINES]] = True
    places = newlines[initials[letters[newlines + 1]]]
    codes = np.full(len(places), _NO_LINE, dtype=np.uint8)
    for code, line in enumerate(_LINES):
        codes[_begins_with(letters, places, line)] = code
    return places[codes < _NO_LINE], codes[codes < _NO_LINE]


def _begins_with(letters: np.ndarray, places: np.ndarray, text: bytes) -> np.ndarray:
    """Which of the places (k,), as numbers into them, have this text."""
    # A word from every byte on.
    words: np.ndarray = np.ndarray(len(letters) - _WORD + 1, dtype=np.uint64, buffer=letters, strides=(1,))
    here = np.arange(len(places))
    for start in range(0, len(text), _WORD):
        part = text[start : start + _WORD]
        mask = np.frombuffer((b"\xff" * len(part)).ljust(_WORD, b"\0"), dtype=np.uint64)
        wanted = np.frombuffer(part.ljust(_WORD, b"\0"), dtype=np.uint64)
        here = here[(words[places[here] + start] & mask) == wanted]
    return here


def _first(record: np.ndarray, chosen: np.ndarray, records: int) -> np.ndarray:
    """(records,) the first of the chosen lines of each record, as a number into `record`; -1 where it has none."""
    first = np.full(records, -1)
    backwards = np.flatnonzero(chosen)[::-1]
    first[record[backwards]] = backwards  # of several the last one stays, which is the first in the file
    return first


def _usual(letters: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(records,) bool: its first line with something in it begins behind its first or second byte, a newline, at the margin."""
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
