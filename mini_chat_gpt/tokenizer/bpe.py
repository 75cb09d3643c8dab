"""Byte-level BPE as in tiktoken: a split pattern, and byte strings with ranks (GPT-2's, GPT-4's, our own).

`encode` returns ids of ordinary text only, never a control token. `pieces[id]` is the bytes that an id stands for, or None.
`to_bytes()` is the content of a `.tiktoken` file, always the same bytes for the same encoder.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import tiktoken

from mini_chat_gpt.common.errors import UserError

# Our own split pattern, for tokenizers that we train and for rank files without a known pattern. Merges never cross its
# boundaries: the tail of a contraction; a word with the space (or other sign) before it; one or two digits (numbers should not
# use up a small vocabulary); punctuation with the space before it; white space. It contains nothing that the regex engines of
# tiktoken and of Hugging Face's tokenizers read differently, such as the possessive {1,2}+. Marks (\p{M}) belong to the letters,
# otherwise most Indian scripts are split inside words.
DEFAULT_PATTERN = (
    r"'(?:[sdmtSDMT]|ll|LL|ve|VE|re|RE)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


@dataclass(eq=False)
class TiktokenBPE:
    """`ranks` maps byte strings to ids. Of all neighbors that can be merged, the pair with the lowest rank is merged first."""

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
            raise UserError(f"The split pattern {self.pattern!r} is not a valid regular expression: {error}.") from None

    def encode(self, text: str) -> list[int]:
        """Ids of the text. Names of control tokens in it are encoded as ordinary characters."""
        with readable_regex_limit():
            return self._encoding.encode_ordinary(text)

    def to_bytes(self) -> bytes:
        """The content of a `.tiktoken` file: on each line the bytes in base64, a space, and the rank."""
        return ranks_to_bytes(self.ranks)


def rank_encoder(ranks: dict[bytes, int], pattern: str, name: str) -> TiktokenBPE:
    """The encoder for ranks from the file `name`, which errors mention."""
    try:
        return TiktokenBPE(ranks, pattern)
    except UserError as error:
        raise UserError(f"{name} can't be used as a .tiktoken file, or is damaged. {error}") from None


def ranks_to_bytes(ranks: dict[bytes, int]) -> bytes:
    """The content of the `.tiktoken` file of these ranks, in their order."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(piece) + b" %d\n" % rank for piece, rank in ordered)


def read_ranks(data: bytes, name: str) -> dict[bytes, int]:
    """Parse the content of a `.tiktoken` file. Errors mention `name`."""
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
    """Turn the panic of tiktoken's regex engine on a run of about a million spaces into a UserError."""
    try:
        yield
    except BaseException as error:  # a Rust panic is not an Exception
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(
            "The text contains a run of about a million white-space characters, which can't be split into tokens; "
            "shorten the run."
        ) from None


def _natural(digits: bytes) -> int:
    number = int(digits)
    if number < 0 or number > 10_000_000:
        raise ValueError(f"{number} is out of range")
    return number
