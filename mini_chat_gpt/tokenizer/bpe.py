"""Byte-level BPE as in tiktoken: a split pattern, and byte strings with ranks (GPT-2's, GPT-4's, our own).

`encode` returns ids of ordinary text only, never a control token. `pieces[id]` is the bytes that an id stands for, or None.
`to_bytes()` is the content of a `.tiktoken` file, always the same bytes for the same encoder.
"""

from __future__ import annotations

import base64
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import tiktoken

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import short
from mini_chat_gpt.tokenizer.split_patterns import (
    CL100K_PATTERN as CL100K_PATTERN,
)  # those with "as": for importers of bpe
from mini_chat_gpt.tokenizer.split_patterns import GPT2_PATTERN as GPT2_PATTERN
from mini_chat_gpt.tokenizer.split_patterns import LETTER_CUT, QWEN35_PATTERN, TWO_DIGITS_PATTERN
from mini_chat_gpt.tokenizer.split_patterns import O200K_PATTERN as O200K_PATTERN

DEFAULT_PATTERN = QWEN35_PATTERN
"""The split pattern of tokenizers that we train. llama.cpp and Ollama know it, so that they give a trained model the same ids."""
PATTERNS = frozenset({QWEN35_PATTERN, TWO_DIGITS_PATTERN, GPT2_PATTERN, CL100K_PATTERN, O200K_PATTERN})

MAX_IDS = 1 << 20
"""Ids of a tokenizer. Unused ids get names, so a damaged id must not stand for millions of them."""
MAX_UNUSED = 1 << 16
"""Unused ids that a small encoder may have. A large one may have as many as it has entries."""
MAX_FILE = 1 << 28
"""Bytes of an encoder's file."""
_MAX_PATTERN, _MAX_REPEAT = 2_000, 1_000  # of a foreign pattern; the public ones have 300 characters and repeat 3 times
_PATTERN_SECONDS = 5.0
_MAX_BLANKS = 999_000  # in a row; the stack of tiktoken's regex engine is full at about a million


@dataclass(eq=False)
class TiktokenBPE:
    """`ranks` maps byte strings to ids. Of all neighbors that can be merged, the pair with the lowest rank is merged first."""

    kind: ClassVar[str] = "tiktoken"
    adds_leading_space: ClassVar[bool] = False
    space_after_control: ClassVar[bool] = False

    ranks: dict[bytes, int]
    pattern: str
    pieces: list[bytes | None] = field(init=False, repr=False)
    _encoding: tiktoken.Encoding = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Each id has a row in the model's tables, so one wrong rank must not make a million of them.
        last, limit = max(self.ranks.values(), default=0), len(self.ranks) + max(len(self.ranks), MAX_UNUSED)
        if last >= min(limit, MAX_IDS):
            raise UserError(
                f"The ranks of its {len(self.ranks):,} entries go up to {short(last)}, but a rank is nearly the entry's number, and "
                f"at most {MAX_IDS - 1:,}."
            )
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
        make = partial(
            tiktoken.Encoding, "mini_chat_gpt", pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens={}
        )
        self._encoding = make() if self.pattern in PATTERNS else _try_pattern(self.pattern, make)

    @property
    def safe_cut(self) -> re.Pattern[str] | None:
        """Matches where a text can be cut without changing its ids; None if that is not known."""
        return LETTER_CUT if self.pattern in PATTERNS else None

    def encode(self, text: str) -> list[int]:
        """Ids of the text. Names of control tokens in it are encoded as ordinary characters."""
        with readable_regex_limit():
            return self._encoding.encode_ordinary(check_blanks(text, self.pattern))

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
            word, rank = line.split()
            piece = base64.b64decode(word, validate=True)
            if piece in ranks:
                raise ValueError("twice")
            ranks[piece] = int(rank)
            if ranks[piece] < 0:
                raise ValueError("negative")
        except ValueError:
            raise UserError(
                f"{name}, line {number}: expected base64 bytes, a space and a rank, as in a .tiktoken file."
            ) from None
    return ranks


def _try_pattern(pattern: str, make: Callable[[], tiktoken.Encoding]) -> tiktoken.Encoding:
    """An encoding with a pattern that comes from a file, which must not take forever or all the memory.

    Raises UserError if it is not a regular expression, or if it takes too long for runs of its own characters.
    """
    repeats = [int(number[:9]) for number in re.findall(r"\d+", " ".join(re.findall(r"\{[\d, ]+\}", pattern)))]
    if len(pattern) > _MAX_PATTERN or max(repeats, default=0) > _MAX_REPEAT:
        raise UserError(f"The split pattern {short(pattern)} is too large; {_PATTERN_REMEDY}.")
    texts = [letter * 2_000 + "\0" for letter in dict.fromkeys("a 1.\n" + pattern)]
    results: list[tiktoken.Encoding | BaseException] = []

    def attempt() -> None:
        try:
            encoding = make()
            for text in texts:
                encoding.encode_ordinary(text)
            results.append(encoding)
        except BaseException as error:  # a Rust panic is not an Exception
            results.append(error)

    # Rust code can't be interrupted. If it is not done in time, the thread ends with the program.
    thread = threading.Thread(target=attempt, daemon=True)
    with silent_stderr():
        thread.start()
        thread.join(_PATTERN_SECONDS)
    if not results:
        raise UserError(f"The split pattern {short(pattern)} takes too long; {_PATTERN_REMEDY}.")
    if isinstance(result := results[0], BaseException):
        raise UserError(f"The split pattern {short(pattern)} is not a usable regular expression; {_PATTERN_REMEDY}.")
    return result


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard what Rust code prints about its panics, which are handled."""
    with open(os.devnull, "wb") as null:
        try:
            saved = os.dup(2)
        except OSError:  # standard error is closed
            yield
            return
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


_PATTERN_REMEDY = "take the tokenizer from another checkpoint"


def check_blanks(text: str, pattern: str = DEFAULT_PATTERN) -> str:
    """Return `text`. Raises UserError for a run of white space that can't be split by one of PATTERNS."""
    if len(text) >= _MAX_BLANKS:
        for run in _LONG_RUNS[pattern == GPT2_PATTERN].finditer(text):
            if run.end() - run.start() >= _MAX_BLANKS:
                raise UserError(
                    f"The text contains {run.end() - run.start():,} white-space characters in a row, from character "
                    f"{run.start():,} on, which can't be split into tokens; shorten the run."
                )
    return text


# Without and with line breaks: only GPT-2's pattern treats them like other white space. The minimum makes shorter runs cheap.
_LONG_RUNS = (re.compile(r"[^\S\r\n]{32,}"), re.compile(r"\s{32,}"))


@contextmanager
def readable_regex_limit() -> Iterator[None]:
    """Turn a panic of tiktoken's regex engine, whose stack or time is limited, into a UserError."""
    try:
        yield
    except BaseException as error:  # a Rust panic is not an Exception
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(
            "The text can't be split into tokens, because the tokenizer's pattern takes too long for it; shorten its longest "
            "runs of equal characters."
        ) from None


def byte_letters() -> list[str]:
    """GPT-2's visible characters for bytes: printable Latin-1 characters for themselves, U+0100 and up for the others."""
    visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]
