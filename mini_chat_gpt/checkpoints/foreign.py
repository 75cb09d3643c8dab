"""Models from elsewhere: llama2.c's `.bin` and nanoGPT's `ckpt.pt`, read into our own `GPT` with their tokenizer.

The promise: the model computes what the original computes, or there is a UserError; nothing is guessed and no code in a
file is run. Which format a file has is told from its content, not from its name; each has a reader of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mini_chat_gpt.checkpoints.llama2c import read_llama2c
from mini_chat_gpt.checkpoints.nanogpt import read_nanogpt
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.model import GPT, model_of
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

IMPORTABLE = "a llama2.c .bin or nanoGPT's ckpt.pt"


def import_model(source: Path | str, tokenizer: str | Path | None = None) -> tuple[GPT, ChatTokenizer]:
    """Model (float32, on the CPU, in eval mode) and tokenizer from a llama2.c `.bin` or nanoGPT's `ckpt.pt`.

    `tokenizer` is anything that `ChatTokenizer.load` takes. Without it a llama2.c model takes the `tok*.bin` of its
    size that lies in its folder, and a nanoGPT model GPT-2's. Raises UserError for a file that is neither, is damaged
    or wants to run code, and for a tokenizer that is missing or of another size.
    """
    source = Path(source)
    if source.is_dir():
        raise UserError(f"{source} is a folder; name the file in it that is to be imported, {IMPORTABLE}.")
    try:
        with open(source, "rb") as file:
            start = file.read(4)
        read = read_nanogpt if start == b"PK\x03\x04" or is_pickle(start) else read_llama2c
        config, state, matching = read(source, tokenizer)
    except FileNotFoundError:
        raise UserError(f"There is no file {source}; give {IMPORTABLE}.") from None
    except OSError as error:
        raise UserError(f"Can't read {source}: {error.strerror or error}; give {IMPORTABLE}.") from None
    except ValidationError as error:  # GPTConfig objects to the sizes that stand in the file
        first = error.errors()[0]
        what = "".join(f"{part}: " for part in first["loc"]) + first["msg"].removeprefix("Value error, ")
        raise UserError(f"{source} describes no possible model ({what}); give {IMPORTABLE}.") from None
    return model_of(config, state).eval(), matching


def is_pickle(start: bytes) -> bool:
    """Whether a file begins like a pickle of protocol 2 to 5: 0x80, protocol, an opcode.

    A llama2.c file may begin with 0x80, 0x02 too (width 640), but then a zero byte follows, which is no opcode.
    """
    return len(start) > 2 and start[0] == 0x80 and start[1] in range(2, 6) and start[2] != 0


def _read_elsewhere(source: Path, tokenizer: str | None) -> tuple[GPT, ChatTokenizer, dict[str, Any]]:
    return *import_model(source, tokenizer), {"job": "import", "source": str(source)}


def _read_checkpoint(source: Path, tokenizer: str | None) -> tuple[GPT, ChatTokenizer, dict[str, Any]]:
    from mini_chat_gpt.checkpoints.checkpoint import find_checkpoint, load_model, read_meta

    if tokenizer is not None:
        raise UserError(f"{source} is a folder with a tokenizer of its own; leave --tokenizer out.")
    folder = find_checkpoint(source)
    return load_model(folder), ChatTokenizer.load(folder), read_meta(folder)["info"] | {"source": str(folder)}


def main(argv: Sequence[str] | None = None) -> int:
    """`mini-chat-gpt import SRC DST [--tokenizer T]`: write a model from elsewhere as a checkpoint folder.

    A checkpoint or run folder of ours is taken as well: one in shards becomes one that `transformers` loads.
    """
    parser = argparse.ArgumentParser(
        description="Turn a llama2.c or nanoGPT model, or a checkpoint in shards, into an ordinary checkpoint folder."
    )
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="llama2.c's .bin, nanoGPT's ckpt.pt, or a checkpoint or run folder"
    )
    parser.add_argument("folder", metavar="DST", type=Path, help="the checkpoint folder to write; must not exist yet")
    parser.add_argument(
        "--tokenizer",
        help="llama2.c's tok*.bin, a .tiktoken file, a saved folder or an encoding's name "
        "(default: the tok*.bin beside a .bin, gpt2 for nanoGPT)",
    )
    arguments = parser.parse_args(argv)

    from mini_chat_gpt.checkpoints.checkpoint import save_checkpoint

    read = _read_checkpoint if arguments.source.is_dir() else _read_elsewhere
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
