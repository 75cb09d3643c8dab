"""Frozen weights in 4 bits: NormalFloat (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), in plain PyTorch.

A matrix is divided row by row into blocks of 64 weights. A block stores the largest magnitude in it, its absmax, and for
each weight the index of the nearest of 16 values between -1 and 1, times that absmax. The values are spaced so that normally
distributed weights use them about equally often. The absmax values are quantized to 8 bits in turn (double quantization):
their difference from their mean as float8 with 3 bits of mantissa, with a float32 scale for each 256 of them.

    4 bits + 8 / 64 + 32 / (64 · 256) = 4.127 bits per weight

No product is computed in 4 bits. A layer dequantizes its matrix for every product, in the forward pass and again in the
backward pass, and keeps only the 4 bits in between. Indices and absmax values are those of bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mini_chat_gpt.ops.functional import autocast_dtype

BLOCK = 64  # weights that share an absmax
GROUP = 256  # absmax values that share a scale
LARGEST_FLOAT8 = 448.0  # of torch.float8_e4m3fn; larger values become NaN

# The 16 values are quantiles of the normal distribution, and its last quantile is infinite. So the outermost value leaves
# half a share of the distribution beyond it: the mean of 1/30 and 1/32, as a share is 1/15 or 1/16 (in 7 digits).
OFFSET = 0.9677083

# Weights dequantized at a time. On a CPU the intermediate results, 6 bytes per weight, then stay near the cache, in memory
# that is used again: all at once took up to seven times as long. On a GPU the launch of each kernel costs more than 100 MB.
CPU_CHUNK, GPU_CHUNK = 2**19, 2**24


@lru_cache(maxsize=1)
def codes() -> tuple[float, ...]:
    """The 16 values from -1 to 1: 7 negative ones, 0 and 8 positive ones (the paper's section 3 and appendix E)."""
    positive = torch.special.ndtri(torch.linspace(OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([negative, positive.new_zeros(1), positive.flip(0)])
    return tuple((values / values.max()).tolist())


class Nf4Weight(NamedTuple):
    """A matrix in 4 bits.

    All parts are integers, floats by their bits: casting a model leaves them alone, and any backend of torch.distributed sends
    them.
    """

    indices: torch.Tensor  # (blocks, 32) uint8: two weights' codes, the first in the upper half
    absmax: torch.Tensor  # (blocks,) uint8: bits of float8_e4m3fn, the difference from the mean over the scale
    scales: torch.Tensor  # (1 + groups,) int32: bits of float32, first the mean, then the scale of each group
    pairs: torch.Tensor  # (256,) int64: bits of the two float32 values of each byte of `indices`; always the same

    @property
    def nbytes(self) -> int:
        """Bytes of this matrix; the table `pairs` is not counted."""
        return self.indices.nbytes + self.absmax.nbytes + self.scales.nbytes


@torch.no_grad()
def quantize(weight: torch.Tensor) -> Nf4Weight:
    """Quantize a matrix (out, in) of floats of any precision. One non-finite weight makes all of them non-finite."""
    flat = weight.reshape(-1)
    if len(flat) % BLOCK:
        flat = F.pad(flat, (0, -len(flat) % BLOCK))  # zeros change no absmax
    values = torch.tensor(codes(), dtype=torch.float32, device=weight.device)
    midpoints = (values[1:] + values[:-1]) / 2
    indices, absmax = [], []
    for blocks in flat.view(-1, BLOCK).split(CPU_CHUNK // BLOCK):
        blocks = blocks.float()
        largest = blocks.abs().amax(1)
        normalized = blocks / torch.where(largest > 0, largest, 1)[:, None]  # a block of zeros stays zero
        nearest = torch.zeros_like(normalized, dtype=torch.uint8)
        for midpoint in midpoints:  # 15 passes within the cache; torch.bucketize takes 2.5 times as long
            nearest += normalized > midpoint
        indices.append(nearest[:, 0::2] << 4 | nearest[:, 1::2])
        absmax.append(largest)
    byte = torch.arange(256, device=weight.device)
    pairs = torch.stack([values[byte >> 4], values[byte & 15]], dim=1).view(torch.int64).view(-1)
    bits, scales = (part.to(weight.device) for part in _in_8_bits(torch.cat(absmax).cpu()))
    return Nf4Weight(torch.cat(indices), bits, scales, pairs)


def _in_8_bits(absmax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(blocks,) float32 -> (blocks,) uint8 and (1 + groups,) int32, see `Nf4Weight`; on the CPU, which has float8."""
    mean = absmax.double().mean(0, keepdim=True).float()  # a float32 sum could overflow
    groups = F.pad(absmax - mean, (0, -len(absmax) % GROUP)).view(-1, GROUP)
    scales = groups.abs().amax(1) / LARGEST_FLOAT8
    scales = scales.clamp_min(torch.finfo(torch.float32).tiny)  # where all are equal the scale would be 0
    bits = (groups / scales[:, None]).to(torch.float8_e4m3fn).view(torch.uint8).flatten()[: len(absmax)]
    return bits.clone(), torch.cat([mean, scales]).view(torch.int32)


def dequantize(parts: Nf4Weight, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """The matrix (out, in) of `shape`, computed in float32 and rounded to `dtype`."""
    absmax = block_absmax(parts)[:, None]
    out = torch.empty(len(absmax), BLOCK, dtype=dtype, device=absmax.device)
    n_blocks = (CPU_CHUNK if absmax.device.type == "cpu" else GPU_CHUNK) // BLOCK
    scratch = None if dtype == torch.float32 else torch.empty_like(out[:n_blocks], dtype=torch.float32)
    for start in range(0, len(out), n_blocks):
        here = slice(start, start + n_blocks)
        exact = out[here] if scratch is None else scratch[: len(out[here])]
        # One lookup writes two weights, as one 64-bit number.
        bytes_ = parts.indices[here].flatten().int()
        torch.index_select(parts.pairs, 0, bytes_, out=exact.view(torch.int64).view(-1))
        exact.mul_(absmax[here])
        if scratch is not None:
            out[here] = exact
    return out.flatten()[: shape[0] * shape[1]].view(shape)  # without the padding of the last block


def block_absmax(parts: Nf4Weight) -> torch.Tensor:
    """The absmax of each block, (blocks,) float32."""
    # A float8's exponent and mantissa, shifted to where a float32 has them, are the number divided by 2^120 (the exponents
    # start at -127 and -7), subnormal ones included. So this works where PyTorch has no float8, as on Apple's GPUs.
    bits = parts.absmax.int()
    float8 = ((bits & 0x7F) << 20 | (bits & 0x80) << 24).view(torch.float32) * 2.0**120
    mean, scales = parts.scales.view(torch.float32).split([1, len(parts.scales) - 1])
    # Rounding may take the smallest ones below 0.
    return (float8 * scales.repeat_interleave(GROUP)[: len(float8)] + mean).clamp_min(0)


class Nf4Linear(nn.Module):
    """A frozen nn.Linear in 4 bits. x (..., in) -> (..., out), in x's precision or autocast's.

    The quantized parts are not in the state dict: they can be computed again from the base's weights.
    """

    indices: torch.Tensor
    absmax: torch.Tensor
    scales: torch.Tensor
    pairs: torch.Tensor

    def __init__(self, parts: Nf4Weight, shape: tuple[int, int], bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        for name, part in parts._asdict().items():
            self.register_buffer(name, part, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear) -> Nf4Linear:
        """The layer in 4 bits, on its device, with its bias."""
        return cls(quantize(linear.weight), (linear.out_features, linear.in_features), linear.bias)

    @property
    def n_weights(self) -> int:
        """Number of weights in the buffers. `GPT.n_parameters` adds it to the number of parameters."""
        return self.out_features * self.in_features

    @property
    def parts(self) -> Nf4Weight:
        """The quantized matrix (out, in)."""
        return Nf4Weight(self.indices, self.absmax, self.scales, self.pairs)

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized matrix (out, in) float32, computed at each call: writing to it changes nothing."""
        return dequantize(self.parts, (self.out_features, self.in_features), torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out)"""
        dtype = autocast_dtype(x)
        y = _Product.apply(x.to(dtype), (self.out_features, self.in_features), *self.parts)
        return y if self.bias is None else y + self.bias.to(dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _Product(torch.autograd.Function):
    """y = x·Wᵀ and dx = dy·W. W is frozen, so x is not kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: tuple[int, int], *parts: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out)"""
        ctx.save_for_backward(*parts)
        ctx.shape = shape
        return _product(x, parts, shape, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """grad (..., out) -> dx (..., in)"""
        parts = ctx.saved_tensors  # read once: activation checkpointing doesn't allow a second time
        return _product(grad, parts, ctx.shape, True), None, *(None for _ in parts)


def _product(x: torch.Tensor, parts: Sequence[torch.Tensor], shape: Sequence[int], back: bool) -> torch.Tensor:
    """x (..., in)·Wᵀ -> (..., out), or with `back` x (..., out)·W -> (..., in)."""
    if torch.compiler.is_compiling():
        return _opaque_product(x, parts, shape, back)
    weight = dequantize(Nf4Weight(*parts), shape, x.dtype)
    return x @ weight if back else F.linear(x, weight)


# Opaque to the compiler: it would see that both passes compute the same matrix, and keep it from one to the other.
_opaque_product = torch.library.custom_op("mini_chat_gpt::nf4_product", _product, mutates_args=())


@_opaque_product.register_fake
def _(x: torch.Tensor, parts: Sequence[torch.Tensor], shape: Sequence[int], back: bool) -> torch.Tensor:
    """x (..., in) -> (..., out), or with `back` the reverse."""
    return x.new_empty(*x.shape[:-1], shape[1] if back else shape[0])
