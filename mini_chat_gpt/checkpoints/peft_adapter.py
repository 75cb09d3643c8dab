"""Adapters that were made by Hugging Face's PEFT: LoRA, rsLoRA and DoRA, merged into their base as its weights are read.

    adapter_config.json         kind, factors, and the path of the base
    adapter_model.safetensors   or adapter_model.bin, a pickle that holds nothing but tensors

What is adapted is taken from the tensors. Modules that were trained as a whole (modules_to_save), biases, and rows of the token
tables replace those of the base. Everything in the file must be used, and every setting that changes a result must be known;
otherwise a UserError says what can't be read.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from mini_chat_gpt.checkpoints.build import EMBEDDING, HEAD, StoredModel
from mini_chat_gpt.checkpoints.find import is_checkpoint
from mini_chat_gpt.checkpoints.hf_folder import ADAPTER_CONFIG, WEIGHTS, PickleReader, SafetensorsReader
from mini_chat_gpt.checkpoints.peft_form import LORA_A, LORA_B, MAGNITUDE, PREFIX, ROWS
from mini_chat_gpt.checkpoints.tensor_files import FLOATS, TensorInfo, is_finite
from mini_chat_gpt.checkpoints.tensor_parts import Part, PartOf
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.common.json_files import JSONRecord, check_json, read_json, short

REMEDY = "merge it with PEFT's merge_and_unload(), save the result, and give that folder"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
MAX_PATTERNS = 1000
HARMLESS = {
    *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "use_dora", "trainable_token_indices", "init_lora_weights"),
    # These matter in training only, or describe tensors that describe themselves.
    *(
        "auto_mapping",
        "peft_version",
        "revision",
        "inference_mode",
        "target_modules",
        "exclude_modules",
        "lora_dropout",
    ),
    *(
        "fan_in_fan_out",
        "bias",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "runtime_config",
        "lora_bias",
    ),
    *("megatron_core", "loftq_config", "eva_config", "qalora_group_size", "corda_config", "lora_ga_config"),
}
"""Keys of adapter_config.json that may have any value. Every other key must be empty or false."""
PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the weights of the base as they are."""


class _Config(JSONRecord):
    """adapter_config.json."""

    peft_type: str | None = None
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    """Of the base, if it is on the hub."""
    r: int = Field(8, ge=1)
    lora_alpha: float = Field(8, allow_inf_nan=False)
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = False
    use_dora: bool | None = False
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    init_lora_weights: bool | str | None = True


def is_peft_folder(path: Path) -> bool:
    """Whether a folder holds an adapter of PEFT and no complete model. Never raises."""
    names = [name for name in (ADAPTER_CONFIG, *WEIGHTS) if os.path.isfile(path / name)]
    return names == [ADAPTER_CONFIG] and not is_checkpoint(path)


def base_name(folder: Path) -> str:
    """What the adapter in `folder` names as its base: a path, or a name of the hub with its revision. Raises UserError."""
    config = _read_config(folder)
    if not (name := config.base_model_name_or_path):
        raise UserError(
            f"{folder / ADAPTER_CONFIG} names no base model; merge the two with `mini-chat-gpt merge {folder} OUT --base PATH`."
        )
    return f"{name}@{config.revision}" if config.revision and hub_name(name, "model") else name


def _read_config(folder: Path) -> _Config:
    """Read adapter_config.json. Raises UserError for an adapter that computes something else than LoRA and DoRA."""
    path = folder / ADAPTER_CONFIG
    try:
        values = read_json(path, dict[str, Any], "use another copy of the adapter")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; use another copy of the adapter.") from None
    config = check_json(values, _Config, str(path), "use another copy of the adapter")
    if config.peft_type != "LORA":
        raise UserError(f"{path} is of an adapter of the type {short(config.peft_type)}; only LORA can be read.")
    if config.task_type not in (None, "CAUSAL_LM"):
        raise UserError(f"{path} is of an adapter for the task {short(config.task_type)}; only CAUSAL_LM can be read.")
    if unknown := sorted(key for key, value in values.items() if value and key not in HARMLESS):
        raise UserError(f"{path} has {short(unknown[0])}: {short(values[unknown[0]])}, which can't be read; {REMEDY}.")
    if config.init_lora_weights not in PLAIN_INITIALIZATIONS:
        raise UserError(
            f"{path} has init_lora_weights: {short(config.init_lora_weights)}, which changes the weights of the base; {REMEDY}."
        )
    patterns = [*(config.rank_pattern or ()), *(config.alpha_pattern or ())]
    # They are regular expressions; one of any form could take any time.
    if strange := [pattern for pattern in patterns if not re.fullmatch(r"\^?([\w.]|\\\.)+", pattern, re.ASCII)]:
        raise UserError(f"{path} has the pattern {short(strange[0])}; only names of modules can be read; {REMEDY}.")
    if len(patterns) > MAX_PATTERNS:
        raise UserError(f"{path} has {len(patterns):,} patterns; at most {MAX_PATTERNS:,} can be read; {REMEDY}.")
    return config


