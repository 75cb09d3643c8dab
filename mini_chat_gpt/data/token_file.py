"""The tokens of a text file in a folder next to it, made on first use and verified before they are used.

    ids.bin         the documents one after another, each with its leading separator, uint16 or uint32
    offsets.npy     (documents + 1,) int64, where each begins
    meta.json       the type of the ids

See `cached_folder` for what is done about damage, about a folder that can't be written, and about killed processes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from mini_chat_gpt.common.cached_folder import CachedFolder, DamagedFolder
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import user_cache, write_json
from mini_chat_gpt.common.json_files import JSONRecord, read_json
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

IDS, OFFSETS, META = "ids.bin", "offsets.npy", "meta.json"
_SECONDS_BETWEEN_REPORTS = 5
_BLOCK = 1 << 24  # ids that are checked at once


class _Meta(JSONRecord):
    dtype: Literal["uint16", "uint32"]


class TokenFile:
    """The documents of a text file as ids, memory-mapped. `file[i]` is document i with its leading separator, (n,).

    Raises DamagedFolder if the files don't fit together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            dtype = read_json(folder / META, _Meta, "").dtype
        except (UserError, OSError):
            raise DamagedFolder(folder, f"{META} does not say the type of the ids") from None
        try:
            self.offsets = _read_offsets(folder / OFFSETS)
            self.ids = np.memmap(folder / IDS, dtype=dtype, mode="r")
        except Exception as error:  # NumPy raises errors of many types for a damaged header
            raise DamagedFolder(folder, f"{OFFSETS} or {IDS} can't be read ({type(error).__name__})") from None
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.ids):
            raise DamagedFolder(folder, f"{IDS} has another length than {OFFSETS} says")

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


def largest_id(ids: np.ndarray) -> int:
    """The largest of (n,) ids, which can be larger than the memory; -1 if there are none."""
    blocks = (ids[start : start + _BLOCK] for start in range(0, len(ids), _BLOCK))
    return max((int(block.max()) for block in blocks), default=-1)


def _problem(file: TokenFile, vocab_size: int) -> str | None:
    if (np.diff(file.offsets) < 2).any():
        return f"the offsets in {OFFSETS} don't increase"
    return f"{IDS} has ids that the tokenizer lacks" if largest_id(file.ids) >= vocab_size else None


def tokenize_file(
    path: Path,
    texts: Iterable[str],
    tokenizer: ChatTokenizer,
    console: Console | None = None,
    variant: str = "",
    title: str = "",
) -> TokenFile:
    """The token file of `path`, whose documents are `texts`. It is made on first use and stored next to the text file.

    variant   what else the documents depend on, such as further files
    title     what messages say instead of the path

    `texts` is only read if there is no intact token file for this state of the text file and this tokenizer.
    """
    stat, source = path.stat(), Path(title or path)
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{tokenizer.fingerprint()}{variant}"
    name = f".tokens-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    cached = CachedFolder(
        [path.parent / name, user_cache() / name],
        (IDS, OFFSETS, META),
        read=TokenFile,
        check=lambda file: _problem(file, tokenizer.vocab_size),
        content=f"The tokens of {source.name} are",
        console=console,
    )
    return cached.find() or cached.make(lambda folder: _write_tokens(folder, texts, tokenizer, source, console))


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
