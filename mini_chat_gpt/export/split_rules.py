"""How a tokenizer splits text before merging, and llama.cpp's name for it (`tokenizer.ggml.pre`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mini_chat_gpt.tokenizer.bpe import TiktokenBPE
from mini_chat_gpt.tokenizer.hf_bpe import HuggingFaceBPE
from mini_chat_gpt.tokenizer.split_patterns import GPT2_PATTERN, PRE_TOKENIZERS

NAMES = ("gpt-2", "smollm", "qwen2", "qwen35", "llama-bpe", "dbrx", "tekken", "gpt-4o", "falcon", "default")
"""One name of llama.cpp for each way of splitting, those that are tried first at the beginning."""


def split_steps(encoder: TiktokenBPE | HuggingFaceBPE) -> tuple[str, ...] | None:
    """The regular expressions that split text, one after the other; None for a rule that is not one of them."""
    if isinstance(encoder, TiktokenBPE):
        return (encoder.pattern,)
    parts = json.loads(encoder.to_bytes())["pre_tokenizer"]
    steps = [_pattern(part) for part in _flat(parts)]
    return None if None in steps else tuple(step for step in steps if step)


def _flat(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict) and part.get("type") == "Sequence":
        for child in part["pretokenizers"]:
            yield from _flat(child)
    elif part is not None:
        yield part


def _pattern(part: dict[str, Any]) -> str | None:
    """The regular expression of a step, "" for one that does not split, None for another rule."""
    kind = part["type"]
    if kind == "ByteLevel":
        return GPT2_PATTERN if part.get("use_regex", True) else ""
    if kind == "Digits":
        return r"\p{N}" if part.get("individual_digits") else r"\p{N}+"
    regex = part.get("pattern", {}).get("Regex") if kind == "Split" else None
    isolated = (part.get("behavior"), bool(part.get("invert"))) in (("Isolated", False), ("Removed", True))
    return regex if isinstance(regex, str) and isolated else None


def ignores_merges(encoder: TiktokenBPE | HuggingFaceBPE) -> bool:
    """Whether a part of the text that is a token is kept, whether merges make it or not."""
    if isinstance(encoder, TiktokenBPE):
        return True
    return bool(json.loads(encoder.to_bytes())["model"].get("ignore_merges"))


def names_of_rules(encoder: TiktokenBPE | HuggingFaceBPE) -> tuple[list[str], bool]:
    """llama.cpp's names for the same split rules, the best first, and whether it also agrees on `ignores_merges`."""
    steps, ignores = split_steps(encoder), ignores_merges(encoder)
    names = [name for name in NAMES if PRE_TOKENIZERS[name].patterns == steps]
    names.sort(key=lambda name: PRE_TOKENIZERS[name].ignore_merges != ignores)
    return names, bool(names) and PRE_TOKENIZERS[names[0]].ignore_merges == ignores
