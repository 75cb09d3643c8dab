"""Norm and rotation with their derivatives written out: for training on a CPU.

Autograd would take the derivative of each small step of these formulas, and on a CPU every step is a pass through memory.
Written out they take a third of the time. The results are those of the plain formulas, which tests compare.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """x / √(mean(x²) + eps) · weight over the last dimension, computed in float32 and given back as `dtype`."""
    return _RMSNorm.apply(x, weight, eps, dtype)


class _RMSNorm(torch.autograd.Function):
    """With n = x · s and s = 1/√(mean(x²) + eps): dw = Σ dy∘n, dx = s · (dy∘w − n · mean(dy∘w∘n))."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = (norm.square_() / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed, grad = x * scale, grad.float()
        products = grad * normed
        d_weight = products.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        mean = (products @ weight.float()).div_(x.shape[-1]).unsqueeze(-1)
        d_x = (grad * weight).sub_(normed.mul_(mean)).mul_(scale)
        return d_x.to(x.dtype), d_weight, None, None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each pair (x1, x2) of a head's two halves turned: (x1·cos − x2·sin, x2·cos + x1·sin), in float32, as x's dtype.

    x (B, H, T, D); cos, sin (B, 1, T, D/2).
    """
    return _Rotation.apply(x, cos, sin)


class _Rotation(torch.autograd.Function):
    """The derivative of a turn is the turn back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    exact = x.float()
    out = torch.empty_like(exact)
    (x1, x2), (out1, out2) = exact.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(x1, cos, out=out1).addcmul_(x2, sin, value=-1)
    torch.mul(x2, cos, out=out2).addcmul_(x1, sin)
    return out.to(x.dtype)