@dataclass(frozen=True)
class _Change:
    """What an adapter makes of one of our tensors. Tensors by their names in the file."""

    part: Part
    whole: str | None = None
    """Replaces it."""
    rows: str | None = None
    ids: tuple[int, ...] = ()
    """Replace the rows of these ids."""
    pair: tuple[str, str] | None = None
    """A and B: B·A is added, of the right rows and times the factor."""
    factor: float = 1.0
    magnitude: str | None = None
    of_embedding: bool = False
    """The names A and B are those of a table, (r, V) and (C, r): (B·A)ᵀ is added."""

    @property
    def is_none(self) -> bool:
        return self.whole is None and self.rows is None and self.pair is None

    @property
    def names(self) -> set[str]:
        return {name for name in (self.whole, self.rows, *(self.pair or ()), self.magnitude) if name is not None}


@dataclass(frozen=True)
class _Adapter:
    """An adapter whose tensors have not been read."""

    folder: Path
    config: _Config
    reader: SafetensorsReader | PickleReader
    names: Mapping[str, str] = field(default_factory=dict)
    """Names without PEFT's prefix and infixes -> those in the file."""

    def read(self, name: str) -> torch.Tensor:
        tensor = self.reader.read(name, torch.float32)
        if not is_finite(tensor):
            raise UserError(
                f"{self.folder}: the tensor {short(name)} is not finite (NaN or infinite); use another copy."
            )
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        return self.reader.infos[name].shape

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise UserError unless a tensor has this shape."""
        if self.shape(name) != shape:
            raise UserError(
                f"{self.folder}: {short(name)} has the shape {list(self.shape(name))} instead of {list(shape)}; the adapter is "
                "not for this base."
            )


def open_adapter(folder: Path) -> _Adapter:
    """Open the adapter in `folder`. Raises UserError if it is missing or damaged, or can't be read exactly."""
    config = _read_config(folder)
    name = next((name for name in FILES if os.path.isfile(folder / name)), None)
    if name is None:
        raise UserError(f"{folder} has no {FILES[0]}; download the complete folder.")
    reader = (SafetensorsReader if name == FILES[0] else PickleReader)(folder, [name], None)
    names: dict[str, str] = {}
    for stored, info in reader.infos.items():
        plain = stored.removeprefix(PREFIX).replace(".base_layer.", ".").removesuffix(".default")
        if plain.endswith(f"{MAGNITUDE}.weight"):  # before PEFT 0.12
            plain = plain.removesuffix(".weight")
        if plain in names or not stored.startswith(PREFIX) or info.dtype not in FLOATS:
            raise UserError(f"{folder / name} has the tensor {short(stored)}, which can't be read; {REMEDY}.")
        names[plain] = stored
    return _Adapter(folder, config, reader, names)


def with_adapter(stored: StoredModel, part_of: PartOf, folder: Path) -> StoredModel:
    """A model of which each weight is merged with the adapter in `folder` when it is read.

    `part_of` tells where the tensors of the base are in `transformers`. Raises UserError if the adapter doesn't fit the base.
    """
    adapter, config = open_adapter(folder), stored.config
    names = [*stored.infos] + [HEAD] * config.tie_embeddings
    parts = {name: part_of(name, config) for name in names}
    changes = {name: _change_of(adapter, part) for name, part in parts.items()}
    used = {name for change in changes.values() for name in change.names}
    if unused := sorted({*adapter.names.values()} - used):
        raise UserError(
            f"{folder} has the tensor {short(unused[0])}, for which the base has no place; the adapter is not for this base, "
            f"or {REMEDY}."
        )
    if config.tie_embeddings and not _keeps_tied(adapter, changes[EMBEDDING], changes[HEAD]):
        config = config.model_copy(update={"tie_embeddings": False})
    elif config.tie_embeddings:
        del changes[HEAD]
    tables = {name for name in (EMBEDDING, HEAD) if name in changes}
    resized = {adapter.shape(whole)[0] for name in tables if (whole := changes[name].whole) is not None}
    if len(resized) == 1 and all(changes[name].whole is not None for name in tables):  # the vocabulary has grown
        config = config.model_copy(update={"vocab_size": resized.pop()})
    infos = {}
    for name in changes:
        info = stored.infos[name if name in stored.infos else EMBEDDING]
        shape = (config.vocab_size, *info.shape[1:]) if name in tables else info.shape
        infos[name] = TensorInfo(shape, info.dtype)
        _require_shapes(adapter, changes[name], shape)

    def read(name: str) -> torch.Tensor:
        change = changes[name]
        base = name if name in stored.infos else EMBEDDING
        if change.is_none:
            return stored.read(base)
        dtype = stored.infos[base].dtype
        assert isinstance(dtype, torch.dtype)
        weight = change.part.read(adapter.read(change.whole)) if change.whole else stored.read(base).float()
        return _merged(adapter, change, weight).to(dtype)

    return replace(
        stored,
        config=config,
        infos=infos,
        read=read,
        forget=lambda name: stored.forget(name) if name in stored.infos else None,
    )


