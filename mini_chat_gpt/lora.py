"""LoRA: small trainable matrices in addition to frozen ones (Hu et al. 2021, arXiv:2106.09685).

    y = W·x + scaling · B·(A·dropout(x))        A (r, in) random, B (out, r) zero: training begins with y = W·x

`scaling` is alpha / r, or alpha / √r with `rslora` (Kalajdzievski 2023, arXiv:2312.03732), which keeps the size of the added
term the same for every rank. With `dora` the length of each output's weights is trained apart from their direction
(Liu et al. 2024, arXiv:2402.09353): W' = m · (W + scaling·B·A) / ‖W + scaling·B·A‖, with the norm treated as a constant.

W needs neither gradient nor optimizer state, and may be stored in fewer bits (`frozen`): in 16, the precision of products
under mixed precision, or in 4 (QLoRA, Dettmers et al. 2023, arXiv:2305.14314; ops/nf4.py). Single rows of a frozen embedding
table can be trained whole: a model can't learn control tokens that its base has never seen in any other way.

The arithmetic is that of Hugging Face's PEFT, so that adapters can be exchanged.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig, LoraSettings
from mini_chat_gpt.ops.functional import add_low_rank
from mini_chat_gpt.ops.nf4 import Nf4Linear

if TYPE_CHECKING:
    from mini_chat_gpt.model import GPT

ALL_LINEAR = "all-linear"
Frozen = Literal["float32", "bf16", "fp16", "nf4"]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Adapter:
    """Which part of a model is trained, and the base that it belongs to."""

    settings: LoraSettings
    layers: tuple[str, ...]
    frozen: Frozen = "float32"
    token_ids: tuple[int, ...] = ()  # whose rows of the embedding table are trained
    base: str = ""  # its folder
    base_hash: str = ""
    layout: str = ""  # the family in whose form the base is stored there, see checkpoints/find.py


# Layers


class HalfLinear(nn.Module):
    """A frozen layer in 16 bits. x (..., in) -> (..., out), computed in 16 bits and returned in the precision of x."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        bias = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out)"""
        if torch.is_autocast_enabled(x.device.type):
            return F.linear(x, self.weight, self.bias)
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


FrozenLinear = nn.Linear | HalfLinear | Nf4Linear


class LoraLinear(nn.Module):
    """A frozen layer and its adapter. x (..., in) -> (..., out)."""

    def __init__(self, base: FrozenLinear, settings: LoraSettings) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling_of(settings)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.dropout = nn.Dropout(settings.dropout)
        self.lora_A = nn.Parameter(torch.empty(settings.rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, settings.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.magnitude = nn.Parameter(self.row_norms()) if settings.dora else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out)"""
        if self.magnitude is None:
            dropout = self.dropout.p if self.training else 0.0
            return add_low_rank(self.base(x), x, self.lora_A, self.lora_B, self.scaling, dropout)
        return self._dora(x, self.magnitude)

    def _dora(self, x: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
        """W'·x + bias of x (..., in) -> (..., out), as PEFT computes it."""
        dropped = self.dropout(x)
        added = F.linear(F.linear(dropped, self.lora_A), self.lora_B) * self.scaling
        ratio = magnitude / self.row_norms()  # (out,); the norm is a constant (the paper's section 4.3)
        whole, bias = self.base(x), self.base.bias
        without_bias = whole if bias is None else whole - bias
        if self.training and self.dropout.p:  # PEFT scales what the adapter reads: with its dropout
            without_bias = self.base(dropped) if bias is None else self.base(dropped) - bias
        return (whole + (ratio - 1) * without_bias + ratio * added).to(whole.dtype)

    @torch.no_grad()
    def weight(self) -> torch.Tensor:
        """W + scaling·B·A, (out, in) float32."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            return self.base.weight.float() + self.scaling * (self.lora_B @ self.lora_A)

    @torch.no_grad()
    def row_norms(self) -> torch.Tensor:
        """The norms of the rows of `weight`, (out,)."""
        return torch.linalg.vector_norm(self.weight(), dim=1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer with the adapter added to its weights."""
        weight, bias = self.weight(), self.base.bias
        if self.magnitude is not None:
            weight *= (self.magnitude / self.row_norms())[:, None]
        return _linear(weight, bias)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A float32 layer around weight (out, in) and bias (out,)."""
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach().float())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().float())
    return linear


class EmbeddingRows(nn.Module):
    """A frozen embedding of which the rows (k, C) of some ids (k,) are trained."""

    ids: torch.Tensor

    def __init__(self, base: nn.Embedding, ids: Sequence[int]) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        self.rows = nn.Parameter(base.weight.detach()[list(ids)].clone())

    @property
    def weight(self) -> torch.Tensor:
        """The frozen table (V, C), without the training of the rows."""
        return self.base.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (...) -> (..., C)"""
        hits = ids[..., None] == self.ids  # (..., k)
        own = F.embedding(hits.int().argmax(dim=-1), self.rows)
        return torch.where(hits.any(dim=-1, keepdim=True), own, self.base(ids))


class HeadRows(nn.Module):
    """A frozen head of which the rows (k, C) of some ids (k,) are trained. A tied head shares them with the embedding."""

    ids: torch.Tensor

    def __init__(self, base: nn.Linear, ids: Sequence[int], rows: nn.Parameter | None = None) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        self.rows = nn.Parameter(base.weight.detach()[list(ids)].clone()) if rows is None else rows

    @property
    def weight(self) -> torch.Tensor:
        """The frozen table (V, C), without the training of the rows."""
        return self.base.weight

    @property
    def trained_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """ids (k,) and rows (k, C) that replace those of `weight`; `GPT.head_sums` reads them."""
        return self.ids, self.rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., C) -> logits (..., V)"""
        logits = self.base(x)
        return logits.index_copy(-1, self.ids, F.linear(x, self.rows).to(logits.dtype))


def scaling_of(settings: LoraSettings) -> float:
    """The factor on B·A."""
    return settings.alpha / (math.sqrt(settings.rank) if settings.rslora else settings.rank)


# Models


def add_lora(
    model: GPT, settings: LoraSettings, frozen: Frozen = "float32", token_ids: Sequence[int] = ()
) -> list[str]:
    """Freeze a model and add adapters to the layers that `settings.targets` name; returns the layers' names.

    A target is the end of a name ("q_proj") or a pattern ("layers.*.mlp.*"); "all-linear" stands for all linear layers of
    the blocks. `frozen` is the precision in which their weights are stored; the embedding rows of `token_ids` are trained,
    too. Raises UserError for a target that matches no layer.
    """
    model.requires_grad_(False)
    names = _target_layers(model, settings.targets)
    for name, linear in linear_layers(model):
        base = freeze_linear(linear, frozen)  # a model may have been loaded with these layers frozen
        model.set_submodule(name, LoraLinear(base, settings) if name in names else base)
    _convert_to_float32(model)
    train_rows(model, token_ids)
    model.adapter = Adapter(settings, tuple(names), frozen, tuple(token_ids))
    return names


def _convert_to_float32(model: GPT) -> None:
    """Convert what was read in 16 bits to float32, one by one, except layers that are frozen in 16 bits."""
    for module in model.modules():
        for parameter in () if isinstance(module, HalfLinear) else module.parameters(recurse=False):
            if parameter.dtype != torch.float32:
                parameter.data = parameter.data.float()


def freeze_linear(linear: FrozenLinear, frozen: Frozen) -> FrozenLinear:
    """A layer with its weights in the precision `frozen`; a layer that was frozen before is returned as it is."""
    if frozen == "float32" or not isinstance(linear, nn.Linear):
        return linear
    return Nf4Linear.of(linear) if frozen == "nf4" else HalfLinear(linear, HALF[frozen])


def train_rows(model: GPT, ids: Sequence[int]) -> None:
    """Make the embedding rows of these ids trainable in a frozen model, and those of the head."""
    if not ids:
        return
    embedding = EmbeddingRows(model.embed_tokens, ids)
    shared = embedding.rows if model.config.tie_embeddings else None
    # An untied head needs rows of its own: without them the model could never learn to produce a new token.
    head = HeadRows(model.lm_head, ids, shared)
    model.embed_tokens, model.lm_head = embedding, head  # type: ignore[assignment]


def merge_lora(model: GPT) -> None:
    """Add the adapters to the weights. The model is then a plain one in float32, and nothing is frozen."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            model.set_submodule(name, module.merged())
    for name, module in list(model.named_modules()):
        if isinstance(module, HalfLinear | Nf4Linear):
            model.set_submodule(name, dequantize(module))
    merge_rows(model)
    model.requires_grad_(True)
    model.adapter = None


