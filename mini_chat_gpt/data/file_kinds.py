"""What a file is, by its first bytes and not by its name, and its content as a stream of UTF-8.

Compressed files (gzip, bzip2, xz, a zip with one file in it, Zstandard) are decompressed as they are read, so that a small file never
fills the memory. UTF-16 and UTF-32 are recoded, with or without a byte order mark. A file without text is one sentence that says
what it is and what to do.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import open_regular

START = 4096
"""Bytes that are looked at."""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
OTHERS = {
    b"PAR1": "a Parquet file; unpack it, and give the file itself",
    b"ARROW1": "an Arrow file; unpack it, and give the file itself",
    b"\xff\xff\xff\xff": "an Arrow file; unpack it, and give the file itself",
    b"PARE": "an encrypted Parquet file; decrypt it",
    b"FEA1": "a Feather file of the old version 1; convert it to Parquet",
    b"SQLite format 3\x00": "an SQLite database; export the table as CSV or JSON",
    b"%PDF": "a PDF; convert it to text first (for example with pdftotext)",
    b"{\\rtf": "a Rich Text document; save it as plain text",
    b"\xd0\xcf\x11\xe0": "an old Office document; save it as plain text or CSV",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"GGUF": "a GGUF model; data are expected here",
    b"\x93NUMPY": "a NumPy array; save the texts as JSON Lines",
    b"\x89HDF": "an HDF5 file; save the texts as JSON Lines",
    b"\x80\x02": "a pickle, which is never opened, as it could run code; save the data as JSON Lines",
    b"\x80\x03": "a pickle, which is never opened, as it could run code; save the data as JSON Lines",
    b"\x80\x04": "a pickle, which is never opened, as it could run code; save the data as JSON Lines",
    b"\x80\x05": "a pickle, which is never opened, as it could run code; save the data as JSON Lines",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"OggS": "a sound",
    b"ID3": "a sound",
    b"\x7fELF": "a program",
    b"MZ": "a program",
}
"""First bytes of files without records -> what they are and what to do."""
OFFICE = {
    "word/": "a Word document; save it as plain text",
    "xl/": "an Excel workbook; save the sheet as CSV",
    "ppt/": "a PowerPoint document; save it as plain text",
    "content.xml": "an OpenDocument file; save it as plain text, or a sheet as CSV",
    "META-INF/container.xml": "an e-book (EPUB); convert it to text first (for example with pandoc)",
}
"""Names in a zip, or their beginnings -> what it is and what to do."""
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class IncompleteData(Exception):
    """A file ends too early; what has been read is right. The text is a clause."""


class TextStream:
    """A file's content as UTF-8. Its methods raise IncompleteData, OSError, and UserError for a damaged file."""

    def __init__(self, file: IO[bytes], path: Path, kind: str | None, encoding: str | None, start: bytes = b"") -> None:
        self.start = start
        """The first bytes, as UTF-8."""
        self._file, self._path, self._kind, self._encoding = file, path, kind, encoding
        # A line break is \n in every encoding, and stays as it is.
        self._text = io.TextIOWrapper(file, encoding, newline="\n") if encoding else None

    def readline(self, limit: int) -> bytes:
        """The next line, or its next `limit` bytes (for UTF-16 and UTF-32: characters); empty at the end."""
        with self._readable():
            return self._file.readline(limit) if self._text is None else _encoded(self._text.readline(limit))

    def read(self, limit: int) -> bytes:
        """The next bytes (for UTF-16 and UTF-32: characters); empty at the end."""
        with self._readable():
            return self._file.read(limit) if self._text is None else _encoded(self._text.read(limit))

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except EOFError:
            raise IncompleteData(f"the {self._kind} file is incomplete; get it again") from None
        except UnicodeDecodeError as error:
            what = f"is not valid {self._encoding} ({error.reason})"
            raise UserError(f"{self._path} {what}; save it as UTF-8.") from None
        except Exception as error:
            if self._kind is None:
                raise
            # Its checksum may be wrong only at the end, so that records before it are wrong, too.
            raise UserError(f"{self._path} is a damaged {self._kind} file ({error}); get it again.") from None


@contextmanager
def open_text(path: Path) -> Iterator[TextStream]:
    """Open a file of text. Raises OSError if it can't be opened, UserError if it holds something else than text."""
    with open(path, "rb", opener=open_regular) as file:  # a device may have no end, and a pipe can't be read twice
        start = file.read(START)
    kind = next((kind for signature, kind in COMPRESSED.items() if start.startswith(signature)), None)
    kind = "zip" if start.startswith(b"PK\x03\x04") else kind
    with _decompressor(path, kind)() as content:
        if kind is not None:
            with TextStream(content, path, kind, None)._readable():
                start = content.read(START)
            if start[257:262] == b"ustar":
                raise UserError(
                    f"{path} is a tar archive, compressed with {kind}; unpack it into a folder and give the folder."
                )
        elif start[257:262] == b"ustar":
            raise UserError(f"{path} is a tar archive; unpack it into a folder and give the folder.")
        _refuse_other(path, start)
    encoding = encoding_of(start)
    own = None if encoding.startswith("utf-8") else encoding  # a byte order mark of UTF-8 stays
    with _decompressor(path, kind)() as content:
        yield TextStream(content, path, kind, own, start if own is None else _encoded(start.decode(own, "replace")))


