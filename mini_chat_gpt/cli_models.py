"""The options of the verbs that convert models: `merge`, `import` and `export`. Light, as `cli_verbs.py`."""

from __future__ import annotations

import re

from mini_chat_gpt.cli_options import Arguments, Parser
from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.user_paths import path_text, user_path

GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
DTYPES = ("float32", "bfloat16", "float16")


def merge_options(parser: Parser) -> None:
    parser.add_argument("adapter", type=path_text, help="run or checkpoint folder of a run with lora.enabled")
    parser.add_argument("out", type=path_text, help="folder to write; must not exist yet")
    parser.add_argument("--base", type=path_text, metavar="PATH", help="the base model, if it has moved")


def import_options(parser: Parser) -> None:
    parser.add_argument(
        "source",
        metavar="SRC",
        type=user_path,
        help="a Hugging Face folder, hub:org/name, a .gguf, llama2.c's .bin, nanoGPT's ckpt.pt, or a checkpoint or run folder",
    )
    parser.add_argument("folder", metavar="DST", type=user_path, help="checkpoint folder to write; must not exist yet")
    parser.add_argument(
        "--tokenizer",
        type=path_text,
        metavar="NAME",
        help="llama2.c's tok*.bin, a .tiktoken file, a saved folder or the name of an encoding "
        "(default: the tok*.bin next to a .bin, gpt2 for nanoGPT; Hugging Face folders and GGUF files have their own)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of the weights (default: that of the source; float32 for a quantized GGUF)",
    )


def export_options(parser: Parser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=user_path,
        help="a checkpoint or run folder, an adapter, or a model of another project",
    )
    parser.add_argument(
        "destination",
        metavar="DST",
        type=user_path,
        help="a new folder for transformers, or a new file NAME.gguf for llama.cpp and Ollama",
    )
    parser.add_argument(
        "--type", type=str.lower, choices=GGUF_TYPES, help="type of the weights in a GGUF file (default: f16)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="precision of the weights in a folder (default: that of the checkpoint)"
    )
    parser.add_argument(
        "--adapter", action="store_true", help="write an adapter by itself, as PEFT reads it, not merged"
    )
    parser.add_argument(
        "--shard-size", type=_size, metavar="SIZE", help="largest size of a file of weights in a folder (default: 5GB)"
    )
    parser.add_argument(
        "--no-check",
        dest="check",
        action="store_false",
        help="don't read the files back to compare ids, logits and replies",
    )


def check_export(arguments: Arguments) -> None:
    """Raise UserError for options that are for another kind of DST."""
    if arguments.destination.name.lower() == ".gguf":
        raise UserError(f"{arguments.destination} has no name before .gguf; write NAME.gguf.")
    is_file = arguments.destination.suffix.lower() == ".gguf"
    for_folders = {"--dtype": arguments.dtype, "--adapter": arguments.adapter, "--shard-size": arguments.shard_size}
    given = next((name for name, value in for_folders.items() if value), None)
    if is_file and given:
        instead = "; a GGUF file has --type" if given == "--dtype" else ""
        raise UserError(f"{given} is for folders, but {arguments.destination} is a GGUF file{instead}.")
    if not is_file and arguments.type:
        raise UserError(
            f"--type is for GGUF files, but {arguments.destination} is a folder; name a file that ends in .gguf, or use --dtype."
        )
    if arguments.adapter and (arguments.dtype or arguments.shard_size):
        raise UserError("--adapter writes the adapter as it is; omit --dtype and --shard-size.")


def _size(text: str) -> int:
    """ "500MB" -> 500000000. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[match[2].upper()]) if match else 0
    if size < 1000:
        raise UserError(f"--shard-size is {short(text)}; it must be a size such as 5GB or 500MB.")
    return size