def dequantize(layer: HalfLinear | Nf4Linear) -> nn.Linear:
    """A layer in float32, with the values that its stored weights stand for."""
    return _linear(layer.weight, layer.bias)


@torch.no_grad()
def merge_rows(model: GPT) -> None:
    """Write the trained rows into the tables, and put plain tables back into the model."""
    for name in ("embed_tokens", "lm_head"):
        table = getattr(model, name)
        if isinstance(table, EmbeddingRows | HeadRows):
            table.base.weight[table.ids] = table.rows.to(table.base.weight.dtype)
            setattr(model, name, table.base)


def linear_layers(model: nn.Module) -> list[tuple[str, FrozenLinear]]:
    """(name, layer) of the blocks' linear layers. The head is not among them: it is the embedding, or as large."""
    modules = [(name, module) for name, module in model.named_modules() if name.startswith("layers.")]
    return [(name, module) for name, module in modules if isinstance(module, FrozenLinear)]


def block_layers(config: GPTConfig) -> list[str]:
    """The names of the layers of `linear_layers`, without a model."""
    mlp = ["mlp.gate_proj"] * config.gated + ["mlp.up_proj", "mlp.down_proj"]
    names = [*(f"self_attn.{one}_proj" for one in "qkvo"), *mlp]
    return [f"layers.{layer}.{name}" for layer in range(config.n_layer) for name in names]


def adapters(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """(name of the layer, the layer with its adapter)."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))


def set_dropout(model: GPT, dropout: float) -> None:
    """Change the dropout of a model's adapters."""
    for _, layer in adapters(model):
        layer.dropout.p = dropout
    settings = model.adapter.settings.model_copy(update={"dropout": dropout})
    model.adapter = replace(model.adapter, settings=settings)


def _target_layers(model: nn.Module, targets: Sequence[str]) -> list[str]:
    names = [name for name, _ in linear_layers(model)]
    selected: set[str] = set()
    for target in targets:
        matches = names if target == ALL_LINEAR else [name for name in names if _matches(target, name)]
        if not matches:
            ends = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
            raise UserError(f"lora.targets: {target!r} matches no layer of this model; it has {ends}.")
        selected |= set(matches)
    return [name for name in names if name in selected]


def _matches(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}") or fnmatch.fnmatchcase(name, target)
