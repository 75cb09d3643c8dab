"""Write a Hugging Face folder: the files that `transformers` reads, and nothing of our own.

config.json generation_config.json          the family's config; all ids that end a reply
model.safetensors                           or shards model-00001-of-00003.safetensors and their index
tokenizer.json tokenizer_config.json        the tokenizer
chat_template.jinja                         the chat format, with the defaults of our chat (template.py)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mini_chat_gpt.checkpoints.families import Family, family_of_model
from mini_chat_gpt.checkpoints.hf import special_ids
from mini_chat_gpt.checkpoints.tensor_files import write_tensors
from mini_chat_gpt.checkpoints.tensor_parts import join, sources
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import write_json
from mini_chat_gpt.export.source import Source
from mini_chat_gpt.export.template import chat_template
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.hf_bpe import HuggingFaceBPE
from mini_chat_gpt.tokenizer.hf_export import write_hugging_face

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""Default size of a shard, as in `transformers`."""


@dataclass(frozen=True)
class HFModel:
    """The tensors of a Hugging Face folder, by their names there. Those of `tensors` have no data; `read` returns one with data."""

    family: Family
    tensors: Mapping[str, torch.Tensor]
    read: Callable[[str], torch.Tensor]

    @property
    def n_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def hf_model(source: Source) -> HFModel:
    """The model in the form of its family. Raises UserError if no family of `transformers` can express it."""
    config = source.config
    family = family_of_model(config, source.origin)
    if family is None:
        from mini_chat_gpt.checkpoints.hf import why_not_llama

        raise UserError(
            f"{source.path} can't be exported: transformers has no class for such a model ({why_not_llama(config)})."
        )
    held = sources(source.stored.infos, family.hf_part, config)
    tensors = {}
    for name, parts in held.items():
        ours, part = parts[0]
        info = source.stored.infos[ours]
        shape = part.stored_shape(info.shape)
        tensors[name] = torch.empty(shape, dtype=info.dtype, device="meta")  # type: ignore[call-overload]

    def read(name: str) -> torch.Tensor:
        part, loaded = held[name][0][1], [source.read(ours) for ours, _ in held[name]]
        return loaded[0].contiguous() if part.is_whole else join(loaded, part.transposed)

    return HFModel(family, tensors, read)


def write_folder(folder: Path, source: Source, model: HFModel, shard_bytes: int = SHARD_BYTES) -> None:
    """Write all files into an existing, empty folder. Raises OSError or UserError if the disk refuses."""
    shards = _shards(model.tensors, shard_bytes)
    for name, names in shards.items():
        write_tensors(folder / name, {one: model.tensors[one] for one in names}, model.read)
    if len(shards) > 1:
        weight_map = {one: name for name, names in shards.items() for one in names}
        write_json(folder / INDEX, {"metadata": {"total_size": model.n_bytes}, "weight_map": weight_map})
    tokenizer = source.tokenizer
    config = model.family.config_to_hf(source.config, tokenizer) | {"torch_dtype": _dtype(model.tensors)}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config(tokenizer))
    write_tokenizer(folder, tokenizer)


def _shards(tensors: Mapping[str, torch.Tensor], limit: int) -> dict[str, list[str]]:
    """File -> names of its tensors, in the order of the model. A shard is larger than `limit` only if a single tensor is."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, 1)}


def _dtype(tensors: Mapping[str, torch.Tensor]) -> str:
    """The precision of most weights; `transformers` loads the model in it."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.numel()
    return str(max(sizes, key=sizes.__getitem__)).removeprefix("torch.")


def generation_config(tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The contents of generation_config.json: every id at which our chat stops, and padding for batches."""
    ids = special_ids(tokenizer)
    eos = ids["eos_token_id"]
    name = tokenizer.hf_config.get("pad_token")
    padding = tokenizer.control.get(str(name.get("content") if isinstance(name, dict) else name))
    first = eos[0] if isinstance(eos, list) else eos
    return {
        "bos_token_id": ids["bos_token_id"],
        "eos_token_id": eos,
        "pad_token_id": first if padding is None else padding,
    }


def write_tokenizer(folder: Path, tokenizer: ChatTokenizer) -> None:
    """Write the tokenizer and its chat template for `transformers.AutoTokenizer`."""
    encoder = tokenizer.encoder
    if isinstance(encoder, HuggingFaceBPE):
        (folder / "tokenizer.json").write_bytes(encoder.to_bytes())
    template = chat_template(tokenizer)
    write_hugging_face(folder, encoder, tokenizer.control, tokenizer.bos_token, template, tokenizer.hf_config)
