"""Adapter files in the format of Hugging Face's PEFT: a few megabytes that are used with an unchanged base.

    adapter_config.json         rank, layers, …, and the path of the base
    adapter_model.safetensors   the trained matrices, and the rows of new control tokens

`PeftModel.from_pretrained(base, folder)` reads them. The base must be the folder that the config names, because its token
tables have rows for the control tokens. The hash of the base's weights is stored as well, so that an adapter is never
combined with another base unnoticed. Adapters that were made by PEFT are read by `peft_adapter`.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mini_chat_gpt.checkpoints.families import part_of_layout
from mini_chat_gpt.checkpoints.find import META, MODEL, is_checkpoint, read_meta
from mini_chat_gpt.checkpoints.peft_form import (
    PREFIX,
    ROWS,
    TABLES,
    Module,
    from_peft,
    modules_of,
    peft_shapes,
    table_name,
    to_peft,
)
from mini_chat_gpt.checkpoints.tensor_files import compare_tensors
from mini_chat_gpt.checkpoints.tensor_parts import PartOf
from mini_chat_gpt.checkpoints.verify import ADAPTER as ADAPTER
from mini_chat_gpt.checkpoints.verify import ADAPTER_CONFIG as ADAPTER_CONFIG
from mini_chat_gpt.checkpoints.verify import damage_of
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import JSONRecord, check_json, short
from mini_chat_gpt.common.manifest import Damage, read_manifest, sha256_of
from mini_chat_gpt.config import GPTConfig, LoraSettings
from mini_chat_gpt.lora import Adapter, Frozen, block_layers, linear_layers
from mini_chat_gpt.model import GPT

REMEDY = "use another checkpoint"


class AdapterMetadata(JSONRecord):
    """The adapter's entry in mini_chat_gpt.json."""

    settings: LoraSettings
    layers: list[str]
    frozen: Frozen
    token_ids: list[int]
    base: str
    base_from_here: str
    base_hash: str
    layout: str = ""

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


def adapter_tensors(model: GPT) -> dict[str, torch.Tensor]:
    """The trained parameters of an adapted model as PEFT has them, see peft_form.py."""
    return to_peft(model, _part_of(model.adapter))


def _part_of(adapter: Adapter, source: str = "the adapter") -> PartOf:
    return part_of_layout(adapter.layout, source)


def adapter_shapes(model: GPT, adapter: Adapter, folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the adapter's tensors by PEFT name, for its base `model`.

    Raises UserError if the adapter in `folder` names a layer or a token that the base does not have.
    """
    layers, n_ids, part_of = dict(linear_layers(model)), len(adapter.token_ids), _part_of(adapter, str(folder / META))
    for name in adapter.layers:
        if name not in layers:
            raise UserError(f"{folder / META}: the base has no layer {short(name)}; {REMEDY}.")
    if any(not 0 <= token_id < model.config.vocab_size for token_id in adapter.token_ids):
        raise UserError(f"{folder / META}: the base has no row for one of the token_ids; {REMEDY}.")
    sizes = {name: (layers[name].out_features, layers[name].in_features) for name in adapter.layers}
    shapes = peft_shapes(sizes, adapter.settings.rank, adapter.settings.dora, part_of, model.config)
    if n_ids:
        tables = TABLES[:1] if model.config.tie_embeddings else TABLES
        names = [f"{PREFIX}{table_name(table, part_of, model.config)}.{ROWS}" for table in tables]
        shapes |= dict.fromkeys(names, (n_ids, model.config.n_embd))
    return shapes


def load_adapter(model: GPT, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy the tensors of an adapter file, `source`, into an adapted model. Raises UserError if they don't fit it."""
    part_of = _part_of(model.adapter)
    shapes = {name: tuple(tensor.shape) for name, tensor in to_peft(model, part_of).items()}
    compare_tensors(tensors, shapes, source, REMEDY)
    from_peft(model, tensors, part_of, source)


def peft_config(adapter: Adapter, config: GPTConfig) -> dict[str, Any]:
    """The contents of adapter_config.json."""
    settings, ids, part_of = adapter.settings, list(adapter.token_ids), _part_of(adapter)
    tables = TABLES[:1] if config.tie_embeddings else TABLES
    modules = modules_of(adapter.layers, part_of, config)
    targets = _target_modules(modules, modules_of(block_layers(config), part_of, config))
    # A module that joins n of our layers has rank n·r. The factor on its B·A is that of the others.
    joined = {targets[module.name]: len(module.layers) for module in modules if len(module.layers) > 1}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "rank_pattern": {target: n * settings.rank for target, n in joined.items()},
        "alpha_pattern": {
            target: settings.alpha * (math.sqrt(n) if settings.rslora else n) for target, n in joined.items()
        },
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "target_modules": [*dict.fromkeys(targets.values())],
        "trainable_token_indices": {_last(table_name(table, part_of, config)): ids for table in tables}
        if ids
        else None,
        "bias": "none",
        "fan_in_fan_out": any(module.transposed for module in modules),
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _target_modules(modules: Sequence[Module], all_modules: Sequence[Module]) -> dict[str, str]:
    """What PEFT's target_modules has for each module: the end of its name if all modules with that end are adapted.

    The end is the last part of the name, or what follows the number of the block: in GPT-2 two modules are called c_proj.
    """
    adapted = {module.name for module in modules}
    named = [name for module in all_modules for name in ({_last(module.name), _in_block(module.name)})]
    n_adapted = Counter(name for module in adapted for name in ({_last(module), _in_block(module)}))
    whole = {name for name, n in Counter(named).items() if n_adapted[name] == n}
    ends = ([_last(name), _in_block(name), name] for name in (module.name for module in modules))
    return {end[-1]: next(one for one in end if one in whole or one == end[-1]) for end in ends}


def _in_block(module: str) -> str:
    """ "model.layers.3.mlp.up_proj" -> "mlp.up_proj" """
    return re.sub(r"^.*?\.\d+\.", "", module)


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
        "layout": adapter.layout,
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
        metadata.layout,
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
