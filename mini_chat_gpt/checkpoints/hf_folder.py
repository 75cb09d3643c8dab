"""Read Hugging Face folders: config.json, and weights in one file or in shards, as safetensors or as a pickle of tensors.

    config.json                                                       which family, its sizes
    model.safetensors                 or  pytorch_model.bin           all tensors
    model.safetensors.index.json      or  pytorch_model.bin.index.json    {"weight_map": {tensor: file}}, and those files

What can't be read is named from the small files, before weights are opened. Code in a folder (modeling_*.py, a pickle) is
never run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mini_chat_gpt.checkpoints.families import Family, family_of_type
from mini_chat_gpt.checkpoints.pickles import is_plain, load_pickle
from mini_chat_gpt.checkpoints.tensor_files import TensorInfo, read_header, read_one
from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.files import read_file
from mini_chat_gpt.common.json_files import JSONRecord, read_json
from mini_chat_gpt.config import GPTConfig

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of weights, in the order in which they are preferred."""
REMEDY = "use another copy of the folder"
MAX_SHARDS = 1000


class _Index(JSONRecord):
    """The index of a model in shards."""

    weight_map: dict[str, str]


class _AdapterConfig(JSONRecord):
    base_model_name_or_path: str | None = None


def is_hf_folder(path: Path) -> bool:
    """Whether this is a folder with files of a model of another project. Never raises."""
    names = (CONFIG, ADAPTER_CONFIG, *WEIGHTS)
    return os.path.isdir(path) and (any(os.path.isfile(path / name) for name in names) or bool(_gguf_files(path)))


def _gguf_files(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.lower().endswith(".gguf"))
    except OSError:
        return []


