"""Models of other projects, with their tokenizer: Hugging Face folders, GGUF files, llama2.c's `.bin`, nanoGPT's `ckpt.pt`.

The imported model computes what the original computes, or a UserError is raised. Nothing is guessed, and no code in a file
is run. The format of a file is detected from its content, not from its name. Each format has a reader of its own.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError

from mini_chat_gpt.checkpoints.build import model_from_state
from mini_chat_gpt.checkpoints.families import family_of_architecture, read_model
from mini_chat_gpt.checkpoints.gguf import GGUFFile
from mini_chat_gpt.checkpoints.hf_folder import open_folder, read_folder_config
from mini_chat_gpt.checkpoints.llama2c import read_llama2c
from mini_chat_gpt.checkpoints.nanogpt import read_nanogpt
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import describe_problem
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

IMPORTABLE = "a llama2.c .bin or nanoGPT's ckpt.pt"


def import_model(
    source: Path | str, tokenizer: str | Path | None = None, dtype: torch.dtype | None = None
) -> tuple[GPT, ChatTokenizer]:
    """Read a model (on the CPU, in eval mode) and its tokenizer.

    `tokenizer` is anything that `ChatTokenizer.load` accepts. By default, a llama2.c model gets the `tok*.bin` of its
    vocabulary size in the same folder, and a nanoGPT model gets GPT-2's tokenizer. Folders and GGUF files have their own.
    `dtype` is the precision of the weights; None keeps that of the file, and makes float32 of quantized weights.

    Raises UserError for a file of another format, a damaged file or one that would run code, and for a tokenizer that is
    missing or has another size.
    """
    source = Path(source)
    try:
        if source.is_dir():
            raise UserError(f"{source} is a folder; name the file in it that is to be imported, {IMPORTABLE}.")
        with open(source, "rb") as file:
            start = file.read(4)
        read = read_nanogpt if start == b"PK\x03\x04" or is_pickle(start) else read_llama2c
        config, state, loaded_tokenizer = read(source, tokenizer)
    except FileNotFoundError:
        raise UserError(f"There is no file {source}; give {IMPORTABLE}.") from None
    except OSError as error:
        raise UserError(f"Can't read {source}: {error.strerror or error}; give {IMPORTABLE}.") from None
    except ValidationError as error:  # GPTConfig rejects the sizes in the file
        problem = describe_problem(error.errors(include_url=False)[0])
        raise UserError(f"{source} describes an impossible model ({problem}); give {IMPORTABLE}.") from None
    if dtype is not None:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    return model_from_state(config, state, str(source)).eval(), loaded_tokenizer


def read_hf_model(folder: Path, dtype: torch.dtype | None = None) -> GPT:
    """Read the model of a Hugging Face folder, without its tokenizer; see `import_model`."""
    family, config = read_folder_config(folder)
    return read_model(config, family.hf_part, open_folder(folder), str(folder), family.constants, dtype)


def read_gguf_model(file: GGUFFile, dtype: torch.dtype | None = None) -> GPT:
    """Read the model of a GGUF file, without its tokenizer; see `import_model`."""
    family, gguf = family_of_architecture(file.metadata.get("general.architecture"), str(file.path))
    try:
        config = gguf.config_from(file.metadata, file)
    except UserError as error:
        raise UserError(f"{file.path} can't be imported: {error}") from None
    return read_model(config, gguf.part, file, str(file.path), family.constants, dtype)


def is_pickle(start: bytes) -> bool:
    """Whether a file begins like a pickle of protocol 2 to 5: 0x80, protocol, an opcode.

    A llama2.c file can also begin with 0x80, 0x02 (width 640), but its third byte is zero, which is not an opcode.
    """
    return len(start) > 2 and start[0] == 0x80 and start[1] in range(2, 6) and start[2] != 0
