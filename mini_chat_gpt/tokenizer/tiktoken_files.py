"""Read tiktoken encodings by name, or from a `.tiktoken` file of ranks.

A `.tiktoken` file contains neither the split pattern nor the control tokens that belong to its ranks. The public files are
recognized by their hash. Any other file gets the pattern of our first tokenizers, with a warning, and no control tokens.
"""

from __future__ import annotations

import difflib
import hashlib
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import tiktoken

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import read_file
from mini_chat_gpt.tokenizer.bpe import (
    CL100K_PATTERN,
    GPT2_PATTERN,
    MAX_FILE,
    O200K_PATTERN,
    TiktokenBPE,
    rank_encoder,
    ranks_to_bytes,
    read_ranks,
)
from mini_chat_gpt.tokenizer.split_patterns import TWO_DIGITS_PATTERN

# tiktoken downloads without a time-out. Its largest file has 3.6 MB.
DOWNLOAD_SECONDS = 30.0
PUBLIC_FILES = "https://openaipublic.blob.core.windows.net/encodings/"


@dataclass(frozen=True)
class PublicEncoding:
    """What a public file of ranks does not contain."""

    pattern: str
    control: dict[str, int] = field(default_factory=dict)


# By the sha256 of the file, which tiktoken checks as well. GPT-2's ranks are those of r50k_base.
KNOWN_FILES = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": PublicEncoding(  # gpt2, r50k_base
        GPT2_PATTERN, {"<|endoftext|>": 50256}
    ),
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": PublicEncoding(  # p50k_base
        GPT2_PATTERN, {"<|endoftext|>": 50256}
    ),
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": PublicEncoding(  # cl100k_base
        CL100K_PATTERN,
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": PublicEncoding(  # o200k_base
        O200K_PATTERN, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}
    ),
}


def from_file(path: Path) -> tuple[TiktokenBPE, dict[str, int]]:
    """Encoder and control tokens from a `.tiktoken` file.

    Public files (gpt2/r50k_base, p50k_base, cl100k_base, o200k_base) are recognized and get their own pattern and control
    tokens. For others a warning says that TWO_DIGITS_PATTERN is used, and there are no control tokens until `add_control_tokens`.
    `ChatTokenizer(TiktokenBPE(ranks, pattern), control)` accepts another pattern.
    """
    ranks = read_ranks(read_file(path, MAX_FILE), str(path))
    if not ranks:
        raise UserError(f"{path} is empty; a .tiktoken file has a line with base64 bytes and a rank for each entry.")
    known = _known(ranks)
    if known is None:
        warnings.warn(
            f"{path} is not one of the public .tiktoken files; its split pattern is unknown, so that of our first tokenizers is used.",
            stacklevel=2,
        )
        known = PublicEncoding(TWO_DIGITS_PATTERN)
    return rank_encoder(ranks, known.pattern, str(path)), known.control


def from_name(name: str) -> tuple[TiktokenBPE, dict[str, int]]:
    """Encoder and control tokens of one of tiktoken's encodings.

    tiktoken downloads the ranks unless they are cached. Raises UserError after DOWNLOAD_SECONDS without an answer.
    """
    names = tiktoken.list_encoding_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"There is no tokenizer {name!r}: no such file or folder, and none of tiktoken's encodings "
            f"({', '.join(names)}).{hint}"
        )
    encoding = _get_encoding(name)
    ranks = encoding._mergeable_ranks
    # The patterns in our table are equivalent, and Hugging Face's regex engine reads them in the same way.
    known = _known(ranks)
    pattern = encoding._pat_str if known is None else known.pattern
    return TiktokenBPE(ranks, pattern), encoding._special_tokens


def _known(ranks: dict[bytes, int]) -> PublicEncoding | None:
    return KNOWN_FILES.get(hashlib.sha256(ranks_to_bytes(ranks)).hexdigest())


def _get_encoding(name: str) -> tiktoken.Encoding:
    """tiktoken's encoding, or UserError after DOWNLOAD_SECONDS. The waiting thread then ends with the program."""
    encodings: list[tiktoken.Encoding] = []
    problems: list[str] = []

    def load() -> None:
        try:
            encodings.append(tiktoken.get_encoding(name))
        except Exception as error:  # any error of the network, a proxy or the disk
            problems.append(type(error).__name__)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_SECONDS)
    if encodings:
        return encodings[0]
    reason = problems[0] if problems else f"no answer within {DOWNLOAD_SECONDS:g} seconds"
    file = {"gpt2": "r50k_base", "p50k_edit": "p50k_base", "o200k_harmony": "o200k_base"}.get(name, name) + ".tiktoken"
    raise UserError(
        f"tiktoken can't download the ranks of {name!r} ({reason}); get {PUBLIC_FILES}{file} where there is a network, "
        "and give that file instead of the name."
    )
