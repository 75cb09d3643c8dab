"""Text generation: decoding, sampling, and inference on CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mini_chat_gpt.generation.text import generate, stream

__all__ = ["generate", "stream"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that importing a sibling costs nothing more."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mini_chat_gpt.generation import text

    return getattr(text, name)
