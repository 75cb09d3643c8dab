"""`mini-chat-gpt import SRC DST`: convert a model of another project, or a sharded checkpoint, into a checkpoint folder.

The folder is one that `transformers` loads as well, if its family is known there. What the model is, its license and origin
are printed, and the conversion is checked by replaying it: the tokenizer's round trip, and ten conversations in its chat format.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.families import family_of_model
from mini_chat_gpt.checkpoints.find import read_meta
from mini_chat_gpt.checkpoints.foreign import is_foreign
from mini_chat_gpt.checkpoints.import_check import check_tokenizer
from mini_chat_gpt.checkpoints.load import find_source, load_pair
from mini_chat_gpt.checkpoints.origin import Origin
from mini_chat_gpt.checkpoints.save import require_new, save_checkpoint
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.page import shown_path
from mini_chat_gpt.common.text import clean
from mini_chat_gpt.common.writable import require_writable
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_setup import describe_format
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(source: Path, folder: Path, tokenizer: str | None = None, dtype: str | None = None) -> list[str]:
    """Write the model of `source` as a new checkpoint folder, and return the lines that describe it.

    `tokenizer` see `import_model`; `dtype` is a key of DTYPES, None keeps the precision of the source. Raises UserError.
    """
    require_new(folder, source)  # before the work begins
    require_writable(folder.parent)
    precision = None if dtype is None else DTYPES[dtype]
    info: dict[str, Any] = {"job": "import", "source": shown_path(source)}
    checkpoint = find_source(source)
    model, loaded_tokenizer = load_pair(checkpoint, tokenizer, dtype=precision)
    if not is_foreign(checkpoint):
        info = read_meta(checkpoint)["info"] | {"source": shown_path(checkpoint)}
    checks = check_tokenizer(loaded_tokenizer)
    save_checkpoint(folder, model, loaded_tokenizer, info)
    return [
        f"Imported {source} into {folder}:",
        *(f"  {line}" for line in [*describe(model, loaded_tokenizer), *checks]),
    ]


def describe(model: GPT, tokenizer: ChatTokenizer) -> list[str]:
    """What a model is, in a few lines."""
    config, n_ids = model.config, tokenizer.vocab_size
    padding = config.vocab_size - n_ids
    precisions = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dim() > 1}
    lines = [
        f"{_family(config, model.origin)}, {model.n_parameters():,} parameters in {' and '.join(sorted(precisions))}, "
        f"{config.n_layer} layers, width {config.n_embd}",
        f"vocabulary {n_ids:,}{f' (+ {padding} padding)' if padding else ''}, context {config.context_length:,} tokens",
        f"chat format: {_chat_format(tokenizer)}",
        *describe_format(tokenizer.chat_format or ChatFormat()),
        f"a reply ends at: {', '.join(_names(tokenizer)) or 'nothing (no stop token is known)'}",
    ]
    if model.origin is not None:
        lines.append(model.origin.describe())
    return lines


def _family(config: GPTConfig, origin: Origin | None) -> str:
    family = family_of_model(config, origin)
    return "an architecture that transformers doesn't know" if family is None else family.name


def _chat_format(tokenizer: ChatTokenizer) -> str:
    if tokenizer.chat_format is None:
        return "none, a base model"
    return "that of mini_chat_gpt" if isinstance(tokenizer.chat_format, ChatFormat) else "a template of its own"


def _names(tokenizer: ChatTokenizer) -> list[str]:
    names = {token_id: name for name, token_id in tokenizer.control.items()}
    return [clean(names.get(token_id, str(token_id))) for token_id in sorted(tokenizer.stop_ids)]


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt import` with a parsed command line."""
    lines = convert(arguments.source, arguments.folder, arguments.tokenizer, arguments.dtype)
    folder = shlex.quote(str(arguments.folder))
    print("\n".join(lines))
    print("Next:")
    print(f"  mini-chat-gpt chat --checkpoint {folder}")
    print(f"  mini-chat-gpt sft sft.pretrained_checkpoint={folder} chats.files=chats.jsonl lora.enabled=true")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("import", argv))


if __name__ == "__main__":
    exit_with(main)
