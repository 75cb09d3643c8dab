"""Models of other projects, with their tokenizer: Hugging Face folders, GGUF files, llama2.c's `.bin`, nanoGPT's `ckpt.pt`.

The imported model computes what the original computes, or a UserError is raised. Nothing is guessed, and no code in a file
is run. The format of a file is detected from its content, not from its name. Each format has a reader of its own.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from mini_chat_gpt.checkpoints.build import (
    IMPORTABLE,
    REMEDY,
    StoredModel,
    TensorReader,
    model_in_file,
    model_in_memory,
)
from mini_chat_gpt.checkpoints.families import Family, family_of_architecture
from mini_chat_gpt.checkpoints.find import is_checkpoint
from mini_chat_gpt.checkpoints.gguf import MAGIC, GGUFFile
from mini_chat_gpt.checkpoints.hf_folder import CONFIG, is_hf_folder, open_folder, read_folder_config
from mini_chat_gpt.checkpoints.import_check import give_chat_format
from mini_chat_gpt.checkpoints.llama2c import read_llama2c
from mini_chat_gpt.checkpoints.nanogpt import read_nanogpt
from mini_chat_gpt.checkpoints.origin import origin_of_folder, origin_of_gguf
from mini_chat_gpt.checkpoints.tensor_files import first_nonfinite
from mini_chat_gpt.checkpoints.tensor_parts import PartOf
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import describe_problem, open_regular
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.gguf_import import tokenizer_from_gguf
from mini_chat_gpt.tokenizer.hf_import import tokenizer_from_folder

MAX_PADDING = 4096
"""Rows of a table beyond the tokenizer's ids, or an eighth of the table if that is more."""


def is_foreign(path: Path) -> bool:
    """Whether this is a file, or a folder with a model of another project. config.json next to our own files means ours."""
    return os.path.isfile(path) or (is_hf_folder(path) and not is_checkpoint(path))


def import_model(
    source: Path | str, tokenizer: str | Path | None = None, dtype: torch.dtype | None = None
) -> tuple[GPT, ChatTokenizer]:
    """Read a model (on the CPU, in eval mode) and its tokenizer; see `open_foreign`."""
    stored, its_tokenizer = open_foreign(source, tokenizer, dtype)
    return stored.load(), its_tokenizer


def open_foreign(
    source: Path | str, tokenizer: str | Path | None = None, dtype: torch.dtype | None = None
) -> tuple[StoredModel, ChatTokenizer]:
    """Read the tokenizer of a model, and open the model; the weights of a folder or GGUF file are not read yet.

    `tokenizer` is anything that `ChatTokenizer.load` accepts. By default, a llama2.c model gets the `tok*.bin` of its
    vocabulary size in the same folder, and a nanoGPT model gets GPT-2's tokenizer. Folders and GGUF files have their own.
    `dtype` is the precision of the weights; None keeps that of the file, and makes float32 of quantized weights.

    Raises UserError for a file of another format, a damaged file or one that would run code, and for a tokenizer that is
    missing or has another size.
    """
    source = Path(source)
    try:
        if (described := _describe(source)) is not None:
            refuse_tokenizer(source, tokenizer)
            its_tokenizer = described.tokenizer()
            return described.model(dtype), its_tokenizer
        start = _start_of(source)
        _refuse_part(source)
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
    if name := first_nonfinite(state):
        raise UserError(f"{source}: the tensor {name} is not finite (NaN or infinite); {REMEDY}.")
    return model_in_memory(config, state, str(source)), loaded_tokenizer


def read_tokenizer(folder: Path) -> ChatTokenizer:
    """Read the tokenizer of a Hugging Face folder, with its chat format. Raises UserError."""
    tokenizer = tokenizer_from_folder(folder)
    give_chat_format(tokenizer, folder)
    return tokenizer


def import_tokenizer(source: Path) -> tuple[ChatTokenizer, GPTConfig]:
    """Read the tokenizer of a model and its architecture, without the weights of a folder or GGUF file; see `import_model`."""
    with suppress(OSError):  # which `import_model` reports
        if (described := _describe(source)) is not None:
            return described.tokenizer(), described.config
    model, tokenizer = import_model(source)
    return tokenizer, model.config


@dataclass(frozen=True)
class _Described:
    """A Hugging Face folder or a GGUF file that says what its model is; tokenizer and weights are not read yet."""

    path: Path
    gguf: GGUFFile | None  # None: a folder
    config: GPTConfig
    part_of: PartOf
    family: Family

    def tokenizer(self) -> ChatTokenizer:
        """Its tokenizer with its chat format. Raises UserError."""
        source = str(self.path)
        if self.gguf is None:
            tokenizer = tokenizer_from_folder(self.path, self.family.gpt2_tokenizer)
        else:
            tokenizer = tokenizer_from_gguf(self.gguf.metadata, source)
        _require_own_tokenizer(self.config, tokenizer, source)
        give_chat_format(tokenizer, self.path)
        return tokenizer

    def model(self, dtype: torch.dtype | None = None) -> StoredModel:
        """Its model; see `open_foreign`. Raises UserError."""
        path, gguf = self.path, self.gguf
        reader: TensorReader = _named(open_folder(path), self.family.prefix) if gguf is None else gguf
        origin = origin_of_folder(path) if gguf is None else origin_of_gguf(path, gguf.metadata)
        origin = origin.model_copy(update={"family": self.family.name})
        return model_in_file(self.config, self.part_of, reader, str(path), self.family.constants, dtype, origin)


