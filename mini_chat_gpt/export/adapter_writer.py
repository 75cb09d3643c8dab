"""Write an adapter by itself, as PEFT reads it: its matrices, its tokenizer, and the name of its base without a path."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mini_chat_gpt.checkpoints.adapters import (
    ADAPTER,
    ADAPTER_CONFIG,
    AdapterMetadata,
    adapter_tensors,
    find_base,
    peft_config,
)
from mini_chat_gpt.checkpoints.find import find_checkpoint, step_of
from mini_chat_gpt.checkpoints.foreign import is_foreign
from mini_chat_gpt.checkpoints.load import find_source, load_pair
from mini_chat_gpt.checkpoints.origin import Origin
from mini_chat_gpt.checkpoints.peft_adapter import is_peft_folder
from mini_chat_gpt.checkpoints.tensor_files import write_tensors
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import write_json
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.export.hf_writer import write_tokenizer
from mini_chat_gpt.lora import Adapter
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


@dataclass(frozen=True)
class AdapterModel:
    """An adapter's tensors in PEFT's form, and the base that it was trained with."""

    adapter: Adapter
    config: GPTConfig
    tensors: dict[str, torch.Tensor]
    base: Path

    @property
    def n_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def adapter_model(path: Path) -> AdapterModel:
    """The adapter that a run or checkpoint folder holds. Raises UserError if it holds none, or the base is missing."""
    folder = find_source(path)
    if is_peft_folder(folder):
        raise UserError(
            f"{folder} is an adapter in PEFT's form already; copy the folder, or omit --adapter to merge it."
        )
    metadata = None if is_foreign(folder) else AdapterMetadata.read(find_checkpoint(folder))
    if metadata is None:
        raise UserError(f"{folder} is not an adapter but a complete model; omit --adapter.")
    base = find_base(folder, metadata)
    if metadata.frozen == "nf4":
        raise UserError(
            f"{folder} was trained on a base in 4 bits (lora.frozen: nf4) and gives other answers on one in full precision; omit "
            "--adapter to export the model that was trained."
        )
    model, _ = load_pair(folder, adapted=True)
    return AdapterModel(model.adapter, model.config, adapter_tensors(model), base)


def name_of_base(model: AdapterModel, origin: Origin | None) -> str:
    """What adapter_config.json calls the base: its name on the hub if its tables are as they are there, or the name of its folder."""
    if origin is not None and origin.repository and not model.adapter.token_ids:
        return origin.repository
    folder = model.base.absolute()
    return folder.parent.name if step_of(folder) is not None else folder.name


def write_adapter(folder: Path, model: AdapterModel, tokenizer: ChatTokenizer, base: str) -> None:
    """Write all files into an existing, empty folder. Raises OSError or UserError if the disk refuses."""
    write_tensors(folder / ADAPTER, {name: one.detach().cpu().contiguous() for name, one in model.tensors.items()})
    write_json(folder / ADAPTER_CONFIG, peft_config(replace(model.adapter, base=base), model.config))
    write_tokenizer(folder, tokenizer)
