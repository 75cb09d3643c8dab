"""mini_chat_gpt: turn raw text into a chat model that you built yourself, and understand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mini_chat_gpt.checkpoints.load import load_checkpoint
    from mini_chat_gpt.sft_train import train

__all__ = ["__version__", "load_checkpoint", "train"]
__version__ = "0.2.0.dev0"

_HOME = {"load_checkpoint": "mini_chat_gpt.checkpoints.load", "train": "mini_chat_gpt.sft_train"}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import mini_chat_gpt` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