def read_folder_config(folder: Path) -> tuple[Family, GPTConfig]:
    """The family and the architecture of a folder. Reads config.json only. Raises UserError."""
    try:
        config = read_json(folder / CONFIG, dict[str, Any], REMEDY)
    except FileNotFoundError:
        raise UserError(_without_config(folder)) from None
    code, source = config.get("auto_map"), f"{folder / CONFIG}"
    if code is not None:
        classes = config.get("architectures")
        own = classes[0] if isinstance(classes, list) and classes else None
        try:
            native = family_of_type(config.get("model_type"), source).causal_lm == own
        except UserError:
            native = False
        if not native:
            raise UserError(
                f"{source} names code for its model (auto_map: {short(code)}), which is never run here; use a model of a "
                "family that needs none."
            )
    family = family_of_type(config.get("model_type"), source)
    classes = config.get("architectures")
    if classes and (not isinstance(classes, list) or classes[0] != family.causal_lm):
        raise UserError(f"{source} describes {short(classes)}; only {family.causal_lm} can be read.")
    if config.get("quantization_config") is not None:
        raise UserError(
            f"{source} says that the weights are quantized (quantization_config), which can't be read; use the folder with "
            "the original weights, or a GGUF file."
        )
    try:
        return family, family.config_from_hf(config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def _without_config(folder: Path) -> str:
    """What is wrong with a folder that has no config.json."""
    if os.path.isfile(folder / ADAPTER_CONFIG):
        base = read_json(folder / ADAPTER_CONFIG, _AdapterConfig, REMEDY).base_model_name_or_path
        return (
            f"{folder} holds only a PEFT adapter for the base model {short(base)}; merge the two with "
            f"`mini-chat-gpt merge {folder} OUT`."
        )
    if files := _gguf_files(folder):
        return f"{folder} contains {len(files)} GGUF file{'s'[: len(files) > 1]}; name the file: {folder / files[0]}."
    return f"{folder} has weights but no {CONFIG}; copy it from where the weights come from."


def open_folder(folder: Path) -> SafetensorsReader | PickleReader:
    """The tensors of a folder, not read yet. Raises UserError if they are missing or damaged."""
    name = next((name for name in WEIGHTS if os.path.isfile(folder / name)), None)
    if name is None:
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        has = f" (transformers doesn't read {others[0]} either)" if others else ""
        raise UserError(
            f"{folder} has no weights (model.safetensors or pytorch_model.bin){has}; download the complete folder."
        )
    indexed = _read_index(folder, name) if name.endswith(".index.json") else None
    files = sorted(set(indexed.values())) if indexed is not None else [name]
    for file in files:
        _require_content(folder / file)
    reader = SafetensorsReader if ".safetensors" in name else PickleReader
    return reader(folder, files, indexed)


def _read_index(folder: Path, name: str) -> dict[str, str]:
    """Tensor -> file, with files of the folder only."""
    indexed = read_json(folder / name, _Index, REMEDY).weight_map
    suffix = ".safetensors" if ".safetensors" in name else ".bin"
    for tensor, file in indexed.items():
        if os.path.basename(file) != file or "\\" in file or "\0" in file or not file.endswith(suffix):
            raise UserError(
                f"{folder / name} says that {short(tensor)} is in {short(file)}, which is not a {suffix} file of the folder; "
                f"{REMEDY}."
            )
    if not indexed or len(set(indexed.values())) > MAX_SHARDS:
        raise UserError(f"{folder / name} names {len(set(indexed.values())):,} files; {REMEDY}.")
    return indexed


def _require_content(path: Path) -> None:
    """Raise UserError for a file that is missing, or a pointer that Git LFS left in its place."""
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing, but the index next to it names it; download the complete folder.")
    if os.path.getsize(path) < 1024 and read_file(path).startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is only Git LFS's pointer to the weights; run `git lfs pull` in {path.parent}.")


def _require_indexed(path: Path, names: Mapping[str, Any], indexed: Mapping[str, str] | None) -> None:
    """Raise UserError unless a shard has exactly the tensors that the index expects in it."""
    if indexed is None:
        return
    expected = {name for name, file in indexed.items() if file == path.name}
    if missing := sorted(expected - names.keys()):
        raise UserError(f"{path} lacks the tensor {short(missing[0])}, which the index expects in it; {REMEDY}.")
    if extra := sorted(names.keys() - expected):
        raise UserError(f"{path} has the tensor {short(extra[0])}, which the index doesn't have there; {REMEDY}.")


class SafetensorsReader:
    """Tensors of safetensors files; see `read_one`."""

    def __init__(self, folder: Path, files: list[str], indexed: Mapping[str, str] | None) -> None:
        self.infos: dict[str, TensorInfo] = {}
        self._files: dict[str, Path] = {}
        for path in (folder / file for file in files):
            try:
                infos, _ = read_header(path)
            except (OSError, ValueError) as error:
                raise UserError(f"{path} can't be read ({error}); download it again.") from None
            _require_indexed(path, infos, indexed)
            self.infos |= infos
            self._files |= dict.fromkeys(infos, path)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor on the CPU."""
        return read_one(self._files[name], name, dtype)


class PickleReader:
    """Tensors of files of torch.save, which are mapped like those of safetensors files."""

    def __init__(self, folder: Path, files: list[str], indexed: Mapping[str, str] | None) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        for path in (folder / file for file in files):
            try:
                content = load_pickle(path, "use a copy of the model in safetensors files")
            except OSError as error:
                raise UserError(f"{path} can't be read ({error.strerror or error}); download it again.") from None
            if not isinstance(content, Mapping):
                raise UserError(f"{path} is not a table of tensors; use a copy of the model in safetensors files.")
            for name, tensor in content.items():
                if not isinstance(name, str) or not is_plain(tensor):
                    raise UserError(
                        f"{path}: {short(name)} is not a tensor of numbers; use a copy of the model in safetensors files."
                    )
            _require_indexed(path, content, indexed)
            self._tensors |= content
        self.infos = {name: TensorInfo(tuple(one.shape), one.dtype) for name, one in self._tensors.items()}

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A copy of one tensor on the CPU: a view would keep the whole file in memory."""
        tensor = self._tensors[name].detach()
        return tensor.to(dtype or tensor.dtype, copy=True)
