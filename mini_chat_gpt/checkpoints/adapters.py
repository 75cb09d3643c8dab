"""Adapter files in the format of Hugging Face's PEFT: a few megabytes that are used with an unchanged base.

    adapter_config.json         rank, layers, …, and the path of the base
    adapter_model.safetensors   the trained matrices, and the rows of new control tokens

`PeftModel.from_pretrained(base, folder)` reads them. The base must be the folder that the config names, because its token
tables have rows for the control tokens. The hash of the base's weights is stored as well, so that an adapter is never
combined with another base unnoticed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mini_chat_gpt.checkpoints.find import META, MODEL, is_checkpoint, read_meta
from mini_chat_gpt.checkpoints.tensor_files import compare_tensors
from mini_chat_gpt.checkpoints.verify import ADAPTER as ADAPTER
from mini_chat_gpt.checkpoints.verify import ADAPTER_CONFIG as ADAPTER_CONFIG
from mini_chat_gpt.checkpoints.verify import damage_of
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import JSONRecord, check_json, short
from mini_chat_gpt.common.manifest import Damage, read_manifest, sha256_of
from mini_chat_gpt.config import GPTConfig, LoraSettings
from mini_chat_gpt.lora import Adapter, Frozen, linear_layers
from mini_chat_gpt.model import GPT

REMEDY = "use another checkpoint"
_PREFIX = "base_model.model."
_PEFT_SUFFIX = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
    "rows": "token_adapter.trainable_tokens_delta",
}  # our parameter name -> PEFT's suffix


class AdapterMetadata(JSONRecord):
    """The adapter's entry in mini_chat_gpt.json."""

    settings: LoraSettings
    layers: list[str]
    frozen: Frozen
    token_ids: list[int]
    base: str
    base_from_here: str
    base_hash: str

    @classmethod
    def read(cls, folder: Path) -> AdapterMetadata | None:
        """The entry of a checkpoint folder; None if it holds a complete model. Raises UserError if it is damaged."""
        if (entry := read_meta(folder).get("adapter")) is None:
            return None
        metadata = check_json(entry, cls, str(folder / META), REMEDY)
        if missing := sorted(LoraSettings.model_fields.keys() - metadata.settings.model_fields_set):
            raise UserError(f"{folder / META} is damaged: the adapter's settings lack {', '.join(missing)}; {REMEDY}.")
        return metadata


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint folder holds an adapter and not a complete model."""
    return AdapterMetadata.read(folder) is not None


def peft_name(name: str) -> str:
    """ "layers.0.mlp.up_proj.lora_A" -> "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight" """
    module, _, parameter = name.rpartition(".")
    parent = "" if module == "lm_head" else "model."
    return f"{_PREFIX}{parent}{module}.{_PEFT_SUFFIX[parameter]}"


def trained_parameters(model: GPT) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters of an adapted model by their PEFT names."""
    return {peft_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def adapter_shapes(model: GPT, adapter: Adapter, folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the adapter's tensors by PEFT name, for its base `model`.

    Raises UserError if the adapter in `folder` names a layer or a token that the base does not have.
    """
    rank, layers, n_ids = adapter.settings.rank, dict(linear_layers(model)), len(adapter.token_ids)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in adapter.layers:
        if name not in layers:
            raise UserError(f"{folder / META}: the base has no layer {short(name)}; {REMEDY}.")
        linear = layers[name]
        shapes |= {f"{name}.lora_A": (rank, linear.in_features), f"{name}.lora_B": (linear.out_features, rank)}
        if adapter.settings.dora:
            shapes[f"{name}.magnitude"] = (linear.out_features,)
    if any(not 0 <= token_id < model.config.vocab_size for token_id in adapter.token_ids):
        raise UserError(f"{folder / META}: the base has no row for one of the token_ids; {REMEDY}.")
    if n_ids:
        tables = ["embed_tokens"] if model.config.tie_embeddings else ["embed_tokens", "lm_head"]
        shapes |= {f"{table}.rows": (n_ids, model.config.n_embd) for table in tables}
    return {peft_name(name): shape for name, shape in shapes.items()}


@torch.no_grad()
def load_adapter(model: GPT, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy the tensors of an adapter file, `source`, into an adapted model. Raises UserError if they don't fit it."""
    trained = trained_parameters(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in trained.items()}
    compare_tensors(tensors, shapes, source, REMEDY)
    for name, parameter in trained.items():
        parameter.copy_(tensors[name])


def peft_config(adapter: Adapter, config: GPTConfig) -> dict[str, Any]:
    """The contents of adapter_config.json."""
    settings, ids = adapter.settings, list(adapter.token_ids)
    tables = {"embed_tokens": ids} if config.tie_embeddings else {"embed_tokens": ids, "lm_head": ids}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "target_modules": _target_modules(adapter.layers, config.n_layer),
        "trainable_token_indices": tables if ids else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _target_modules(layers: tuple[str, ...], n_layer: int) -> list[str]:
    """PEFT's target_modules: the last part of a name if all blocks have that layer adapted, else the full names."""
    by_last_part: dict[str, list[str]] = {}
    for name in layers:
        by_last_part.setdefault(name.rpartition(".")[2], []).append(name)
    return [name for last, full in by_last_part.items() for name in ([last] if len(full) == n_layer else full)]


def adapter_metadata(adapter: Adapter, folder: Path) -> dict[str, Any]:
    """The adapter's entry in mini_chat_gpt.json. `folder` must have the same parent as the final checkpoint folder."""
    return {
        "settings": adapter.settings.model_dump(include=set(LoraSettings.model_fields)),
        "layers": list(adapter.layers),
        "frozen": adapter.frozen,
        "token_ids": list(adapter.token_ids),
        "base": adapter.base,
        "base_from_here": os.path.relpath(adapter.base, folder.resolve()),
        "base_hash": adapter.base_hash,
    }


def read_adapter(metadata: AdapterMetadata) -> Adapter:
    """The inverse of `adapter_metadata`."""
    return Adapter(
        metadata.settings,
        tuple(metadata.layers),
        metadata.frozen,
        tuple(metadata.token_ids),
        metadata.base,
        metadata.base_hash,
    )


def find_base(folder: Path, metadata: AdapterMetadata) -> Path:
    """Find the base of the adapter in `folder`: at its stored path, or at its relative path if both were moved together.

    Raises UserError if it is missing, is damaged, or has other weights.
    """
    remedy = f"move it back, or merge the two with `mini-chat-gpt merge {folder} OUT --base PATH`"
    candidates = [path for path in (Path(metadata.base), folder / metadata.base_from_here) if is_checkpoint(path)]
    if not candidates:
        raise UserError(f"{folder} is an adapter for the base model {metadata.base}, which is missing; {remedy}.")
    for base in candidates:
        if weights_hash(base) == metadata.base_hash:
            if reason := damage_of(base):
                raise UserError(f"{base}, the base model of {folder}, is damaged: {reason}.")
            return base
    raise UserError(
        f"{candidates[0]} is not the base model that {folder} was trained with: its weights differ; {remedy}."
    )


def weights_hash(folder: Path) -> str:
    """The hash of a checkpoint's weights, from its manifest if it has a readable one; "" without weights."""
    try:
        return read_manifest(folder).files[MODEL].sha256
    except (Damage, KeyError):
        return sha256_of(folder / MODEL) if (folder / MODEL).is_file() else ""