class _Prefixed:
    """A file whose names lack the prefix of their family."""

    def __init__(self, reader: TensorReader, prefix: str) -> None:
        self._names = {prefix + name: name for name in reader.infos}
        self.infos = {name: reader.infos[stored] for name, stored in self._names.items()}
        self._reader = reader

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor; see `TensorReader`."""
        return self._reader.read(self._names[name], dtype)


def _named(reader: TensorReader, prefix: str) -> TensorReader:
    """The reader, with the family's prefix before its names if none of them has it."""
    return reader if any(name.startswith(prefix) for name in reader.infos) else _Prefixed(reader, prefix)


def _describe(source: Path) -> _Described | None:
    """Read what a folder or a GGUF file says of its model; None for another file. Raises UserError and OSError."""
    if source.is_dir():
        return _describe_folder(source)
    return _describe_gguf(GGUFFile(source)) if _start_of(source) == MAGIC else None


def _describe_folder(folder: Path) -> _Described:
    if not is_hf_folder(folder):
        raise UserError(f"{folder} is a folder without a model; give {IMPORTABLE}.")
    family, config = read_folder_config(folder)
    return _Described(folder, None, config, family.hf_part, family)


def _describe_gguf(file: GGUFFile) -> _Described:
    family, mapping = family_of_architecture(file.metadata.get("general.architecture"), str(file.path))
    try:
        config = mapping.config_from(file.metadata, file)
    except UserError as error:
        raise UserError(f"{file.path} can't be imported: {error}") from None
    return _Described(file.path, file, config, mapping.part, family)


def _start_of(path: Path) -> bytes:
    """The first four bytes of a file. Raises OSError."""
    with open(path, "rb", opener=open_regular) as file:
        return file.read(4)


def _refuse_part(source: Path) -> None:
    """Raise UserError for a file that is a model only together with others in its folder."""
    if source.name.endswith((".safetensors", ".json")) or re.fullmatch(r"pytorch_model.*\.bin", source.name):
        if is_checkpoint(source.parent) or os.path.isfile(source.parent / CONFIG):
            raise UserError(f"{source} is only a part of a model; give its folder, {source.parent}.")
        if source.name.endswith(".safetensors"):
            raise UserError(
                f"{source} has weights, but there is no {CONFIG} next to it; give a complete Hugging Face folder."
            )


def refuse_tokenizer(source: Path, tokenizer: str | Path | None) -> None:
    """Raise UserError for another tokenizer than the one of `source`."""
    if tokenizer is not None:
        raise UserError(f"{source} has its own tokenizer; omit --tokenizer.")


def stored_hf_model(folder: Path, dtype: torch.dtype | None = None) -> StoredModel:
    """Open the model of a Hugging Face folder, without its tokenizer; see `open_foreign`."""
    return _describe_folder(folder).model(dtype)


def read_hf_model(folder: Path, dtype: torch.dtype | None = None) -> GPT:
    """Read the model of a Hugging Face folder, without its tokenizer; see `import_model`."""
    return stored_hf_model(folder, dtype).load()


def read_gguf_model(file: GGUFFile, dtype: torch.dtype | None = None) -> GPT:
    """Read the model of a GGUF file, without its tokenizer; see `import_model`."""
    return _describe_gguf(file).model(dtype).load()


def _require_own_tokenizer(config: GPTConfig, tokenizer: ChatTokenizer, source: Path | str) -> None:
    """Raise UserError if the tokenizer has ids for which the model's table has no row, or far fewer ids than it has rows."""
    rows, n_ids = config.vocab_size, tokenizer.vocab_size
    if n_ids > rows or rows - n_ids > max(MAX_PADDING, rows // 8):
        raise UserError(
            f"{source}: the tokenizer has {n_ids:,} ids, but the model's table has {rows:,} rows; they don't belong "
            "together, use the tokenizer that the model was trained with."
        )


def is_pickle(start: bytes) -> bool:
    """Whether a file begins like a pickle of protocol 2 to 5: 0x80, protocol, an opcode.

    A llama2.c file can also begin with 0x80, 0x02 (width 640), but its third byte is zero, which is not an opcode.
    """
    return len(start) > 2 and start[0] == 0x80 and start[1] in range(2, 6) and start[2] != 0