def _change_of(adapter: _Adapter, part: Part) -> _Change:
    """What the adapter makes of our tensor that is `part` of one of the base. Shapes are not compared yet."""
    names, (module, _, kind) = adapter.names, part.source.rpartition(".")
    change = _Change(part, names.get(part.source))
    if kind != "weight":
        return change
    at = {key: names.get(f"{module}.{key}") for key in (LORA_A, LORA_B, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, ROWS)}
    if rows := at[ROWS]:
        change = replace(change, rows=rows, ids=_ids_of(adapter, module))
    a, b = (at[LORA_A], at[LORA_B]) if at[LORA_A] else (at[EMBEDDING_A], at[EMBEDDING_B])
    if a is None or b is None:
        return change
    of_embedding = at[LORA_A] is None
    return replace(
        change, pair=(a, b), factor=_factor(adapter, module, a), magnitude=at[MAGNITUDE], of_embedding=of_embedding
    )


def _ids_of(adapter: _Adapter, module: str) -> tuple[int, ...]:
    """The ids whose rows of a table are in the adapter."""
    given = adapter.config.trainable_token_indices or []
    if isinstance(given, dict):
        given = next((ids for name, ids in given.items() if module == name or module.endswith(f".{name}")), [])
    return tuple(given)


def _factor(adapter: _Adapter, module: str, a: str) -> float:
    """The factor on B·A of a module. Raises UserError if A has another rank than the config says."""
    config = adapter.config
    rank = _setting(config.rank_pattern, module, config.r)
    if (shape := adapter.shape(a)) and shape[0] != rank:
        raise UserError(
            f"{adapter.folder}: {short(a)} has the rank {shape[0]}, but {ADAPTER_CONFIG} says {rank}; use another copy."
        )
    alpha = _setting(config.alpha_pattern, module, config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _setting(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that stands for a module, as PEFT chooses it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _keeps_tied(adapter: _Adapter, table: _Change, head: _Change) -> bool:
    """Whether a head that shares the table of the base still does. Rows of the table count for both."""
    if head.is_none and (table.is_none or (table.rows is not None and table.pair is None and table.whole is None)):
        return True
    if table.whole is None or head.whole is None or table.pair or head.pair or table.rows or head.rows:
        return False
    return adapter.shape(table.whole) == adapter.shape(head.whole) and torch.equal(
        adapter.read(table.whole), adapter.read(head.whole)
    )


def _require_shapes(adapter: _Adapter, change: _Change, shape: tuple[int, ...]) -> None:
    """Raise UserError unless the tensors of a change fit our tensor of this shape."""
    part, stored = change.part, change.part.stored_shape(shape)
    if change.whole is not None:
        adapter.require(change.whole, stored)
    if change.rows is not None:
        adapter.require(change.rows, (len(change.ids), shape[1]))
        if any(not 0 <= one < shape[0] for one in change.ids):
            raise UserError(f"{adapter.folder / ADAPTER_CONFIG} names an id for which the base has no row; {REMEDY}.")
    if change.pair is not None:
        a, b = change.pair
        n_out, n_in = stored[::-1] if part.transposed else stored
        if change.of_embedding:
            n_out, n_in = n_in, n_out
        shape_of_a = adapter.shape(a)
        adapter.require(a, (shape_of_a[0] if shape_of_a else 1, n_in))
        adapter.require(b, (n_out, adapter.shape(a)[0]))
        if (change.magnitude is not None) != bool(adapter.config.use_dora):
            raise UserError(
                f"{adapter.folder}: {short(a)} {'lacks its' if adapter.config.use_dora else 'has a'} magnitude, but "
                f"{ADAPTER_CONFIG} says use_dora: {str(bool(adapter.config.use_dora)).lower()}; use another copy."
            )
        if change.magnitude is not None:
            if change.of_embedding:
                raise UserError(f"{adapter.folder} has a magnitude of the token table, which can't be read; {REMEDY}.")
            adapter.require(change.magnitude, (n_out,))


@torch.no_grad()
def _merged(adapter: _Adapter, change: _Change, weight: torch.Tensor) -> torch.Tensor:
    """Our tensor, float32, with the change added to it."""
    part = change.part
    own = slice(None) if part.n_rows is None else slice(part.first, part.first + part.n_rows)
    weight = weight.clone()
    if change.pair is not None:
        a, b = (adapter.read(name) for name in change.pair)
        weight += change.factor * ((b @ a).T if change.of_embedding else b[own] @ a)
    if change.magnitude is not None:
        norms = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float64)  # squares could be too large for float32
        weight *= (adapter.read(change.magnitude)[own] / norms).float()[:, None]
    if change.rows is not None:
        weight[list(change.ids)] = adapter.read(change.rows)
    if not is_finite(weight):
        raise UserError(f"{adapter.folder} makes {short(part.source)} not finite (NaN or infinite); use another copy.")
    return weight
