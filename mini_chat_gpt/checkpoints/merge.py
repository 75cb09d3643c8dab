"""`mini-chat-gpt merge ADAPTER OUT`: merge an adapter, ours or one of PEFT, into its base and write a checkpoint that needs neither."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mini_chat_gpt.checkpoints.adapters import AdapterMetadata, is_adapter, weights_hash
from mini_chat_gpt.checkpoints.find import find_checkpoint, read_meta
from mini_chat_gpt.checkpoints.foreign import is_foreign
from mini_chat_gpt.checkpoints.load import find_source, load_pair
from mini_chat_gpt.checkpoints.peft_adapter import is_peft_folder
from mini_chat_gpt.checkpoints.save import require_new, save_checkpoint
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.page import shown_path
from mini_chat_gpt.lora import merge_lora


def merge(adapter: Path | str, out: Path | str, base: Path | str | None = None) -> Path:
    """Write the merged model to the folder `out`, which must not exist, and return it.

    `adapter` is a run or checkpoint folder, or a folder of PEFT. `base` is only needed if the base has moved. Raises UserError.
    """
    require_new(Path(out), Path(adapter))  # before the work begins
    folder = find_source(Path(adapter))
    if is_peft_folder(folder):
        model, tokenizer = load_pair(folder, base=None if base is None else find_source(Path(base)), dtype=None)
        return save_checkpoint(out, model, tokenizer, {"job": "import", "merged": shown_path(folder)})
    if is_foreign(folder):
        raise UserError(f"{folder} is not an adapter but a complete model; there is nothing to merge.")
    if not is_adapter(folder):
        raise UserError(f"{folder} is already a complete model; there is nothing to merge.")
    model, tokenizer = load_pair(folder, adapted=True, base=None if base is None else _find_base(base))
    merge_lora(model)
    return save_checkpoint(out, model, tokenizer, read_meta(folder)["info"] | {"merged": shown_path(folder)})


def _find_base(path: Path | str) -> Path:
    if is_foreign(Path(path)):
        raise UserError(
            f"{path} is a model from elsewhere; the base must be a checkpoint: `mini-chat-gpt import {path} DST`."
        )
    return find_checkpoint(path)


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt merge` with a parsed command line."""
    if arguments.base is not None and not is_peft_folder(Path(arguments.adapter)):
        metadata = AdapterMetadata.read(find_checkpoint(arguments.adapter))
        if metadata is not None and weights_hash(_find_base(arguments.base)) != metadata.base_hash:
            print(
                f"Note: the weights of {arguments.base} differ from those of the base that the adapter was trained with."
            )
    folder = merge(arguments.adapter, arguments.out, arguments.base)
    print(f"Merged: {folder}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("merge", argv))


if __name__ == "__main__":
    exit_with(main)
