"""`mini-chat-gpt import SRC DST`: convert a model of another project, or a sharded checkpoint, into a checkpoint folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_chat_gpt.checkpoints.find import find_checkpoint, read_meta
from mini_chat_gpt.checkpoints.load import load_pair
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.page import shown_path
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


def _read_file(source: Path, tokenizer: str | None) -> tuple[GPT, ChatTokenizer, dict[str, Any]]:
    return *load_pair(source, tokenizer), {"job": "import", "source": shown_path(source)}


def _read_checkpoint(source: Path, tokenizer: str | None) -> tuple[GPT, ChatTokenizer, dict[str, Any]]:
    if tokenizer is not None:
        raise UserError(f"{source} is a folder that has its own tokenizer; omit --tokenizer.")
    folder = find_checkpoint(source)
    return *load_pair(folder), read_meta(folder)["info"] | {"source": shown_path(folder)}


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt import` with a parsed command line."""
    read = _read_checkpoint if arguments.source.is_dir() else _read_file
    model, tokenizer, info = read(arguments.source, arguments.tokenizer)
    save_checkpoint(arguments.folder, model, tokenizer, info=info)
    config = model.config
    padding = config.vocab_size - tokenizer.vocab_size
    print(
        f"Imported {arguments.source} into {arguments.folder}: {model.n_parameters():,} parameters, "
        f"{config.n_layer} layers, width {config.n_embd}, vocabulary {tokenizer.vocab_size:,}"
        f"{f' (+ {padding} padding)' if padding else ''}, context {config.context_length:,} tokens."
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("import", argv))


if __name__ == "__main__":
    exit_with(main)