def encoding_of(start: bytes) -> str:
    """The encoding of a text, by a byte order mark or by where its first bytes are 0."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return encoding
    sample = start[: len(start) // 4 * 4][:400]
    # In UTF-16 and UTF-32 the characters of ASCII, of which JSON and CSV have many, have zeros at fixed places.
    zeros = [sum(byte == 0 for byte in sample[place::4]) / max(1, len(sample) // 4) for place in range(4)]
    patterns = {
        "utf-32-le": (0, 1, 1, 1),
        "utf-32-be": (1, 1, 1, 0),
        "utf-16-le": (0, 1, 0, 1),
        "utf-16-be": (1, 0, 1, 0),
    }
    for encoding, pattern in patterns.items():
        if all(share > 0.7 if zero else share < 0.1 for share, zero in zip(zeros, pattern, strict=True)):
            return encoding
    return "utf-8"


def _decompressor(path: Path, kind: str | None) -> Callable[[], Any]:
    """A function that opens the decompressed content."""
    match kind:
        case None:
            return lambda: open(path, "rb")
        case "gzip":
            return lambda: gzip.open(path, "rb")
        case "bzip2":
            return lambda: bz2.open(path, "rb")
        case "xz":
            return lambda: lzma.open(path, "rb")
        case "zip":
            return lambda: _open_zip(path)
        case _:
            return lambda: _open_zstandard(path)


@contextmanager
def _open_zip(path: Path) -> Iterator[IO[bytes]]:
    """The only file in a zip. Raises UserError if it has several, or is an Office document."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [one.filename for one in archive.infolist() if not one.is_dir()]
            for folder, what in OFFICE.items():
                if any(name.startswith(folder) for name in names):
                    raise UserError(f"{path} is {what}.")
            names = [name for name in names if not name.startswith("__MACOSX/")]
            if len(names) != 1:
                shown = ", ".join([*names[:3], *(["…"] if len(names) > 3 else [])]) or "nothing"
                raise UserError(
                    f"{path} is a zip with {len(names)} files ({shown}); unpack it into a folder and give the folder."
                )
            try:
                content = archive.open(names[0])
            except (RuntimeError, NotImplementedError) as error:  # a password, or an unusual compression
                raise UserError(f"{path} can't be unpacked here ({error}); unpack it and give the file.") from None
            with content:
                yield content
    except zipfile.BadZipFile:
        raise UserError(f"{path} is a damaged zip; get it again.") from None


@contextmanager
def _open_zstandard(path: Path) -> Iterator[IO[bytes]]:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f'{path} is compressed with Zstandard; install its library (pip install "mini-chat-gpt[data]"), or decompress the '
            "file with `unzstd`."
        ) from None
    with open(path, "rb") as file:
        yield io.BufferedReader(_Zstandard(file, zstandard.ZstdDecompressor()))


class _Zstandard(io.RawIOBase):
    """The content of a Zstandard file of one or several frames. Unlike the library's reader it notices an incomplete one."""

    def __init__(self, file: IO[bytes], library: Any) -> None:
        self._file, self._library = file, library
        self._frame = library.decompressobj()
        self._left, self._content, self._begun = b"", b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises EOFError for an incomplete file, ZstdError for a damaged one."""
        while not self._content:
            data = self._left or self._file.read(1 << 16)
            if not data:
                if self._begun:
                    raise EOFError
                return 0
            self._begun = True
            self._content, self._left = self._frame.decompress(data), b""
            if self._frame.eof:
                self._left, self._frame, self._begun = self._frame.unused_data, self._library.decompressobj(), False
        n = min(len(buffer), len(self._content))
        buffer[:n], self._content = self._content[:n], self._content[n:]
        return n


def _refuse_other(path: Path, start: bytes) -> None:
    """Raise UserError for a file without text."""
    for signature, what in OTHERS.items():
        if start.startswith(signature):
            raise UserError(f"{path} is {what}.")
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        raise UserError(
            f"{path} is a web page (HTML), perhaps instead of a file that needs a login; download the file itself."
        )
    if text.startswith(b"version https://git-lfs.github.com/"):
        raise UserError(f"{path} is a pointer of Git LFS instead of the file; get it with `git lfs pull`.")
    if b"\0" in start and encoding_of(start) == "utf-8":
        raise UserError(f"{path} is not a text file: it has NUL bytes; give JSON, JSON Lines, CSV or plain text.")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
