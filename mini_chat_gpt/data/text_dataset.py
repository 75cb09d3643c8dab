"""Plain text for pretraining: documents are tokenized once into a memory-mapped file and read from it as examples.

A document is `[sep] text [sep]`, where sep is the tokenizer's `document_id`: the model learns to begin after it and to end with
it. Documents do not attend to each other. A document longer than the context is read in consecutive pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from mini_chat_gpt.config import DataSection
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.data.epoch_order import EpochOrder
from mini_chat_gpt.data.token_file import TokenFile, tokenize_file

__all__ = ["TextDataset", "TokenFile", "sample_texts", "split_documents", "split_ends", "tokenize_file"]

HELD_OUT_PART = 10
"""Of few documents the last 1/10 of the tokens of each is held out."""


class TextDataset:
    """Pieces of documents as examples; a map-style dataset, see `ExampleDataset`. Every token but the first is a target."""

    def __init__(
        self,
        file: TokenFile,
        data: DataSection,
        seed: int,
        documents: np.ndarray | None = None,
        part: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Use the documents with these numbers, in ascending order (default: all), in pieces of at most `data.seq_len` tokens.

        part: (begins, ends), use only the tokens from a begin to an end of each document. The separators count as its first
        and last token.
        """
        self.file, self.seq_len, self._part = file, data.seq_len, part
        lengths = np.diff(file.offsets) + 1  # with the closing separator
        begins, ends = part or (0, lengths if documents is None else lengths[documents])
        # A piece of n ids predicts n − 1, and the last id of one piece is the first of the next.
        n_pieces = np.maximum(1, -(-(ends - begins - 1) // (self.seq_len - 1)))
        self._documents = None if documents is None else documents.astype(np.uint32)
        if documents is not None and part is None and 2 * len(documents) > len(lengths):
            # Of most documents no list of numbers is kept: the others have no pieces.
            n_pieces = _scattered(n_pieces, documents, len(lengths))
            self._documents = None
        first_piece = np.concatenate([[0], np.cumsum(n_pieces)])
        self._first_piece = first_piece.astype(np.uint32) if first_piece[-1] < 2**32 else first_piece
        """(documents + 1,) number of each one's first piece"""
        self._order = EpochOrder(int(self._first_piece[-1]), seed)

    def __len__(self) -> int:
        return self._order.n

    def __getitem__(self, index: int) -> Example:
        """Example `index`, for any index ≥ 0; those from `len(self)` on belong to later epochs."""
        return self.read(self._order[index][1])

    def read(self, number: int) -> Example:
        """Piece `number`, in the order of the file."""
        # A number of another type would be compared with a copy of the array.
        row = int(np.searchsorted(self._first_piece, self._first_piece.dtype.type(number), "right")) - 1
        document = self.file[row if self._documents is None else int(self._documents[row])]
        begin, end = (0, len(document) + 1) if self._part is None else (int(edges[row]) for edges in self._part)
        begin += (number - int(self._first_piece[row])) * (self.seq_len - 1)
        end = min(begin + self.seq_len, end)
        ids = document[begin:end].astype(np.int32)  # slice first: a document can have 100 million tokens
        if end > len(document):
            ids = np.append(ids, np.int32(document[0]))  # the separator that begins a document also ends it
        loss_mask = np.ones(len(ids), dtype=bool)
        loss_mask[0] = False
        return Example(ids, loss_mask, weight=1.0, kind="text")

    def first(self, count: int) -> list[Example]:
        """A fixed selection of at most `count` pieces, spread evenly over the file."""
        numbers = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))
        return [self.read(number) for number in numbers.tolist()]


def _scattered(values: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    """(n,) the values at their places, 0 elsewhere."""
    scattered = np.zeros(n, dtype=values.dtype)
    scattered[places] = values
    return scattered


def split_documents(n: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation) numbers of n ≥ 2 documents without a validation file: every hundredth is held out, at least one."""
    held_out = np.arange(n) % 100 == min(99, n - 1)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def split_ends(file: TokenFile, data: DataSection, seed: int, documents: np.ndarray) -> tuple[TextDataset, TextDataset]:
    """(training, validation) parts of each of the documents: the last tenth of it is held out, at least one token.

    No token is a target in both parts. The last token of the first part is the first of the second.
    """
    lengths = np.diff(file.offsets)[documents] + 1  # with the closing separator, so at least 3
    cuts = lengths - np.maximum(1, lengths // HELD_OUT_PART)
    return (
        TextDataset(file, data, seed, documents, (np.zeros_like(cuts), cuts)),
        TextDataset(file, data, seed, documents, (cuts - 1, lengths)),
    )


def sample_texts(texts: Iterable[str], megabytes: float = 50.0) -> Iterator[str]:
    """The first texts, up to a size of `megabytes`: enough to train a tokenizer on. A larger text is cut."""
    size, limit = 0, int(megabytes * 1e6)
    for text in texts:
        if size > limit:
            return
        text = text[:limit]
        size += len(text.encode("utf-8", errors="replace"))
        yield text
