"""SentencePiece's BPE as in llama2.c's `tok*.bin`: pieces with scores, and bytes for unknown characters.

`encode` returns ids of ordinary text only, never a control token. `pieces[id]` is the bytes that an id stands for, or None.
`to_bytes()` is the content of a `tok*.bin` file, always the same bytes for the same encoder.
"""

from __future__ import annotations

import heapq
import re
import struct
from dataclasses import dataclass, field
from typing import ClassVar

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer.split_patterns import WORD_CUT

# Ids of llama2.c: 0 <unk>, 1 BOS, 2 EOS, then the 256 bytes, then pieces of text.
FIRST_BYTE_ID = 3
FIRST_TEXT_ID = FIRST_BYTE_ID + 256
# Words recur, so the ids of short chunks are cached. A longer chunk hardly ever occurs twice.
CACHE_ENTRIES = 100_000
CACHE_MAX_CHARACTERS = 64


@dataclass(eq=False)
class SentencePieceBPE:
    """A space is inserted before the text, and every character becomes its piece, or its UTF-8 bytes if it has none.

    Then the neighbors that form the piece with the best score are merged, leftmost first, until no neighbors form a piece.
    Merges never result in `<unk>`, BOS, EOS or a byte piece, so that a text that spells "<0x0A>" does not become a newline.
    """

    kind: ClassVar[str] = "llama2c"
    adds_leading_space: ClassVar[bool] = True
    space_after_control: ClassVar[bool] = True

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
            raise UserError(
                "The vocabulary lacks the byte pieces <0x00>..<0xFF> at ids 3 to 258, which llama2.c's have."
            )
        bytes_pieces: list[bytes | None] = [bytes([byte]) for byte in range(256)]
        self.pieces = [None, None, None, *bytes_pieces, *self.texts[FIRST_TEXT_ID:]]
        self.ids = {}
        for token_id, text in enumerate(self.texts[FIRST_TEXT_ID:], start=FIRST_TEXT_ID):
            try:
                self.ids.setdefault(text.decode(), token_id)
            except UnicodeDecodeError:
                raise UserError(f"Piece {token_id} of the vocabulary, {text!r}, is not UTF-8 text.") from None
        self._chunks = _chunk_pattern(self.ids)

    @property
    def safe_cut(self) -> re.Pattern[str] | None:
        """Matches where a text can be cut, without the space that follows, so that its parts have the same ids."""
        return None if self._chunks is None else WORD_CUT

    def encode(self, text: str) -> list[int]:
        """Ids of the text with the leading space that SentencePiece inserts; [] for an empty text."""
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
        """Merge neighbors, best score and then leftmost first, in O(n log n) with a heap of the possible merges.

        A symbol is identified by the index of its first character. It ends at `end[index]`, where the next one begins.
        """
        size = len(chunk)
        ids = [self.ids.get(character, -1) for character in chunk]  # -1: becomes bytes, can't be merged
        end = list(range(1, size + 1))
        before = list(range(-1, size - 1))
        heap: list[tuple[float, int, int, int]] = []

        def offer(left: int) -> None:
            right = end[left]
            if right < size and ids[left] >= 0 and ids[right] >= 0:
                merged = self.ids.get(chunk[left : end[right]])
                if merged is not None:
                    heapq.heappush(heap, (-self.scores[merged], left, end[right], merged))

        for left in range(size):
            offer(left)
        while heap:
            _, left, stop, merged = heapq.heappop(heap)
            right = end[left]
            # Skip it if one of the two has been merged with another symbol since. -2 marks a symbol that is part of another.
            if ids[left] == -2 or right >= size or end[right] != stop:
                continue
            ids[left], ids[right], end[left] = merged, -2, stop
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
        """The content of llama2.c's file: int32 max_token_length, then float32 score, int32 length and bytes of each piece."""
        parts = [struct.pack("<i", self.max_token_length)]
        for text, score in zip(self.texts, self.scores, strict=True):
            parts.append(struct.pack("<fi", score, len(text)) + text)
        return b"".join(parts)

    @staticmethod
    def from_bytes(data: bytes, name: str) -> SentencePieceBPE:
        """Parse the content of llama2.c's `tok*.bin`. Errors mention `name`."""
        invalid = UserError(f"{name} is not a llama2.c tokenizer (tok*.bin), or it is damaged.")
        texts: list[bytes] = []
        scores: list[float] = []
        try:
            (max_token_length,) = struct.unpack_from("<i", data, 0)
            offset = 4
            while offset < len(data):
                score, length = struct.unpack_from("<fi", data, offset)
                offset += 8
                if not 0 < length <= len(data) - offset:
                    raise invalid
                texts.append(data[offset : offset + length])
                scores.append(score)
                offset += length
        except struct.error:
            raise invalid from None
        try:
            return SentencePieceBPE(texts, scores, max_token_length)
        except UserError as error:
            raise UserError(f"{invalid} {error}") from None


def _chunk_pattern(pieces: dict[str, int]) -> re.Pattern[str] | None:
    """A pattern that splits a text into chunks that can be merged separately with exactly the same result, or None.

    A split is safe if no piece extends across it. If pieces have a space only at their beginning (llama2.c's own small
    vocabularies), every space begins a chunk. If some are runs of spaces (Llama's 32,000), every run begins one.
    """
    inner_space = [piece for piece in pieces if " " in piece[1:]]
    if not inner_space:
        return re.compile(r" ?[^ ]+| ")
    if not any(re.search(r"[^ ] ", piece) for piece in inner_space):
        return re.compile(r" *[^ ]+| +")
    return None
