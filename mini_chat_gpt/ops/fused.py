"""RMSNorm, rotary positions and LoRA as fused operations for training on a CPU, each with its derivative.

Autograd would differentiate every small step of these formulas, and on a CPU every step is a pass through memory. Fused they
take a third of the time. functional.py decides where they are used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """x / √(mean(x²) + eps) · weight over the last dimension, computed in float32 and returned as `dtype`.

    x (..., C); weight (C,) -> (..., C).
    """
    return _RMSNorm.apply(x, weight, eps, dtype)


class _RMSNorm(torch.autograd.Function):
    """With n = x · s and s = 1/√(mean(x²) + eps): dw = Σ dy∘n, dx = s · (dy∘w − n · mean(dy∘w∘n))."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        """x (..., C); weight (C,) -> (..., C)"""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = (norm.square_() / x.shape[-1] + eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """grad (..., C) -> dx (..., C), dw (C,)"""
        x, weight, scale = ctx.saved_tensors
        normed, grad = x * scale, grad.float()
        products = grad * normed
        d_weight = products.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        mean = (products @ weight.float()).div_(x.shape[-1]).unsqueeze(-1)
        d_x = (grad * weight).sub_(normed.mul_(mean)).mul_(scale)
        return d_x.to(x.dtype), d_weight, None, None


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (x1, x2) of a head's two halves: (x1·cos − x2·sin, x2·cos + x1·sin), in float32, as x's dtype.

    x (B, H, T, D); cos, sin (B, 1, T, D/2) -> (B, H, T, D).
    """
    return _Rope.apply(x, cos, sin)


class _Rope(torch.autograd.Function):
    """The derivative of a rotation is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x (B, H, T, D); cos, sin (B, 1, T, D/2) -> (B, H, T, D)"""
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """grad (B, H, T, D) -> dx (B, H, T, D)"""
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (B, H, T, D); cos, sin (B, 1, T, D/2) -> (B, H, T, D)"""
    exact = x.float()
    out = torch.empty_like(exact)
    (x1, x2), (out1, out2) = exact.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(x1, cos, out=out1).addcmul_(x2, sin, value=-1)
    torch.mul(x2, cos, out=out2).addcmul_(x1, sin)
    return out.to(x.dtype)


def add_low_rank(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, dropout: float
) -> torch.Tensor:
    """y + scaling · B·A·dropout(x), in the precision of y.

    y (..., out); x (..., in); a (r, in); b (out, r) -> (..., out). The dropout mask is not kept for the backward pass. It is
    generated again from a seed, which is drawn from PyTorch's generator.
    """
    limit = round(2**16 * dropout)  # number of the 65,536 random values that mean "drop"
    seed = int(torch.randint(2**62, ())) if limit else 0
    return _AddLowRank.apply(y, x, a, b, scaling / (1 - limit / 2**16), limit, seed)


class _AddLowRank(torch.autograd.Function):
    """With d = x∘m, m the dropout mask, z = d·Aᵀ and out = y + s·z·Bᵀ: dB = s·doutᵀ·z, dz = s·dout·B, dA = dzᵀ·d, dx = (dz·A)∘m."""

    @staticmethod
    def forward(
        ctx: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        limit: int,
        seed: int,
    ) -> torch.Tensor:
        """y (..., out); x (..., in); a (r, in); b (out, r) -> (..., out)"""
        rows, a, b = x.flatten(0, -2).to(y.dtype), a.to(y.dtype), b.to(y.dtype)
        mask = _dropout_mask(rows, limit, seed)
        z = (rows if mask is None else mask.mul_(rows)) @ a.T
        ctx.save_for_backward(rows, z, a, b)
        ctx.scaling, ctx.limit, ctx.seed, ctx.dtype = scaling, limit, seed, x.dtype
        return torch.addmm(y.flatten(0, -2), z, b.T, alpha=scaling).view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """grad (..., out) -> dy (..., out), dx (..., in), dA (r, in), dB (out, r)"""
        rows, z, a, b = ctx.saved_tensors
        scaled = grad.flatten(0, -2) * ctx.scaling
        dz, dx, mask = scaled @ b, None, _dropout_mask(rows, ctx.limit, ctx.seed)
        if ctx.needs_input_grad[1]:
            dx = dz @ a if mask is None else (dz @ a).mul_(mask)
            dx = dx.to(ctx.dtype).view(*grad.shape[:-1], -1)
        da, db = dz.T @ (rows if mask is None else mask.mul_(rows)), scaled.T @ z
        return grad, dx, da.float(), db.float(), None, None, None


def _dropout_mask(x: torch.Tensor, limit: int, seed: int) -> torch.Tensor | None:
    """Ones and random zeros in the shape (R, in) of x, always the same for a seed; None without dropout.

    It uses 16 random bits per value and draws four values at once, which takes a seventh of the time of PyTorch's dropout.
    """
    if not limit:
        return None
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    bits.random_(-(2**63), None, generator=torch.Generator().manual_seed(seed))
    values = bits.view(torch.int16)[: x.numel()].view(x.shape)
    return torch.ge(values, limit - 2**15, out=torch.empty(x.shape, dtype=x.dtype))
