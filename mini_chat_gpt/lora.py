"""LoRA: small trainable matrices beside frozen ones (Hu et al. 2021, arXiv:2106.09685).

    y = W·x + scaling · B·(A·dropout(x))        A (r, in) random, B (out, r) zero, so that training begins with y = W·x

`scaling` is alpha / r, or alpha / √r with `rslora` (Kalajdzievski 2023, arXiv:2312.03732), which keeps the size of what is
added the same for every rank. With `dora` the length of each output's weights is trained apart from their direction
(Liu et al. 2024, arXiv:2402.09353): W' = m · (W + scaling·B·A) / ‖W + scaling·B·A‖, the norm taken as a constant.

W itself needs no gradient and no optimizer state, and may be kept in fewer bits (`frozen`): 16 (as the products have them under
mixed precision), or 4 (QLoRA, Dettmers et al. 2023, arXiv:2305.14314; nf4.py). Rows of the embedding table can be trained whole:
control tokens that the base has never seen can't be learned by anything else (token_rows.py).

The arithmetic is that of Hugging Face's PEFT, so that its adapters and ours are the same.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import LoraSettings
from mini_chat_gpt.ops import fused
from mini_chat_gpt.ops.nf4 import Nf4Linear
from mini_chat_gpt.token_rows import put_back, train_rows

if TYPE_CHECKING:
    from mini_chat_gpt.model import GPT

ALL_LINEAR = "all-linear"
Frozen = Literal["float32", "bf16", "fp16", "nf4"]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Adapter:
    """What is trained of a model that is not trained as a whole, and beside which base."""

    settings: LoraSettings
    layers: tuple[str, ...]
    frozen: Frozen = "float32"
    token_ids: tuple[int, ...] = ()  # whose rows are trained
    base: str = ""  # its folder
    base_hash: str = ""


class HalfLinear(nn.Module):
    """A frozen layer in 16 bits; its products are too, and come out in the precision of x."""

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
        self.magnitude = nn.Parameter(self.lengths()) if settings.dora else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.magnitude is None and fused.use_fused_cpu(x):
            dropout = self.dropout.p if self.training else 0.0
            return fused.low_rank(self.base(x), x, self.lora_A, self.lora_B, self.scaling, dropout)
        dropped = self.dropout(x)
        added = F.linear(F.linear(dropped, self.lora_A), self.lora_B) * self.scaling
        if self.magnitude is None:
            return self.base(x) + added
        stretch = self.magnitude / self.lengths()  # (out,); the length is a constant, the paper's section 4.3
        whole, bias = self.base(x), self.base.bias
        straight = whole if bias is None else whole - bias
        if self.training and self.dropout.p:  # what is stretched is what the adapter sees, dropped out like it
            straight = self.base(dropped) if bias is None else self.base(dropped) - bias
        return (whole + (stretch - 1) * straight + stretch * added).to(whole.dtype)

    @torch.no_grad()
    def weight(self) -> torch.Tensor:
        """(out, in) float32, W + scaling·B·A."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            return self.base.weight.float() + self.scaling * (self.lora_B @ self.lora_A)

    @torch.no_grad()
    def lengths(self) -> torch.Tensor:
        """(out,) the lengths of the rows of `weight`."""
        return torch.linalg.vector_norm(self.weight(), dim=1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer with the adapter in its weights."""
        weight, bias = self.weight(), self.base.bias
        if self.magnitude is not None:
            weight *= (self.magnitude / self.lengths())[:, None]
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features, bias=bias is not None)
        plain.weight = nn.Parameter(weight)
        if bias is not None:
            plain.bias = nn.Parameter(bias.detach().float())
        return plain


def scaling_of(settings: LoraSettings) -> float:
    """The factor on what an adapter adds."""
    return settings.alpha / (math.sqrt(settings.rank) if settings.rslora else settings.rank)


def add_lora(
    model: GPT, settings: LoraSettings, frozen: Frozen = "float32", token_ids: Sequence[int] = ()
) -> list[str]:
    """Freeze a model and put adapters beside the layers that `settings.targets` mean; returns their names.

    `settings.targets` names layers by the end of their name ("q_proj") or by a pattern of it ("layers.*.mlp.*"); "all-linear" are
    those of all blocks. `frozen` is the form in which the blocks' layers are kept; the rows of `token_ids` are trained too.
    Raises UserError for a target that means no layer.
    """
    model.requires_grad_(False)
    names = _targets(model, settings.targets)
    for name, linear in linear_layers(model):
        base = kept(linear, frozen)
        model.set_submodule(name, LoraLinear(base, settings) if name in names else base)
    if frozen != "float32":
        # What is left of the weights lies, as they all did, in the memory into which their file is mapped: one that stays keeps all.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    train_rows(model, token_ids)
    model.adapter = Adapter(settings, tuple(names), frozen, tuple(token_ids))
    return names


def kept(linear: nn.Linear, frozen: Frozen) -> FrozenLinear:
    """A layer in the form in which it is kept."""
    if frozen == "float32":
        return linear
    return Nf4Linear.of(linear) if frozen == "nf4" else HalfLinear(linear, HALF[frozen])


def merge_lora(model: GPT) -> None:
    """Take the adapters into the weights; the model is then as plain as before, in float32, with nothing frozen."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            model.set_submodule(name, module.merged())
    for name, module in list(model.named_modules()):
        if isinstance(module, HalfLinear | Nf4Linear):
            model.set_submodule(name, plain(module))
    put_back(model)
    model.requires_grad_(True)
    model.adapter = None


def plain(layer: HalfLinear | Nf4Linear) -> nn.Linear:
    """A layer in float32, with the numbers that are left of it."""
    with torch.device("meta"):
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.weight = nn.Parameter(layer.weight.detach().float())
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.detach().float())
    return linear


def linear_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """(name, layer) of the blocks' linear layers. The head is none of them: it is the embedding, or as large as one."""
    modules = [(name, module) for name, module in model.named_modules() if name.startswith("layers.")]
    return [(name, module) for name, module in modules if isinstance(module, nn.Linear)]


def adapters(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """(name of the layer, its adapter)."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))


def _targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    linear = [name for name, _ in linear_layers(model)]
    wanted: set[str] = set()
    for target in targets:
        meant = linear if target == ALL_LINEAR else [name for name in linear if _means(target, name)]
        if not meant:
            ends = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
            raise UserError(f"lora.targets: {target!r} means no layer of this model; there are {ends}.")
        wanted |= set(meant)
    return [name for name in linear if name in wanted]


def _means(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}") or fnmatch.fnmatchcase(name, target)
