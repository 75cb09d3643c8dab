"""Weights in the formats that a CPU multiplies fastest with a few rows, as in generation: x·Wᵀ (+ b) for x (R, K).

A token that is generated alone needs every weight once, so memory bandwidth limits the speed, not arithmetic. PyTorch's
ordinary product reads float32 weights at a third of that bandwidth. FBGEMM, PyTorch's library for x86, reads packed 16- and
8-bit weights at nearly full bandwidth, and the result of a row doesn't depend on the other rows. (Without AVX-512 the result
with 16-bit weights depends on the number of rows, by the rounding error of float32.)

float32   the weights themselves for many rows; for few rows each weight is the sum of two half-precision numbers, which
          together hold the 24 bits of a float32. As exact as the ordinary product, 4 more bytes per weight.
bf16      half precision for few rows (float32 activations), bfloat16 products for many; 4 more bytes per weight.
int8      8-bit weights with a scale for each output; activations in 14 bits with a scale for each row, before the head and
          small matrices in 8 bits (or bfloat16); 1 more byte per weight, 2 in small matrices.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.model import Block

Weights = Literal["float32", "bf16", "int8"]
Product = Callable[[torch.Tensor], torch.Tensor]  # (R, K) -> (R, N), float32; with bf16 weights and many rows bfloat16

FEW_ROWS = 8  # up to this many rows two halves are faster (float32)
VERY_FEW_ROWS = 4  # up to this many rows PyTorch's own kernel for small 8-bit matrices is faster (int8)
MANY_ROWS = 32  # above this many rows bfloat16 products are faster (bf16)
SMALL = 2**19  # matrices of up to this many weights are read faster by PyTorch's own kernel than by FBGEMM's (int8)
LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class PackedBlock:
    """The matrix products of a `Block`, packed; layers that read the same input are one product.

    Both decoders, cpu_model.py and cpu_single_token.py, compute with it.
    """

    block: Block
    qkv: Product
    out: Product
    gate_up: Product | None  # of an MLP with a gate
    up: Product | None  # of one without
    down: Product

    @classmethod
    def of(cls, block: Block, pack: Callable[[Sequence[nn.Linear]], Product]) -> PackedBlock:
        attention, mlp = block.self_attn, block.mlp
        return cls(
            block,
            qkv=pack([attention.q_proj, attention.k_proj, attention.v_proj]),
            out=pack([attention.o_proj]),
            gate_up=None if mlp.gate_proj is None else pack([mlp.gate_proj, mlp.up_proj]),
            up=pack([mlp.up_proj]) if mlp.gate_proj is None else None,
            down=pack([mlp.down_proj]),
        )


def has_packed_products() -> bool:
    """Whether this PyTorch and this processor have FBGEMM's kernels (x86 with AVX2 or more)."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def product_of(layers: Sequence[nn.Linear], weights: Weights, few_rows: bool = True, head: bool = False) -> Product:
    """The product of layers that read the same input, their outputs concatenated: (R, K) -> (R, N).

    `few_rows` packs float32 weights, too. The outputs of the `head` are compared by their last digits, so its products are
    not rounded to bfloat16. Raises UserError where the weights need kernels that are missing.
    """
    biases = [layer.bias for layer in layers if layer.bias is not None]
    bias = torch.cat([bias.detach() for bias in biases]) if biases else None
    matrices = [layer.weight.detach() for layer in layers]
    if weights == "float32":
        plain = Plain(matrices, bias)
        packed = few_rows and has_packed_products()
        return ByRows(TwoHalves(matrices, bias), FEW_ROWS, plain) if packed else plain
    if not has_packed_products():
        raise UserError(f"{weights} weights need FBGEMM, which this PyTorch or processor doesn't support; use float32.")
    if weights == "bf16":
        return Bf16(matrices, bias)
    small = not head and SmallInt8.fits(matrices)
    product = Int8(matrices, bias, fine=not (head or small))
    return ByRows(SmallInt8(matrices, bias), VERY_FEW_ROWS, product) if small else product


class Plain:
    """The layers' own float32 weights, not copied."""

    def __init__(self, matrices: Sequence[torch.Tensor], bias: torch.Tensor | None) -> None:
        self.matrices, self.bias = list(matrices), bias
        self.sizes = [len(matrix) for matrix in matrices]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.matrices) == 1:
            return F.linear(x, self.matrices[0], self.bias)
        out = x.new_empty(len(x), sum(self.sizes))
        for matrix, columns in zip(self.matrices, out.split(self.sizes, dim=1), strict=True):
            torch.mm(x, matrix.t(), out=columns)
        return out if self.bias is None else out.add_(self.bias)


