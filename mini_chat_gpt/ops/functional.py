"""Operations of the model by their formula. Each picks the implementation that is fastest where the tensors are.

In training on a CPU that is a fused operation with a derivative of its own (fused.py); elsewhere PyTorch's operation or the
plain formula, which a compiler and autograd handle well. All of them compute the same; tests compare them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from mini_chat_gpt.ops import fused


def use_fused_cpu(x: torch.Tensor) -> bool:
    """Whether to use the fused operations for x of any shape (...): in training on a CPU, unless a compiler fuses itself."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def autocast_dtype(x: torch.Tensor) -> torch.dtype:
    """The precision of matrix products with x of any shape (...): autocast's where it is on, else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / √(mean(x²) + eps) · weight over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467).

    x (..., C); weight (C,). Returns (..., C) in autocast's precision where it is on: matrix products read the result.
    """
    dtype = autocast_dtype(x)
    if use_fused_cpu(x):
        return fused.rms_norm(x, weight, eps, dtype)
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps).to(dtype)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (x1, x2) of a head's two halves by the angle of its position (Su et al. 2021, arXiv:2104.09864).

    x (B, H, T, D); cos, sin (B, 1, T, D/2). Returns (B, H, T, D) in x's precision.
    """
    if use_fused_cpu(x):
        return fused.apply_rope(x, cos, sin)
    x1, x2 = x.chunk(2, dim=-1)  # Hugging Face's order of dimensions: halves, not neighbors
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x.dtype)


def rope_frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any] | None = None) -> torch.Tensor:
    """theta^(−2i/D) for i < D/2, with Hugging Face's linear or llama3 scaling applied; (D/2,) for D = head_dim.

    Raises ValueError for another kind of scaling.
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if scaling is None or kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / scaling["factor"]
    if kind == "llama3":
        # Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those in between interpolated.
        old_context, factor = scaling["original_max_position_embeddings"], scaling["factor"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        rotations = old_context * frequencies / (2 * math.pi)  # of each pair within the original context
        blend = ((rotations - low) / (high - low)).clamp(0, 1)
        return frequencies * (blend + (1 - blend) / factor)
    raise ValueError(f"rope_scaling of type {kind!r} is not supported; linear and llama3 are")


def activate(x: torch.Tensor, name: str) -> torch.Tensor:
    """The non-linearity of a `GPTConfig.activation`, elementwise: x (...) -> (...)."""
    if name == "swiglu":
        return F.silu(x)
    if name in ("geglu", "gelu_tanh"):
        return F.gelu(x, approximate="tanh")
    if name == "gelu":
        return F.gelu(x)
    return F.relu(x) if name == "relu" else F.relu(x).square()  # relu2: So et al. 2021, arXiv:2109.08668


def add_low_rank(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, dropout: float
) -> torch.Tensor:
    """y + scaling · B·A·dropout(x), what a LoRA layer computes (Hu et al. 2021, arXiv:2106.09685).

    y (..., out); x (..., in); a (r, in); b (out, r). `dropout` is the probability, 0 in evaluation. Returns (..., out).
    """
    if use_fused_cpu(x):
        return fused.add_low_rank(y, x, a, b, scaling, dropout)
    dropped = F.dropout(x, dropout) if dropout else x
    return y + F.linear(F.linear(dropped, a), b) * scaling
