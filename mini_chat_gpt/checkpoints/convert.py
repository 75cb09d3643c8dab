"""`mini-chat-gpt merge ADAPTER OUT`: an adapter and its base joined to one checkpoint folder, which needs neither any more."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mini_chat_gpt.checkpoints.adapters import is_adapter, weights_hash
from mini_chat_gpt.checkpoints.checkpoint import find_checkpoint, load_adapted, read_meta, save_checkpoint
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.terminal import console
from mini_chat_gpt.lora import merge_lora
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


def merge(adapter: Path | str, out: Path | str, base: Path | str | None = None) -> Path:
    """Write the joined model to the folder `out`, which must not exist; returns it.

    `adapter` is a run or checkpoint folder; `base` is needed only where its base is no longer where it was. Raises UserError.
    """
    folder = find_checkpoint(adapter)
    if not is_adapter(folder):
        raise UserError(f"{folder} is a whole model already; there is nothing to merge.")
    if Path(out).exists():  # said before anything is computed
        raise UserError(f"{out} exists already and is not overwritten; choose another name or move it away.")
    model = load_adapted(folder, find_checkpoint(base) if base is not None else None)
    merge_lora(model)
    return save_checkpoint(out, model, ChatTokenizer.load(folder), read_meta(folder)["info"] | {"merged": str(folder)})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Join an adapter and its base to one checkpoint folder.")
    parser.add_argument("adapter", help="run or checkpoint folder that was trained with lora.enabled")
    parser.add_argument("out", help="folder to write, which must not exist")
    parser.add_argument("--base", metavar="PATH", help="the base model, where it is no longer where it was")
    arguments = parser.parse_args(argv)
    out = console()
    if arguments.base is not None:
        facts = read_meta(find_checkpoint(arguments.adapter)).get("adapter", {})
        if weights_hash(find_checkpoint(arguments.base)) != facts.get("base_hash"):
            out.print(
                f"Note: {arguments.base} has other weights than the base that the adapter was trained with.",
                markup=False,
                soft_wrap=True,
            )
    folder = merge(arguments.adapter, arguments.out, arguments.base)
    out.print(f"Merged: {folder}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    exit_with(main)
