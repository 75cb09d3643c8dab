"""Norms and rotary positions as modules: the parts of a model that the formulas of ops/functional.py need weights or tables for."""

from __future__ import annotations

import torch
import torch.nn as nn

from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.ops.functional import rms_norm, rope_frequencies

Rope = tuple[torch.Tensor, torch.Tensor]  # cos, sin (B, 1, T, D/2)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · factor (Zhang & Sennrich 2019, arXiv:1910.07467). The factor is the weight, or 1 + weight."""

    def __init__(self, size: int, config: GPTConfig) -> None:
        super().__init__()
        self.eps, self.offset = config.norm_eps, config.norm_offset
        self.weight = nn.Parameter(torch.zeros(size) if self.offset else torch.ones(size))

    def factor(self) -> torch.Tensor:
        """(C,)"""
        return 1 + self.weight.float() if self.offset else self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., C)"""
        return rms_norm(x, self.factor(), self.eps)


def make_norm(config: GPTConfig, present: bool = True) -> nn.Module:
    """The norm of the residual stream's width; without it, a module that returns its input."""
    if not present:
        return nn.Identity()
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)
    return RMSNorm(config.n_embd, config)


class RotaryEmbedding(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): the angle of pair (i, i + D/2) is position · frequency i."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: GPTConfig, of_windows: bool = False) -> None:
        super().__init__()
        theta, scaling = config.rope_theta, config.rope_scaling
        if of_windows and config.window_rope_theta is not None:
            theta, scaling = config.window_rope_theta, None
        frequencies = rope_frequencies(config.head_size, theta, scaling)  # (D/2,)
        angles = torch.arange(config.context_length, dtype=torch.float32)[:, None] * frequencies[None, :]
        # Not in the state dict: the config determines them.
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, positions: torch.Tensor) -> Rope:
        """positions (B, T) -> cos, sin (B, 1, T, D/2), which broadcast over heads."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
