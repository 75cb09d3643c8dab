"""What the tokenizer of a written format is known not to keep, so that a check compares what must be equal."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.hf_bpe import HuggingFaceBPE


@dataclass(frozen=True)
class Losses:
    """What a format does not keep of a tokenizer, with what the check does about it.

    change       makes of a text one that both encode in the same way
    notes        what is lost, a sentence each
    any_strings  False: ids are equal on the packaged text only, as the format knows the split pattern only nearly
    """

    change: Callable[[str], str] = lambda text: text
    notes: Sequence[str] = ()
    any_strings: bool = True


def gguf_losses(tokenizer: ChatTokenizer, any_strings: bool = True) -> Losses:
    """What a GGUF file does not keep: llama.cpp does not normalize text, and takes U+2581 for a space."""
    encoder = tokenizer.encoder
    if isinstance(encoder, HuggingFaceBPE) and encoder.rules.nfc:
        note = (
            "text is not normalized to NFC, which the model's own tokenizer does; for composed text the ids are equal"
        )
        return Losses(lambda text: unicodedata.normalize("NFC", text), [note], any_strings)
    if tokenizer.kind == "llama2c":
        return Losses(_without_mark, ["the character U+2581 means a space"])
    return Losses(any_strings=any_strings)


def hf_losses(tokenizer: ChatTokenizer) -> Losses:
    """What tokenizer.json does not keep of a tokenizer."""
    if tokenizer.kind == "llama2c":
        return Losses(_without_mark, ["the character U+2581 means a space"])
    return Losses()


def _without_mark(text: str) -> str:
    return text.replace("\u2581", " ")
