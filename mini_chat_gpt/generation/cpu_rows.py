"""One new token for each of several replies of a model of the Llama family on a CPU: the inner loop of the server.

The logits of a reply are the same, bit for bit, whichever other replies are computed with it. Three things make that so:

- Between the matrix products, numpy computes with each number alone, or along one row of contiguous numbers.
- Attention is computed for one reply at a time, over exactly its own keys.
- The products of all replies are one call. A library chooses its kernel by the number of rows, and kernels add in different
  orders. `steady_sizes` finds out for which numbers of rows the results are the same; other batches get rows of zeros.

The arithmetic is that of cpu_single_token.py, which replies to one prompt and needs no rows of padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from mini_chat_gpt.generation.cpu_adapters import AdaptedHead, AdaptedProduct
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.cpu_single_token import can_decode_single_tokens
from mini_chat_gpt.generation.cpu_weights import ByRows, PackedBlock, Product, TwoHalves
from mini_chat_gpt.layers import RMSNorm
from mini_chat_gpt.ops.kv_cache import KVCache

MORE_ROWS = 8
"""Rows beyond the largest batch that are tried to fill it up with."""


class UnsteadyProducts(RuntimeError):
    """The matrix products of this processor compute rows of the same batch in different ways."""


def _for_any_rows(product: Product) -> Product:
    """The product in one form: above a few rows plain float32 products are faster, but they round differently."""
    if isinstance(product, ByRows) and isinstance(product.few, TwoHalves):
        return product.few
    if isinstance(product, AdaptedProduct | AdaptedHead):
        return product.on(_for_any_rows(product.base))
    return product


def steady_sizes(product: Product, n_in: int, max_rows: int) -> set[int]:
    """Numbers of rows, up to a few more than `max_rows`, for which every row of the product has the same result.

    A library divides the rows among kernels for one, two or more rows at once. Equal rows show which were computed alike.
    Raises UnsteadyProducts.
    """
    x = torch.randn(1, n_in, generator=torch.Generator().manual_seed(0))
    results: dict[bytes, set[int]] = {}  # result of a row -> numbers of rows for which every row has this result
    for n in range(1, max_rows + MORE_ROWS + 1):
        rows = product(x.expand(n, -1).contiguous())
        if torch.equal(rows, rows[:1].expand_as(rows)):
            results.setdefault(rows[0].float().numpy().tobytes(), set()).add(n)
    usable = [numbers for numbers in results.values() if max(numbers) >= max_rows]
    if not usable:
        raise UnsteadyProducts(f"no number of rows gives {max_rows} equal rows of a matrix product the same result")
    return max(usable, key=len)


class CPURows:
    """A `CPUInferenceModel` for which `can_decode_rows` holds, for batches of up to `max_rows` replies."""

    def __init__(self, model: CPUInferenceModel, max_rows: int) -> None:
        assert can_decode_rows(model)
        net, config = model.model, model.config
        rotary = net.rotary
        assert rotary is not None
        self.max_rows, self.embed = max_rows, model.embed
        self.n_head, self.n_kv_head, self.eps = config.n_head, config.kv_heads, config.norm_eps
        self.scale = config.attention_scale if config.attention_scale is not None else config.head_size**-0.5
        cos, sin = rotary.cos.numpy(), rotary.sin.numpy()  # (context, D/2)
        # A head's halves (2, D/2) are rotated to halves · cos + (second, first half) · sin.
        self.cos, self.sin = np.stack((cos, cos), axis=1), np.stack((-sin, sin), axis=1)
        self.norm_weight = _weight(net.norm)
        self.layers = [_Layer(block) for block in model.blocks]
        self.head = _for_any_rows(model.head)
        self.sizes = self._steady_sizes()

    def _steady_sizes(self) -> list[int]:
        """For each number of rows, from 0 to `max_rows`, the number of rows to compute instead so that results never change."""
        products = {_kind(number, *one): one for layer in self.layers for number, one in enumerate(layer.products)}
        products[("head",)] = self.head, len(self.norm_weight)
        steady = set.intersection(*(steady_sizes(*one, self.max_rows) for one in products.values()))
        if max(steady, default=0) < self.max_rows:
            raise UnsteadyProducts(f"no number of rows is steady for all products of {self.max_rows} rows")
        return [min(size for size in steady if size >= n) for n in range(self.max_rows + 1)]

    @torch.inference_mode()
    def next_logits(self, ids: Sequence[int], caches: Sequence[KVCache]) -> torch.Tensor:
        """Read ids[b] into caches[b], each of one row, and predict the next token of each, (B, V).

        Raises ValueError where a cache is full.
        """
        positions = [cache.lengths[0] for cache in caches]
        if any(position >= cache.max_length for position, cache in zip(positions, caches, strict=True)):
            raise ValueError("a cache is full")
        x = np.zeros(
            (self.sizes[len(ids)], len(self.norm_weight)), dtype=np.float32
        )  # (R, C), R ≥ B: rows of zeros at the end
        x[: len(ids)] = self.embed(torch.tensor(ids)).numpy()
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]  # (B, 1, 2, D/2)
        tables = [cache.table[:, 0].numpy() for cache in caches]  # of (n_layer, 2·Hkv, max_length, D)
        for number, layer in enumerate(self.layers):
            keys_values = [table[number] for table in tables]
            x += self._attention(layer, self._norm(x, layer.norm_weight), keys_values, positions, cos, sin)
            x += layer.mlp(self._norm(x, layer.mlp_norm_weight))
        for cache in caches:
            cache.advance([1])
        return self.head(torch.from_numpy(self._norm(x, self.norm_weight)))[: len(ids)].float()

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """RMSNorm of x (R, C)."""
        squares = np.add.reduce(x * x, axis=1, keepdims=True)  # (R, 1)
        squares /= x.shape[1]
        squares += np.float32(self.eps)
        out: np.ndarray = x / np.sqrt(squares)
        out *= weight
        return out

    def _attention(
        self,
        layer: _Layer,
        x: np.ndarray,
        keys_values: Sequence[np.ndarray],
        positions: Sequence[int],
        cos: np.ndarray,
        sin: np.ndarray,
    ) -> np.ndarray:
        """What the block's attention adds, (R, C). x (R, C); keys_values[b] (2·Hkv, max_length, D); cos, sin (B, 1, 2, D/2)."""
        b, n_head, n_kv = len(positions), self.n_head, self.n_kv_head
        qkv = multiply(layer.qkv, x)[:b].reshape(b, n_head + 2 * n_kv, -1)  # (B, H + 2·Hkv, D)
        halves = qkv[:, : n_head + n_kv].reshape(b, n_head + n_kv, 2, -1)
        rotated = halves * cos
        rotated += halves[:, :, ::-1] * sin
        qkv[:, : n_head + n_kv] = rotated.reshape(b, n_head + n_kv, -1)
        queries = (qkv[:, :n_head] * np.float32(self.scale)).reshape(b, n_kv, n_head // n_kv, -1)
        heads = np.zeros((len(x), *queries.shape[1:]), dtype=np.float32)  # (R, Hkv, H / Hkv, D)
        for row, (table, position) in enumerate(zip(keys_values, positions, strict=True)):
            table[:, position] = qkv[row, n_head:]
            keys, values = table[:n_kv, : position + 1], table[n_kv:, : position + 1]  # (Hkv, S, D)
            scores = np.matmul(queries[row], keys.transpose(0, 2, 1))  # (Hkv, H / Hkv, S)
            scores -= np.maximum.reduce(scores, axis=2, keepdims=True)
            np.exp(scores, out=scores)
            out = np.matmul(scores, values, out=heads[row])
            out /= np.add.reduce(scores, axis=2, keepdims=True)
        return multiply(layer.out, heads.reshape(len(x), -1))


class _Layer:
    """The weights of a block."""

    def __init__(self, packed: PackedBlock) -> None:
        block = packed.block
        assert packed.gate_up is not None
        self.norm_weight, self.mlp_norm_weight = _weight(block.input_layernorm), _weight(block.post_attention_layernorm)
        self.qkv, self.out = _for_any_rows(packed.qkv), _for_any_rows(packed.out)
        self.gate_up, self.down = _for_any_rows(packed.gate_up), _for_any_rows(packed.down)
        width, n_inner = len(self.norm_weight), block.self_attn.o_proj.in_features
        self.products = (
            (self.qkv, width), (self.out, n_inner), (self.gate_up, width), (self.down, block.mlp.down_proj.in_features)
        )  # fmt: skip

    def mlp(self, x: np.ndarray) -> np.ndarray:
        """down(silu(gate) · up) of x (R, C), (R, C); silu(z) = z · (1 + tanh(z / 2)) / 2, which never overflows."""
        gate_up = multiply(self.gate_up, x)
        size = gate_up.shape[1] // 2
        gate, up = gate_up[:, :size], gate_up[:, size:]
        inside = np.tanh(gate * np.float32(0.5))
        inside += 1
        inside *= gate
        inside *= up
        inside *= np.float32(0.5)
        return multiply(self.down, inside)


def multiply(product: Product, x: np.ndarray) -> np.ndarray:
    """x (R, K) -> (R, N), both float32."""
    out: np.ndarray = product(torch.from_numpy(x)).float().numpy()
    return out


def _kind(number: int, product: Product, n_in: int) -> tuple[object, ...]:
    """Equal for products that the library computes with the same kernels: those of other blocks, but with adapters of the same size."""
    parts = (
        [(part.start, part.stop, len(part.a)) for part in product.parts] if isinstance(product, AdaptedProduct) else []
    )
    return number, type(product), n_in, *parts


def can_decode_rows(model: object) -> bool:
    """Whether `CPURows` can compute this model."""
    return isinstance(model, CPUInferenceModel) and can_decode_single_tokens(model.config)


def _weight(norm: torch.nn.Module) -> np.ndarray:
    weight: np.ndarray = cast(RMSNorm, norm).weight.detach().numpy()
    return weight
