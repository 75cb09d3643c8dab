"""GPT-2's tokenizer as two files, vocab.json and merges.txt, which folders of GPT-2, DialoGPT and GPT-Neo have without a tokenizer.json.

The result is the tokenizer.json that `transformers` makes of them. It is saved with the model from then on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import read_file
from mini_chat_gpt.common.json_files import read_json, short

VOCAB, MERGES, ADDED = "vocab.json", "merges.txt", "added_tokens.json"
END = "<|endoftext|>"
REMEDY = "get the model's files again"
MAX_FILE = 1 << 26  # bytes
MAX_SMALL = 1 << 20


def has_vocab_and_merges(folder: Path) -> bool:
    """Whether a folder has the two files. Only in those of some families they mean GPT-2's rules."""
    return all((folder / name).is_file() for name in (VOCAB, MERGES))


def tokenizer_json(folder: Path, special: list[str], add_prefix_space: bool) -> bytes:
    """The contents of a tokenizer.json. `special` are the names of control tokens. Raises UserError for a damaged file."""
    vocab = read_json(folder / VOCAB, dict[str, int], REMEDY, MAX_FILE)
    added = dict[str, int]()
    if (folder / ADDED).is_file():
        added = read_json(folder / ADDED, dict[str, int], REMEDY, MAX_SMALL)
    ids = vocab | added
    entries = [
        {
            "id": ids[name], "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True,
        }
        for name in dict.fromkeys([*special, END, *added])
        if name in ids
    ]  # fmt: skip
    parts: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": sorted(entries, key=lambda entry: entry["id"]),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": True,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": _merges(folder / MERGES)},
    }  # fmt: skip
    return json.dumps(parts, ensure_ascii=False).encode()


def _merges(path: Path) -> list[list[str]]:
    """The pairs of merges.txt in order. A first line that begins with "#version" is a comment; no other line is."""
    try:
        lines = read_file(path, MAX_FILE).decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; {REMEDY}.") from None
    if lines[0].startswith("#version"):
        lines[0] = ""
    merges = []
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if not line:
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise UserError(
                f"{path}, line {number}: {short(line)} is not two pieces with a space between them; {REMEDY}."
            )
        merges.append(pair)
    return merges
