"""The documents of one file for pretraining.

A file of plain text, also packed or in UTF-16, is split where `<|endoftext|>` or another separator stands, and is one document
without one. Of records of TinyStories-Instruct only the stories are used. Each record of JSON, CSV, Parquet or Arrow with a text is a
document.
"""

from __future__ import annotations

import codecs
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.data.arrow_files import kind_of
from mini_chat_gpt.data.data_files import CHATS, RECORDS, TEXTS, has_ending, local_files
from mini_chat_gpt.data.file_kinds import IncompleteData, TextStream, open_text
from mini_chat_gpt.data.json_records import BadRecord
from mini_chat_gpt.data.record_files import holds_records, read_records
from mini_chat_gpt.tinystories.records import FILE_NAMES, SEPARATOR, parse_record

TEXT_KEYS = ("text", "content", "story", "document")
"""Keys of records with a document, in order of preference."""
MAX_DOCUMENT = 1 << 30
"""Bytes of a document, which is in memory while it is tokenized."""
_BLOCK = 1 << 19
_LONE = re.compile("[\udc80-\udcff]")
_MAX_INVALID = 1000  # if more than one in this many bytes is not UTF-8, the text has another encoding


def read_documents(
    file: Path, documents: str = "auto", separator: str = SEPARATOR.decode(), seen: Counter[str] | None = None
) -> Iterator[str]:
    """The documents of one file that are not blank; see `pretrain.documents`.

    seen: counts what is not a document, for a message if there is none. Raises UserError for a file that can't be used.
    """
    seen = Counter() if seen is None else seen
    try:
        if has_records(file):
            yield from _of_records(file)
            return
        with open_text(file) as stream:
            check = _Encoding(file)
            if documents == "auto":
                yield from _between(stream, separator, check, seen)
            else:
                pieces = {"blank_lines": _paragraphs, "lines": _lines, "files": _whole}[documents](stream)
                yield from filter(None, map(check.decode, pieces))
            check.finish()
    except IncompleteData as error:
        raise UserError(f"{file}: {error}.") from None
    except _TooLarge:
        raise UserError(
            f"{file} has a document of more than {MAX_DOCUMENT >> 30} GiB; put {separator} between its documents, or set "
            "pretrain.documents=blank_lines."
        ) from None
    except OSError as error:
        raise UserError(f"{file} can't be read ({error.strerror or error}); check its path and permissions.") from None


def kind_of_data(path: str) -> Literal["chats", "stories", "text"]:
    """What a path for `inspect` has: chats, tasks of TinyStories(-Instruct), or text to pretrain on. Raises UserError."""
    if hub_name(path, "dataset") is not None:
        return "chats"
    if os.path.isdir(path) and any(
        os.path.isfile(os.path.join(path, name.format(split="train"))) for name in FILE_NAMES
    ):
        return "stories"
    file = local_files(path, (CHATS, TEXTS), "chats or text").train[0]
    if not has_ending(file.name, TEXTS):
        return "chats"
    if holds_records(file):
        return "chats"
    with suppress(UserError, OSError, IncompleteData), open_text(file) as stream:
        start = stream.read(1 << 16).removeprefix(codecs.BOM_UTF8)
        valid = file.with_name(file.name.replace("train", "valid"))
        has_pair = SEPARATOR in start and valid != file and valid.is_file()
        if file.suffix == ".txt" and (has_pair or re.search(rb"^Story:", start, re.MULTILINE)):
            return "stories"
    return "text"


def has_records(file: Path) -> bool:
    """Whether a file has records instead of plain text, by its name: a text can begin like JSON or a table."""
    return has_ending(file.name, RECORDS) or (file.is_file() and kind_of(file) is not None)


def _of_records(file: Path) -> Iterator[str]:
    for place, record in read_records(file):
        if isinstance(record, BadRecord):
            raise UserError(f"{file}, {place}: {record}; correct or remove it.")
        text = record if isinstance(record, str) else None
        if isinstance(record, dict):
            text = next((record[key] for key in TEXT_KEYS if key in record), None)
        if not isinstance(text, str):
            keys = f"keys {', '.join(map(repr, list(record)[:8]))}" if isinstance(record, dict) else "another form"
            raise UserError(
                f'{file}, {place}: no text to pretrain on; a record has it as "{TEXT_KEYS[0]}" (or {", ".join(TEXT_KEYS[1:])}), '
                f"and this one has {keys}. To fine-tune on chats, use `mini-chat-gpt sft chats.files={file}`."
            )
        if text := _normalized(text):
            yield text


