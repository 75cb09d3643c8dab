"""From ordinary text to ids, in the two ways that `ChatTokenizer` knows, and the files in which each is kept.

`RankEncoder`   tiktoken's byte-level BPE: a split pattern, and byte strings with ranks (GPT-2's, GPT-4's, our own).
`PieceEncoder`  SentencePiece's BPE as llama2.c's `tok*.bin` holds it: pieces with scores, unknown characters as bytes.

Both promise: `encode` gives only ids of ordinary text, never a control token; `pieces[id]` is the bytes an id
stands for (None where it stands for none); `to_bytes()` is the content of its file, the same bytes every time.
"""

from __future__ import annotations

import base64
import heapq
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import tiktoken

from mini_chat_gpt.common.errors import UserError

# Our own split pattern, used in training a tokenizer and for rank files that don't say which one they were made with.
# Merges never cross its borders: a contraction's tail; a word with the space (or other sign) before it; one or two
# digits (a small vocabulary should not be spent on numbers); punctuation with the space before it; white space.
# It holds nothing that the regex engines of tiktoken and of Hugging Face's tokenizers read differently, such as the
# possessive {1,2}+. Marks (\p{M}) belong to the letters, or most Indian scripts fall apart.
DEFAULT_PATTERN = (
    r"'(?:[sdmtSDMT]|ll|LL|ve|VE|re|RE)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


@dataclass(eq=False)
class RankEncoder:
    """tiktoken's BPE. `ranks` maps byte strings to ids; where two neighbours can merge, the lowest rank goes first."""

    kind: ClassVar[str] = "tiktoken"
    adds_leading_space: ClassVar[bool] = False

    ranks: dict[bytes, int]
    pattern: str
    pieces: list[bytes | None] = field(init=False, repr=False)
    _encoding: tiktoken.Encoding = field(init=False, repr=False)

    def __post_init__(self) -> None:
        missing = [byte for byte in range(256) if bytes([byte]) not in self.ranks]
        if missing:
            raise UserError(f"These ranks lack {len(missing)} of the 256 single bytes, so they can't spell every text.")
        self.pieces = [None] * (max(self.ranks.values()) + 1)
        for piece, rank in self.ranks.items():
            if self.pieces[rank] is not None:
                raise UserError(
                    f"Rank {rank} is given to both {self.pieces[rank]!r} and {piece!r}; the ranks are damaged."
                )
            self.pieces[rank] = piece
        try:
            self._encoding = tiktoken.Encoding(
                "mini_chat_gpt", pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens={}
            )
        except ValueError as error:
            raise UserError(f"The split pattern {self.pattern!r} is no valid regular expression: {error}.") from None

    def encode(self, text: str) -> list[int]:
        """Ids of the text; names of control tokens in it are letters like any others."""
        with readable_regex_limit():
            return self._encoding.encode_ordinary(text)

    def to_bytes(self) -> bytes:
        """A `.tiktoken` file: one line a rank, base64 of the bytes, a space, the rank."""
        return ranks_to_bytes(self.ranks)


def rank_encoder(ranks: dict[bytes, int], pattern: str, name: str) -> RankEncoder:
    """The encoder of ranks that were read from the file `name`, which its error tells."""
    try:
        return RankEncoder(ranks, pattern)
    except UserError as error:
        raise UserError(f"{name} can't be used as a .tiktoken file, or is damaged. {error}") from None


def ranks_to_bytes(ranks: dict[bytes, int]) -> bytes:
    """The `.tiktoken` file of these ranks, in their order."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(piece) + b" %d\n" % rank for piece, rank in ordered)


def read_ranks(data: bytes, name: str) -> dict[bytes, int]:
    """Parse a `.tiktoken` file's content; `name` is the file's, for the error."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = _natural(rank)
        except ValueError:
            raise UserError(
                f"{name}, line {number}: expected base64 bytes, a space and a rank, as in a .tiktoken file."
            ) from None
    return ranks


@contextmanager
def readable_regex_limit() -> Iterator[None]:
    """The regex engine behind tiktoken and rustbpe gives up on a run of a million spaces; say so in one sentence."""
    try:
        yield
    except BaseException as error:  # a Rust panic is no ordinary Exception
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(
            "The text holds a run of about a million white-space characters, which can't be split into tokens; "
            "shorten the run."
        ) from None


def _natural(digits: bytes) -> int:
    number = int(digits)
    if number < 0 or number > 10_000_000:
        raise ValueError(f"no sensible rank: {number}")
    return number


# Ids of llama2.c: 0 <unk>, 1 BOS, 2 EOS, then the 256 bytes, then pieces of text.
FIRST_BYTE_ID = 3
FIRST_TEXT_ID = FIRST_BYTE_ID + 256
# Words come back all the time, so what they merge to is remembered. A longer chunk is hardly ever seen twice.
CACHE_ENTRIES = 100_000
CACHE_MAX_CHARACTERS = 64


@dataclass(eq=False)
class PieceEncoder:
    """SentencePiece's BPE as in llama2.c.

    A space is put before the text; every character becomes its piece, or its UTF-8 bytes where it has none; then the
    neighbours whose join is the piece with the best score are joined, leftmost first, until none can be.

    `<unk>`, BOS, EOS and the byte pieces are never results of a join, so that no spelling of "<0x0A>" makes a newline.
    """

    kind: ClassVar[str] = "llama2c"
    adds_leading_space: ClassVar[bool] = True

    texts: list[bytes]
    scores: list[float]
    max_token_length: int
    pieces: list[bytes | None] = field(init=False, repr=False)
    ids: dict[str, int] = field(init=False, repr=False)
    _chunks: re.Pattern[str] | None = field(init=False, repr=False)
    _cache: dict[str, list[int]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.texts) < FIRST_TEXT_ID or any(
            self.texts[FIRST_BYTE_ID + byte] != b"<0x%02X>" % byte for byte in range(256)
        ):
            raise UserError("The vocabulary has no byte pieces <0x00>..<0xFF> at ids 3 to 258, as llama2.c's has.")
        bytes_pieces: list[bytes | None] = [bytes([byte]) for byte in range(256)]
        self.pieces = [None, None, None, *bytes_pieces, *self.texts[FIRST_TEXT_ID:]]
        self.ids = {}
        for token_id, text in enumerate(self.texts[FIRST_TEXT_ID:], start=FIRST_TEXT_ID):
            try:
                self.ids.setdefault(text.decode(), token_id)
            except UnicodeDecodeError:
                raise UserError(f"Piece {token_id} of the vocabulary, {text!r}, is not UTF-8 text.") from None
        self._chunks = _chunk_pattern(self.ids)

    def encode(self, text: str) -> list[int]:
        """Ids of the text with the leading space that SentencePiece puts before it; [] for an empty text."""
        if not text:
            return []
        text = " " + text
        ids: list[int] = []
        for chunk in self._chunks.findall(text) if self._chunks else [text]:
            chunk_ids = self._cache.get(chunk)
            if chunk_ids is None:
                chunk_ids = self._merge(chunk)
                if len(chunk) <= CACHE_MAX_CHARACTERS:
                    if len(self._cache) >= CACHE_ENTRIES:
                        self._cache.clear()
                    self._cache[chunk] = chunk_ids
            ids.extend(chunk_ids)
        return ids

    def _merge(self, chunk: str) -> list[int]:
        """Join neighbours, best score and then leftmost first, in O(n log n) by a heap of the possible joins.

        A symbol is named by the index of its first character and reaches to `end[index]`, where the next one begins.
        """
        size = len(chunk)
        ids = [self.ids.get(character, -1) for character in chunk]  # -1: spelled as bytes, joins with nothing
        end = list(range(1, size + 1))
        before = list(range(-1, size - 1))
        heap: list[tuple[float, int, int, int]] = []

        def offer(left: int) -> None:
            right = end[left]
            if right < size and ids[left] >= 0 and ids[right] >= 0:
                joined = self.ids.get(chunk[left : end[right]])
                if joined is not None:
                    heapq.heappush(heap, (-self.scores[joined], left, end[right], joined))

        for left in range(size):
            offer(left)
        while heap:
            _, left, stop, joined = heapq.heappop(heap)
            right = end[left]
            # Has either neighbour been joined with another since the offer? -2 marks a symbol that is part of another.
            if ids[left] == -2 or right >= size or end[right] != stop:
                continue
            ids[left], ids[right], end[left] = joined, -2, stop
            if stop < size:
                before[stop] = left
                offer(left)
            if before[left] >= 0:
                offer(before[left])
        return self._collect(chunk, ids, end)

    @staticmethod
    def _collect(chunk: str, ids: list[int], end: list[int]) -> list[int]:
        result: list[int] = []
        index = 0
        while index < len(chunk):
            if ids[index] >= 0:
                result.append(ids[index])
            else:
                result.extend(FIRST_BYTE_ID + byte for byte in chunk[index].encode())
            index = end[index]
        return result

    def to_bytes(self) -> bytes:
        """llama2.c's file: int32 max_token_length, then float32 score, int32 length and bytes of each piece."""
        parts = [struct.pack("<i", self.max_token_length)]
        for text, score in zip(self.texts, self.scores, strict=True):
            parts.append(struct.pack("<fi", score, len(text)) + text)
        return b"".join(parts)

    @staticmethod
    def from_bytes(data: bytes, name: str) -> PieceEncoder:
        """Parse llama2.c's `tok*.bin`; `name` is the file's, for the error."""
        no_tokenizer = UserError(f"{name} is not a llama2.c tokenizer (tok*.bin), or it is damaged.")
        texts: list[bytes] = []
        scores: list[float] = []
        try:
            (max_token_length,) = struct.unpack_from("<i", data, 0)
            offset = 4
            while offset < len(data):
                score, length = struct.unpack_from("<fi", data, offset)
                offset += 8
                if not 0 < length <= len(data) - offset:
                    raise no_tokenizer
                texts.append(data[offset : offset + length])
                scores.append(score)
                offset += length
        except struct.error:
            raise no_tokenizer from None
        try:
            return PieceEncoder(texts, scores, max_token_length)
        except UserError as error:
            raise UserError(f"{no_tokenizer} {error}") from None


def _chunk_pattern(pieces: dict[str, int]) -> re.Pattern[str] | None:
    """How a text may be cut so that no join is lost: merging each chunk by itself then gives exactly the same ids.

    A cut is harmless where no piece reaches across it. Where pieces have spaces only at their front (llama2.c's own
    small vocabularies) that is before every space; where some are runs of spaces (Llama's 32,000), before every run.
    """
    inner_space = [piece for piece in pieces if " " in piece[1:]]
    if not inner_space:
        return re.compile(r" ?[^ ]+| ")
    if not any(re.search(r"[^ ] ", piece) for piece in inner_space):
        return re.compile(r" *[^ ]+| +")
    return None


def read_file(path: Path) -> bytes:
    """The content of a tokenizer's file; UserError where there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Can't read the tokenizer {path}: {error.strerror}; check the path.") from None
