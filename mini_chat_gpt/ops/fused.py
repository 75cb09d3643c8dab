"""Norm, rotation and adapters with their derivatives written out: for training on a CPU.

Autograd would take the derivative of each small step of these formulas, and on a CPU every step is a pass through memory.
Written out they take a third of the time. The results are those of the plain formulas, which tests compare.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def use_fused_cpu(x: torch.Tensor) -> bool:
    """Whether to take what is here: when training on a CPU, without a compiler, which would see to it."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


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


def low_rank(
    whole: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, dropout: float
) -> torch.Tensor:
    """whole + scaling · B·A·dropout(x), in the precision of `whole`.

    x (..., in); a (r, in); b (out, r); whole (..., out). Which of x are dropped isn't kept for the backward pass but found
    again from a seed, which is drawn from PyTorch's generator.
    """
    limit = round(2**16 * dropout)  # of 65,536 numbers so many mean "drop it"
    seed = int(torch.randint(2**62, ())) if limit else 0
    return _LowRank.apply(whole, x, a, b, scaling / (1 - limit / 2**16), limit, seed)


class _LowRank(torch.autograd.Function):
    """With d = x∘k, z = d·Aᵀ and y = whole + s·z·Bᵀ: dB = s·dyᵀ·z, dz = s·dy·B, dA = dzᵀ·d, dx = (dz·A)∘k."""

    @staticmethod
    def forward(
        ctx: Any,
        whole: torch.Tensor,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        limit: int,
        seed: int,
    ) -> torch.Tensor:
        rows, a, b = x.flatten(0, -2).to(whole.dtype), a.to(whole.dtype), b.to(whole.dtype)
        kept = _kept(rows, limit, seed)
        z = (rows if kept is None else kept.mul_(rows)) @ a.T
        ctx.save_for_backward(rows, z, a, b)
        ctx.scaling, ctx.limit, ctx.seed, ctx.dtype = scaling, limit, seed, x.dtype
        return torch.addmm(whole.flatten(0, -2), z, b.T, alpha=scaling).view_as(whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, z, a, b = ctx.saved_tensors
        scaled = grad.flatten(0, -2) * ctx.scaling
        dz, dx, kept = scaled @ b, None, _kept(rows, ctx.limit, ctx.seed)
        if ctx.needs_input_grad[1]:
            dx = dz @ a if kept is None else (dz @ a).mul_(kept)
            dx = dx.to(ctx.dtype).view(*grad.shape[:-1], -1)
        da, db = dz.T @ (rows if kept is None else kept.mul_(rows)), scaled.T @ z
        return grad, dx, da.float(), db.float(), None, None, None


def _kept(x: torch.Tensor, limit: int, seed: int) -> torch.Tensor | None:
    """1 and a random part of 0, in the shape of x and always the same for a seed; None for no 0 at all.

    16 random bits a number, four of them drawn at once: a seventh of the time of PyTorch's dropout.
    """
    if not limit:
        return None
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    bits.random_(-(2**63), None, generator=torch.Generator().manual_seed(seed))
    drawn = bits.view(torch.int16)[: x.numel()].view(x.shape)
    return torch.ge(drawn, limit - 2**15, out=torch.empty(x.shape, dtype=x.dtype))
