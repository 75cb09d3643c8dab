"""Plain text for pretraining: documents are tokenized once into a memory-mapped file and read from it as examples.

A document is `[sep] text [sep]`, where sep is the tokenizer's `document_id`: the model learns to begin after it and to end with
it. Documents do not attend to each other. A document longer than the context is read in consecutive pieces.

    ids.bin       the documents one after another, each with its leading separator, uint16 or uint32
    offsets.npy   (documents + 1,) int64, where each begins
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_folder, remove_leftovers, user_cache, write_json
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.data.batching import Example, epoch_order
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

_SECONDS_BETWEEN_REPORTS = 5


class TokenFile:
    """The documents of a text file as ids, memory-mapped. `file[i]` is document i with its leading separator, (n,)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        dtype = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["dtype"]
        self.ids = np.memmap(folder / "ids.bin", dtype=dtype, mode="r")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def tokenize_file(
    path: Path, texts: Iterable[str], tokenizer: ChatTokenizer, console: Console | None = None
) -> TokenFile:
    """The token file of `path`, whose documents are `texts`. It is made on first use and stored next to the text file.

    `texts` is only read if there is no token file for this state of the text file and this tokenizer.
    """
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{tokenizer.fingerprint()}"
    name = f".tokens-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    for parent in (path.parent, user_cache()):
        remove_leftovers(parent)
        if (parent / name).is_dir():
            return TokenFile(parent / name)
    parent = path.parent if os.access(path.parent, os.W_OK) else user_cache()
    try:
        with atomic_folder(parent / name) as draft:
            _write_tokens(draft, texts, tokenizer, path, console)
    except UserError:
        if not (parent / name).is_dir():  # another process may have made the same file in the meantime
            raise
    return TokenFile(parent / name)


def _write_tokens(
    folder: Path, texts: Iterable[str], tokenizer: ChatTokenizer, source: Path, console: Console | None
) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    offsets, n_characters = [0], 0
    started = reported = time.monotonic()
    with open(folder / "ids.bin", "wb") as file:
        for text in texts:
            ids = np.array([tokenizer.document_id, *tokenizer.encode(text)], dtype=dtype)
            file.write(ids.tobytes())
            offsets.append(offsets[-1] + len(ids))
            n_characters += len(text)
            if console is not None and time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                rate = n_characters / (reported - started) / 1e6
                progress = f"{len(offsets) - 1:,} documents, {rate:.1f} MB/s"
                console.print(f"Tokenizing {source.name}: {progress}", markup=False)
    if len(offsets) == 1:
        raise UserError(f"{source} contains no story; expected texts separated by lines of <|endoftext|>.")
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    write_json(folder / "meta.json", {"dtype": np.dtype(dtype).name, "source": source.name})


class TextDataset:
    """Pieces of documents as examples; a map-style dataset, see `ExampleDataset`. Every token but the first is a target."""

    def __init__(self, file: TokenFile, data: DataSection, seed: int, documents: np.ndarray | None = None) -> None:
        """Use the documents with these numbers (default: all), in pieces of at most `data.seq_len` tokens."""
        self.file, self.seq_len, self.seed = file, data.seq_len, seed
        chosen = np.arange(len(file)) if documents is None else documents
        lengths = np.diff(file.offsets)[chosen] + 1  # with the closing separator
        # A piece of n ids predicts n − 1, and the last id of one piece is the first of the next.
        n_pieces = np.maximum(1, -(-(lengths - 1) // (self.seq_len - 1)))
        self.documents = np.repeat(chosen, n_pieces)
        self.piece = np.concatenate([np.arange(n) for n in n_pieces]) if len(n_pieces) else np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Example:
        """Example `index`, for any index ≥ 0; those from `len(self)` on belong to later epochs."""
        epoch, position = divmod(index, len(self))
        return self.read(int(epoch_order(len(self), self.seed, epoch)[position]))

    def read(self, number: int) -> Example:
        """Piece `number`, in the order of the file."""
        document = self.file[self.documents[number]].astype(np.int32)
        ids = np.append(document, document[0])  # the separator that begins a document also ends it
        start = int(self.piece[number]) * (self.seq_len - 1)
        ids = ids[start : start + self.seq_len]
        loss_mask = np.ones(len(ids), dtype=bool)
        loss_mask[0] = False
        return Example(ids, loss_mask, weight=1.0, kind="text")

    def first(self, count: int) -> list[Example]:
        """A fixed selection of at most `count` pieces, spread evenly over the file."""
        numbers = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))
        return [self.read(number) for number in numbers.tolist()]


def split_documents(n: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation) numbers of n documents without a validation file: every hundredth is held out, at least one."""
    held_out = np.arange(n) % 100 == min(99, n - 1)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def sample_texts(texts: Iterable[str], megabytes: float = 50.0) -> Iterator[str]:
    """The first texts, up to a size of `megabytes`: enough to train a tokenizer on."""
    size = 0
    for text in texts:
        if size > megabytes * 1e6:
            return
        size += len(text.encode("utf-8", errors="replace"))
        yield text