def _between(stream: TextStream, separator: str, check: _Encoding, seen: Counter[str]) -> Iterator[str]:
    """The texts between separators; the whole text if there is none. Of records of TinyStories-Instruct, the stories."""
    for piece, separated in _pieces(stream, separator.encode()):
        seen["separator"] += separated
        if piece.isspace() or not piece:
            continue
        if separated and separator.encode() == SEPARATOR:
            text = parse_record(check.decode(piece, normalized=False)).story
            seen["record without a story"] += not text
        else:
            text = check.decode(piece)
        if text:
            yield text


def _pieces(stream: TextStream, separator: bytes) -> Iterator[tuple[bytes, bool]]:
    """(text between two separators, whether the file has one) for a file of any size, of which one text is in memory."""
    pending: list[bytes] = []
    rest, size, separated = b"", 0, False  # a separator may begin in `rest`
    for block in _blocks(stream):
        first, *others = (rest + block).split(separator)
        if others:
            separated = True
            yield b"".join([*pending, first]), True
            yield from ((piece, True) for piece in others[:-1])
            pending, size = [], 0
        last = others[-1] if others else first
        cut = max(0, len(last) - len(separator) + 1)
        pending.append(last[:cut])
        rest, size = last[cut:], size + cut
        _require_size(size)
    yield b"".join([*pending, rest]), separated


def _blocks(stream: TextStream) -> Iterator[bytes]:
    block = stream.read(_BLOCK).removeprefix(codecs.BOM_UTF8)
    while block:
        yield block
        block = stream.read(_BLOCK)


def _whole(stream: TextStream) -> Iterator[bytes]:
    blocks: list[bytes] = []
    for block in _blocks(stream):
        blocks.append(block)
        _require_size(len(blocks) * _BLOCK)
    yield b"".join(blocks)


def _lines(stream: TextStream) -> Iterator[bytes]:
    """Complete lines, however long."""
    parts: list[bytes] = []
    size = 0
    while part := stream.readline(_BLOCK):
        parts.append(part)
        size += len(part)
        _require_size(size)
        if part.endswith(b"\n"):
            yield b"".join(parts)
            parts, size = [], 0
    yield b"".join(parts)


def _paragraphs(stream: TextStream) -> Iterator[bytes]:
    lines: list[bytes] = []
    size = 0
    for line in _lines(stream):
        if line.isspace():
            yield b"".join(lines)
            lines, size = [], 0
        else:
            lines.append(line)
            size += len(line)
            _require_size(size)
    yield b"".join(lines)


class _TooLarge(Exception):
    pass


def _require_size(size: int) -> None:
    if size > MAX_DOCUMENT:
        raise _TooLarge


def _normalized(text: str) -> str:
    return text.replace("\r\n", "\n").removeprefix("\ufeff").strip()


class _Encoding:
    """Decodes the pieces of a file. A byte that is not UTF-8 becomes U+FFFD; a file with many of them has another encoding."""

    def __init__(self, file: Path) -> None:
        self._file, self._n_bytes, self._invalid = file, 0, Counter[int]()

    def decode(self, piece: bytes, normalized: bool = True) -> str:
        """Raises UserError once it is clear that the file is not UTF-8."""
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            text = piece.decode(errors="replace")
            marked = piece.decode(errors="surrogateescape")  # each byte that is not UTF-8 is a lone surrogate
            self._invalid.update(ord(character) - 0xDC00 for character in _LONE.findall(marked))
        self._n_bytes += len(piece)
        if self._n_bytes > _BLOCK:
            self.finish()
        return _normalized(text) if normalized else text

    def finish(self) -> None:
        """Raises UserError if the text so far is not UTF-8."""
        if (n := self._invalid.total()) * _MAX_INVALID <= self._n_bytes:
            return
        # Latin-1 has control characters where Windows-1252 has quotation marks and dashes.
        encoding = "WINDOWS-1252" if any(byte < 0xA0 for byte in self._invalid) else "LATIN1"
        raise UserError(
            f"{self._file} is not UTF-8 ({n:,} of its first {self._n_bytes:,} bytes are not); convert it, probably with: "
            f"iconv -f {encoding} -t UTF-8 {self._file.name} > utf8.txt"
        )
