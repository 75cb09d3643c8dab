"""The tokens of a text file in a folder next to it, made on first use and verified before they are used.

    ids.bin         the documents one after another, each with its leading separator, uint16 or uint32
    offsets.npy     (documents + 1,) int64, where each begins
    meta.json       the type of the ids
    manifest.json   size and hash of each of these files
    verified.json   size, times and inode of the files when their hashes were compared last

The folder is a cache: a damaged one is made again. Its gigabytes are hashed only if a file has changed since they were compared.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from mini_chat_gpt.common.cached_folder import remove_folder
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_folder, remove_leftovers, user_cache, write_json
from mini_chat_gpt.common.json_files import JSONRecord, read_json
from mini_chat_gpt.common.manifest import MANIFEST, Identity, file_identity, find_damage, read_manifest
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

IDS, OFFSETS, META, VERIFIED = "ids.bin", "offsets.npy", "meta.json", "verified.json"
_SECONDS_BETWEEN_REPORTS = 5
_BLOCK = 1 << 24  # ids that are checked at once
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


class DamagedTokens(UserError):
    """A folder of tokens is incomplete or has changed. `problem` says in which way."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(f"{folder} is damaged: {problem}; delete it, and it is made again.")
        self.problem = problem


class _Meta(JSONRecord):
    dtype: Literal["uint16", "uint32"]


class _Verified(JSONRecord):
    files: dict[str, Identity]


class TokenFile:
    """The documents of a text file as ids, memory-mapped. `file[i]` is document i with its leading separator, (n,).

    Raises DamagedTokens if the files don't fit together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (META, OFFSETS, IDS, MANIFEST):
            if not (folder / name).is_file():
                raise DamagedTokens(folder, f"{name} is missing")
        try:
            dtype = read_json(folder / META, _Meta, "").dtype
        except UserError:
            raise DamagedTokens(folder, f"{META} does not say the type of the ids") from None
        try:
            self.offsets = _read_offsets(folder / OFFSETS)
            self.ids = np.memmap(folder / IDS, dtype=dtype, mode="r")
        except Exception as error:  # NumPy raises errors of many types for a damaged header
            raise DamagedTokens(folder, f"{OFFSETS} or {IDS} can't be read ({type(error).__name__})") from None
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.ids):
            raise DamagedTokens(folder, f"{IDS} has another length than {OFFSETS} says")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def __reduce__(self) -> tuple[Any, ...]:
        """For a worker process that was not forked: open the files there instead of sending their content."""
        return TokenFile, (self.folder,)


def _read_offsets(path: Path) -> np.ndarray:
    offsets = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(offsets, np.ndarray) or offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) < 2:
        raise ValueError("not a list of offsets")
    return offsets


def open_verified(folder: Path, vocab_size: int) -> TokenFile:
    """Open a folder of tokens. Raises DamagedTokens unless it is as it was written, with ids below `vocab_size`."""
    file = TokenFile(folder)
    with suppress(UserError, OSError):
        if read_json(folder / VERIFIED, _Verified, "").files == _identities(folder):
            return file
    problem = find_damage(folder)
    if problem is None and not {IDS, OFFSETS, META} <= read_manifest(folder).files.keys():
        problem = f"its {MANIFEST} does not list all files"
    if problem is None and (np.diff(file.offsets) < 2).any():
        problem = f"the offsets in {OFFSETS} don't increase"
    # A single pass in blocks, because the ids can be larger than the memory.
    blocks = (file.ids[start : start + _BLOCK] for start in range(0, len(file.ids), _BLOCK))
    if problem is None and any(int(block.max()) >= vocab_size for block in blocks):
        problem = f"{IDS} has ids that the tokenizer lacks"
    if problem is not None:
        raise DamagedTokens(folder, problem)
    _record_verified(folder)
    return file


def _identities(folder: Path) -> dict[str, Identity]:
    return {name: file_identity(folder / name) for name in (IDS, OFFSETS, META, MANIFEST)}


def _record_verified(folder: Path) -> None:
    """Remember that the files are intact. It only saves time, so a folder that can't be written to is not an error."""
    with suppress(UserError, OSError):
        write_json(folder / VERIFIED, {"files": _identities(folder)})


def tokenize_file(
    path: Path, texts: Iterable[str], tokenizer: ChatTokenizer, console: Console | None = None
) -> TokenFile:
    """The token file of `path`, whose documents are `texts`. It is made on first use and stored next to the text file.

    `texts` is only read if there is no intact token file for this state of the text file and this tokenizer.
    """
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{tokenizer.fingerprint()}"
    name = f".tokens-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folders = [path.parent / name, user_cache() / name]
    for folder in folders:
        remove_leftovers(folder.parent)
        if os.path.lexists(folder):
            try:
                return open_verified(folder, tokenizer.vocab_size)
            except DamagedTokens as error:
                _say(console, f"{folder} is damaged: {error.problem}. The tokens of {path.name} are made again.")
    try:
        return _make(folders[0], texts, tokenizer, path, console)
    except UserError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _UNWRITABLE:
            raise
    _say(console, f"{path.parent} can't be written; the tokens of {path.name} are stored in {folders[1]}.")
    return _make(folders[1], texts, tokenizer, path, console)


def _make(
    folder: Path, texts: Iterable[str], tokenizer: ChatTokenizer, source: Path, console: Console | None
) -> TokenFile:
    try:
        if os.path.lexists(folder):
            remove_folder(folder)
        with atomic_folder(folder) as draft:
            _write_tokens(draft, texts, tokenizer, source, console)
    except UserError:
        # Another process may have made the same folder in the meantime.
        with suppress(DamagedTokens):
            return open_verified(folder, tokenizer.vocab_size)
        raise
    _record_verified(folder)
    return TokenFile(folder)


def _write_tokens(
    folder: Path, texts: Iterable[str], tokenizer: ChatTokenizer, source: Path, console: Console | None
) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    offsets, n_tokens, n_characters = [0], 0, 0
    started = reported = time.monotonic()
    with open(folder / IDS, "wb") as file:
        for number, text in enumerate(texts, start=1):
            try:
                for part in chain([[tokenizer.document_id]], tokenizer.encode_in_parts(text)):
                    file.write(np.array(part, dtype=dtype).tobytes())
                    n_tokens += len(part)
            except UserError as error:
                raise UserError(f"{source}, document {number}: {error}") from None
            offsets.append(n_tokens)
            n_characters += len(text)
            if console is not None and time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                rate = n_characters / (reported - started) / 1e6
                progress = f"{number:,} documents, {rate:.1f} MB/s"
                console.print(f"Tokenizing {source.name}: {progress}", markup=False)
    if len(offsets) == 1:
        raise UserError(f"{source} contains no text to pretrain on; name another file.")
    np.save(folder / OFFSETS, np.array(offsets, dtype=np.int64))
    write_json(folder / META, {"dtype": np.dtype(dtype).name, "source": source.name})


def _say(console: Console | None, text: str) -> None:
    if console is None:
        warnings.warn(text, stacklevel=3)
    else:
        console.print(text, markup=False, soft_wrap=True)
