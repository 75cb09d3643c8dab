"""Plain text for pretraining: documents tokenised once into a memory-mapped file, then read by index.

A document is `[sep] text [sep]`, where sep is the tokenizer's `document_id`: the model learns to begin after it and to end
with it. Documents don't see each other; one longer than the context is read in consecutive pieces.

    ids.bin       all documents end to end, each with its leading separator, uint16 or uint32
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
from mini_chat_gpt.common.files import atomic_folder, user_cache, write_json
from mini_chat_gpt.data.batching import Example, epoch_order
from mini_chat_gpt.sft_dataloader import stories
from mini_chat_gpt.tinystories.records import FILE_NAMES as INSTRUCT_NAMES
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

# Names under which the public files are found, plain stories first. {split} is train or valid.
FILE_NAMES = ("TinyStoriesV2-GPT4-{split}.txt", "TinyStories-{split}.txt", "stories-{split}.txt", *INSTRUCT_NAMES)


def find_text(path: Path | str, split: str) -> Path | None:
    """The file with the given split ("train" or "valid") of a folder, or of the folder that holds the file `path`."""
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"There is no text at {path}; `python prepare_sft_data.py` gets the stories, or name your own file."
        )
    if path.is_file():
        if split == "train":
            return path
        twin = path.with_name(path.name.replace("train", "valid"))
        return twin if twin != path and twin.is_file() else None
    for name in FILE_NAMES:
        if (file := path / name.format(split=split)).is_file():
            return file
    if split == "train":
        raise UserError(
            f"{path} holds no stories (looked for {FILE_NAMES[0].format(split=split)} and its kin); run prepare_sft_data.py."
        )
    return None


class TokenFile:
    """Documents of a text file as ids, memory-mapped. `file[i]` is document i with its leading separator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        dtype = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["dtype"]
        self.ids = np.memmap(folder / "ids.bin", dtype=dtype, mode="r")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def tokenize_file(path: Path, tokenizer: ChatTokenizer, console: Console | None = None) -> TokenFile:
    """The token file of `path`, made beside it on the first use and found again after."""
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{tokenizer.fingerprint()}"
    name = f".tokens-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    for parent in (path.parent, user_cache()):
        if (parent / name).is_dir():
            return TokenFile(parent / name)
    parent = path.parent if os.access(path.parent, os.W_OK) else user_cache()
    try:
        with atomic_folder(parent / name) as draft:
            _write_tokens(draft, stories(path), tokenizer, path, console)
    except UserError:
        if not (parent / name).is_dir():  # another process may have made the same meanwhile
            raise
    return TokenFile(parent / name)


def _write_tokens(
    folder: Path, texts: Iterable[str], tokenizer: ChatTokenizer, source: Path, console: Console | None
) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    offsets, characters = [0], 0
    started = said = time.monotonic()
    with open(folder / "ids.bin", "wb") as file:
        for text in texts:
            ids = np.array([tokenizer.document_id, *tokenizer.encode(text)], dtype=dtype)
            file.write(ids.tobytes())
            offsets.append(offsets[-1] + len(ids))
            characters += len(text)
            if console is not None and time.monotonic() - said > 5:
                said = time.monotonic()
                rate = characters / (said - started) / 1e6
                console.print(
                    f"tokenising {source.name}: {len(offsets) - 1:,} documents, {rate:.1f} MB/s", markup=False
                )
    if len(offsets) == 1:
        raise UserError(f"{source} holds no story; expected texts separated by lines of <|endoftext|>.")
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    write_json(folder / "meta.json", {"dtype": np.dtype(dtype).name, "source": source.name})


class TextDataset:
    """Pieces of documents as examples, in a new seeded order each epoch; every token but the first is a target.

    Implements the trainer's `ExampleDataset`: `example(index)` depends on data, seed and index alone.
    """

    def __init__(
        self, file: TokenFile, separator: int, context: int, seed: int, documents: np.ndarray | None = None
    ) -> None:
        self.file, self.separator, self.context, self.seed = file, separator, context, seed
        chosen = np.arange(len(file)) if documents is None else documents
        lengths = np.diff(file.offsets)[chosen] + 1  # the closing separator counts
        # A piece of n ids predicts n − 1, and the last id of one piece is the first of the next.
        pieces = np.maximum(1, -(-(lengths - 1) // (context - 1)))
        self.documents = np.repeat(chosen, pieces)
        self.piece = np.concatenate([np.arange(n) for n in pieces]) if len(pieces) else np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Example:
        epoch, index = divmod(index, len(self))
        return self.read(int(epoch_order(len(self), self.seed, epoch)[index]))

    def read(self, index: int) -> Example:
        """Piece `index` in file order."""
        ids = np.append(self.file[self.documents[index]].astype(np.int32), np.int32(self.separator))
        start = int(self.piece[index]) * (self.context - 1)
        ids = ids[start : start + self.context]
        trained = np.ones(len(ids), dtype=bool)
        trained[0] = False
        return Example(ids, trained, weight=1.0, kind="text")

    def first(self, count: int) -> list[Example]:
        """A fixed selection of at most `count` pieces, spread evenly, each once."""
        return [self.read(int(i)) for i in np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))]


def split_documents(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Every hundredth document for validation where there is no file for it (at least one)."""
    held = np.arange(n) % 100 == min(99, n - 1)
    return np.flatnonzero(~held), np.flatnonzero(held)


def sample_texts(texts: Iterator[str], megabytes: float = 50.0) -> Iterator[str]:
    """Texts until their size reaches `megabytes`: enough to train a tokenizer on."""
    size = 0
    for text in texts:
        if size > megabytes * 1e6:
            return
        size += len(text.encode("utf-8", errors="replace"))
        yield text
