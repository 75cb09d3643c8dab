"""The peak learning rate that `learning_rate=auto` chooses.

The best rate is a falling power of the model's size, higher for adapters, which begin at zero, and for a model that has never
been trained. It hardly depends on an adapter's rank, because its scale is alpha / rank. benchmarks/learning_rates.py
compares the rates chosen here with others.
"""

from __future__ import annotations

import torch
import torch.nn as nn

from mini_chat_gpt.common.distributed import is_dtensor
from mini_chat_gpt.layers import RMSNorm
from mini_chat_gpt.model import GPT

FULL, ADAPTER, UNTRAINED = (7e-4, -0.4), (5e-3, -0.5), (3e-3, -0.33)
"""(rate of a model of a million parameters, power): all weights of a trained model, an adapter, all weights of an untrained model."""
HIGHEST = 1e-2


def auto_learning_rate(model: GPT) -> tuple[float, str]:
    """(rate, what it follows from) for the parameters of the model that are trained. With FSDP all ranks must call it together."""
    n = model.config.n_parameters  # those of an adapter don't count
    if model.adapter is not None:
        (rate, power), what = ADAPTER, "an adapter to"
    elif is_untrained(model):
        (rate, power), what = UNTRAINED, "the untrained weights of"
    else:
        (rate, power), what = FULL, "all weights of"
    rate = min(HIGHEST, rate * (n / 1e6) ** power)
    return float(f"{rate:.1e}"), f"{what} a model of {n / 1e6:,.2f} M parameters"


def is_untrained(model: GPT) -> bool:
    """Whether all norms have the factors that they are created with: 1. The first update changes them."""
    factors = [norm.factor() for norm in model.modules() if isinstance(norm, RMSNorm)]
    factors += [norm.weight for norm in model.modules() if isinstance(norm, nn.LayerNorm)]
    return all(bool((_whole(factor) == 1).all()) for factor in factors)


def _whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.full_tensor() if is_dtensor(weight) else weight  # type: ignore[attr-defined]
