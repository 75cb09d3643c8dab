"""Text to ids and back: byte-level BPE, SentencePiece's BPE, and the control tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

__all__ = ["ChatTokenizer"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that importing a sibling costs nothing more."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mini_chat_gpt.tokenizer import chat_tokenizer

    return getattr(chat_tokenizer, name)