class TwoHalves:
    """W = (H + L / 4096) · unit, H and L in half precision: H is W / unit rounded to 11 bits, L the next 12 or more."""

    SHIFT = 4096.0

    def __init__(self, matrices: Sequence[torch.Tensor], bias: torch.Tensor | None) -> None:
        weight = torch.cat(list(matrices))
        largest = float(weight.abs().max())
        # A power of two that brings the weights into the range of half precision.
        self.unit = 1.0 if 2**-6 < largest < 2**14 else 2.0 ** math.frexp(largest)[1]
        weight.div_(self.unit)
        high = weight.half().float()
        low = weight.sub_(high).mul_(self.SHIFT)
        self.size, self.bias = len(weight), bias
        self.packed = torch.ops.quantized.linear_prepack_fp16(torch.cat((high, low)), None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.ops.quantized.linear_dynamic_fp16.default(x, self.packed)  # finding the overload takes a while
        out = torch.add(both[:, : self.size], both[:, self.size :], alpha=1 / self.SHIFT)
        if self.unit != 1:
            out.mul_(self.unit)
        return out if self.bias is None else out.add_(self.bias)


class ByRows:
    """One product for up to `limit` rows, another for more."""

    def __init__(self, few: Product, limit: int, more: Product) -> None:
        self.few, self.limit, self.more = few, limit, more

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.few(x) if len(x) <= self.limit else self.more(x)


class Bf16:
    """Half precision, which has three more bits than bfloat16, for few rows; bfloat16 products and results for many."""

    def __init__(self, matrices: Sequence[torch.Tensor], bias: torch.Tensor | None) -> None:
        weight = torch.cat(list(matrices))
        self.weight, self.bias = weight.bfloat16(), None if bias is None else bias.bfloat16()
        weight.clamp_(-LARGEST_HALF, LARGEST_HALF)
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > MANY_ROWS:
            return F.linear(x.bfloat16(), self.weight, self.bias)
        out: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(x.float(), self.packed)
        return out


class Int8:
    """Weights of 8 bits with a scale for each output; activations as integers with a scale for each row.

    The kernel multiplies integers. Activations of 7 bits would be noticeably rounded, so a second integer (`fine`) holds
    the rest of the first. For few rows this costs little, as the weights are read once for both. On a processor with exact
    sums (VNNI) a single integer may have 8 bits, which is enough for a head.
    """

    def __init__(self, matrices: Sequence[torch.Tensor], bias: torch.Tensor | None, fine: bool = True) -> None:
        weight = torch.cat(list(matrices))
        scales = (weight.abs().amax(dim=1) / 127).clamp_(min=1e-30).double()
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias, self.fine = bias, fine or not torch.cpu._is_vnni_supported()
        self.most = 63 if self.fine else 127  # without VNNI two products of 7 by 8 bits are added in 16
        with _fbgemm(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            self.packed: Any = torch.ops.quantized.linear_prepack(rounded, None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.from_numpy(self._single(x.numpy()[0])[None]) if len(x) == 1 else self._several(x)
        return out if self.bias is None else out.add_(self.bias)

    def _several(self, x: torch.Tensor) -> torch.Tensor:
        n = len(x)
        unit = x.abs().amax(dim=1, keepdim=True).div_(self.most).clamp_(min=1e-30)  # (R, 1)
        steps = x / unit
        if not self.fine:
            return self._kernel(steps).mul_(unit)
        halves = x.new_empty(2 * n, x.shape[1])
        high = torch.round(steps, out=halves[:n])
        torch.sub(steps, high, out=halves[n:]).mul_(2 * self.most)
        both = self._kernel(halves)
        return both[:n].add_(both[n:], alpha=0.5 / self.most).mul_(unit)

    def _single(self, x: np.ndarray) -> np.ndarray:
        """The same for one row, with numpy, whose calls take a fraction of the time."""
        unit = np.float32(max(float(np.abs(x).max()) / self.most, 1e-30))
        steps: np.ndarray = x / unit
        if not self.fine:
            return self._kernel(torch.from_numpy(steps[None])).numpy()[0] * unit
        halves = np.empty((2, len(x)), dtype=np.float32)
        np.rint(steps, out=halves[0])
        np.subtract(steps, halves[0], out=halves[1])
        halves[1] *= 2 * self.most
        high, low = self._kernel(torch.from_numpy(halves)).numpy()
        low *= 0.5 / self.most
        high += low
        high *= unit
        return high

    def _kernel(self, steps: torch.Tensor) -> torch.Tensor:
        # The input is in whole steps (or is rounded to them): a scale of 1, and a zero point that makes them positive.
        kernel = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        out: torch.Tensor = kernel(steps, 1.0, self.most + 1, self.packed)
        return out


class SmallInt8:
    """Weights of 8 bits with a scale for each output; activations and results in bfloat16."""

    @staticmethod
    def fits(matrices: Sequence[torch.Tensor]) -> bool:
        """Whether this kernel is faster, and safe: it reads beyond matrices whose sides are not multiples of 32."""
        sides = sum(map(len, matrices)), matrices[0].shape[1]
        return math.prod(sides) <= SMALL and not any(side % 32 for side in sides)

    def __init__(self, matrices: Sequence[torch.Tensor], bias: torch.Tensor | None) -> None:
        weight = torch.cat(list(matrices))
        scales = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp_(min=1e-30)
        self.rounded, self.bias = (weight / scales).round_().to(torch.int8), bias
        self.scales = scales[:, 0].bfloat16()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.ops.aten._weight_int8pack_mm(x.bfloat16(), self.rounded, self.scales).float()
        return out if self.bias is None else out.add_(self.bias)


@contextmanager
def _fbgemm() -> Iterator[None]:
    """Pack for FBGEMM: PyTorch may choose another library by default, whose results depend on the other rows."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
