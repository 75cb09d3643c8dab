"""LoRA: small trainable matrices beside frozen ones (Hu et al. 2021, arXiv:2106.09685).

    y = W·x + scaling · B·(A·dropout(x))        A (r, in) random, B (out, r) zero, so that training begins with y = W·x

`scaling` is alpha / r, or alpha / √r with `rslora` (Kalajdzievski 2023, arXiv:2312.03732), which keeps the size of what is
added the same for every rank. With `dora` the length of each output's weights is trained apart from their direction
(Liu et al. 2024, arXiv:2402.09353): W' = m · (W + scaling·B·A) / ‖W + scaling·B·A‖, the norm taken as a constant.

The names of weights and the arithmetic are those of Hugging Face's PEFT, so that its adapters and ours are the same.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F

from mini_chat_gpt.config import LoraSettings
from mini_chat_gpt.errors import UserError

ALL_LINEAR = "all-linear"


class LoraLinear(nn.Module):
    """A frozen layer and its adapter. x (..., in) -> (..., out)."""

    def __init__(self, base: nn.Linear, settings: LoraSettings) -> None:
        super().__init__()
        self.base, self.scaling = base.requires_grad_(False), scaling_of(settings)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.dropout = nn.Dropout(settings.dropout)
        weight = base.weight
        self.lora_A = nn.Parameter(weight.new_empty(settings.rank, base.in_features))
        self.lora_B = nn.Parameter(weight.new_zeros(base.out_features, settings.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.magnitude = nn.Parameter(self.lengths()) if settings.dora else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dropped = self.dropout(x)
        added = F.linear(F.linear(dropped, self.lora_A), self.lora_B) * self.scaling
        if self.magnitude is None:
            return self.base(x) + added
        stretch = self.magnitude / self.lengths()  # (out,); the length is a constant, the paper's section 4.3
        whole, bias = self.base(x), self.base.bias
        if self.training and self.dropout.p:  # what is stretched is what the adapter sees, dropped out like it
            straight = F.linear(dropped, self.base.weight)
        else:
            straight = whole if bias is None else whole - bias
        return whole + (stretch - 1) * straight + stretch * added

    @torch.no_grad()
    def lengths(self) -> torch.Tensor:
        """(out,) the lengths of the rows of W + scaling·B·A."""
        return torch.linalg.vector_norm(self.base.weight + self.scaling * (self.lora_B @ self.lora_A), dim=1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer with the adapter in its weights, the base layer itself."""
        weight = self.base.weight + self.scaling * (self.lora_B @ self.lora_A)
        if self.magnitude is not None:
            weight *= (self.magnitude / self.lengths())[:, None]
        self.base.weight.copy_(weight)
        return self.base


def scaling_of(settings: LoraSettings) -> float:
    """The factor on what an adapter adds."""
    return settings.alpha / (math.sqrt(settings.rank) if settings.rslora else settings.rank)


def add_lora(model: nn.Module, settings: LoraSettings) -> list[str]:
    """Freeze a model and put adapters beside the layers that `settings.targets` mean; returns their names.

    `settings.targets` names layers by the end of their name ("q_proj") or by a pattern of it ("layers.*.mlp.*"); "all-linear"
    are those of all blocks. Raises UserError for a target that means no layer.
    """
    model.requires_grad_(False)
    names = _targets(model, settings.targets)
    for name in names:
        model.set_submodule(name, LoraLinear(cast(nn.Linear, model.get_submodule(name)), settings))
    return names


def merge_lora(model: nn.Module) -> None:
    """Take the adapters into the weights; the model is then as plain as before, with nothing frozen."""
    for name, layer in list(adapters(model)):
        model.set_submodule(name, layer.merged())
    model.requires_grad_(True)


def adapters(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """(name of the layer, its adapter)."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))


def _targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    in_blocks = [name for name in linear if name.startswith("layers.")]
    wanted: set[str] = set()
    for target in targets:
        meant = in_blocks if target == ALL_LINEAR else [name for name in linear if _means(target, name)]
        if not meant:
            ends = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
            raise UserError(f"lora.targets: {target!r} means no layer of this model; there are {ends}.")
        wanted |= set(meant)
    return [name for name in linear if name in wanted]


def _means(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}") or fnmatch.fnmatchcase(name, target)
