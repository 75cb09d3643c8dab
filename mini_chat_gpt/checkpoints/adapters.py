"""An adapter as files of its own, in the form of Hugging Face's PEFT: a few megabytes beside a base that stays as it is.

    adapter_config.json         rank, layers, …, and where the base lies
    adapter_model.safetensors   the trained matrices, and the rows of new control tokens

`PeftModel.from_pretrained(base, folder)` reads them; the base must be the folder that the config names, which has room for the
control tokens. The base is known by the hash of its weights too, so that an adapter never gets beside another one unnoticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import MANIFEST, damage, sha256_of
from mini_chat_gpt.config import GPTConfig, LoraSettings
from mini_chat_gpt.lora import Adapter
from mini_chat_gpt.model import GPT

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_ENDS = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
    "rows": "token_adapter.trainable_tokens_delta",
}  # ours: PEFT's


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def peft_name(name: str) -> str:
    """ "layers.0.mlp.up_proj.lora_A" -> "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight" """
    place, _, end = name.rpartition(".")
    within = "" if place == "lm_head" else "model."
    return f"{_PREFIX}{within}{place}.{_ENDS[end]}"


def trained_parameters(model: GPT) -> dict[str, torch.nn.Parameter]:
    """PEFT's name -> what is trained of an adapted model."""
    return {peft_name(name): p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_adapter(model: GPT, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an adapted model the values of a file. Raises ValueError where names or shapes differ."""
    trained = trained_parameters(model)
    if different := sorted(trained.keys() ^ tensors.keys()):
        raise ValueError(f"{len(different)} names of weights differ, for example {different[0]}")
    for name, parameter in trained.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)} instead of {tuple(parameter.shape)}")
        parameter.copy_(tensors[name])


def peft_config(adapter: Adapter, config: GPTConfig) -> dict[str, Any]:
    """adapter_config.json."""
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
    """Layers as PEFT wants them: by their last name where all blocks have them, else each by its whole one."""
    found: dict[str, list[str]] = {}
    for name in layers:
        found.setdefault(name.rpartition(".")[2], []).append(name)
    return [name for last, whole in found.items() for name in ([last] if len(whole) == n_layer else whole)]


def adapter_facts(adapter: Adapter, folder: Path) -> dict[str, Any]:
    """What our own JSON says beside PEFT's, for an adapter in a folder beside which it is written."""
    return {
        "settings": adapter.settings.model_dump(include=set(LoraSettings.model_fields)),
        "layers": list(adapter.layers),
        "frozen": adapter.frozen,
        "token_ids": list(adapter.token_ids),
        "base": adapter.base,
        "base_from_here": os.path.relpath(adapter.base, folder.resolve()),
        "base_hash": adapter.base_hash,
    }


def read_adapter(facts: Mapping[str, Any]) -> Adapter:
    """The adapter that `adapter_facts` told of."""
    return Adapter(
        LoraSettings(**facts["settings"]),
        tuple(facts["layers"]),
        facts["frozen"],
        tuple(facts["token_ids"]),
        facts["base"],
        facts["base_hash"],
    )


def find_base(folder: Path, facts: Mapping[str, Any]) -> Path:
    """The base of the adapter in `folder`: where it was, or where it is now if both were moved together.

    Raises UserError if it isn't there, is damaged, or has other weights.
    """
    remedy = f"put it back, or join the two with `mini-chat-gpt merge {folder} OUT --base PATH`"
    there = [place for place in (Path(facts["base"]), folder / facts["base_from_here"]) if place.is_dir()]
    if not there:
        raise UserError(f"{folder} is an adapter for the base model {facts['base']}, which is not there; {remedy}.")
    for base in there:
        if weights_hash(base) == facts["base_hash"]:
            if reason := damage(base):
                raise UserError(f"{base}, the base model of {folder}, is damaged: {reason}.")
            return base
    raise UserError(
        f"{there[0]} is not the base model that {folder} was trained with, its weights are others; {remedy}."
    )


def weights_hash(folder: Path, name: str = "model.safetensors") -> str:
    """The hash of a checkpoint's weights, as its manifest has it."""
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"][name]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return sha256_of(folder / name) if (folder / name).is_file() else ""
