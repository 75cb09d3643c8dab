"""One token of one row through a model of the Llama family: the inner loop of a reply.

Between two matrix products there are only a few hundred numbers to add, rotate or scale. A call into PyTorch takes longer
than that arithmetic, a call into numpy a fraction of it. So this module computes with numpy, on the same memory. In a model
of 15 M parameters that saves a third of the time per token. cpu_model.py does everything else: several rows, prompts, other
architectures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from mini_chat_gpt.common.config_fields import ANY, SIZES, Implemented, unsupported_fields
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.generation.cpu_weights import PackedBlock, Product
from mini_chat_gpt.layers import RMSNorm
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops.kv_cache import KVCache

IMPLEMENTED: Implemented = SIZES | dict.fromkeys(
    ("norm_eps", "rope_theta", "rope_scaling", "attention_scale", "bias", "qkv_bias", "mlp_bias", "tie_embeddings"), ANY
)
"""Fields of `GPTConfig`; models in which another one differs from its default are left to cpu_model.py."""


def can_decode_single_tokens(config: GPTConfig) -> bool:
    return not unsupported_fields(config, IMPLEMENTED)


@dataclass(frozen=True)
class _Layer:
    norm_weight: np.ndarray
    qkv: Product
    out: Product
    mlp_norm_weight: np.ndarray
    gate_up: Product
    down: Product


class SingleToken:
    """A `GPT` for which `can_decode_single_tokens` holds, with the packed products of its blocks."""

    def __init__(self, model: GPT, blocks: Sequence[PackedBlock]) -> None:
        config, rotary = model.config, model.rotary
        assert can_decode_single_tokens(config)
        assert rotary is not None
        self.n_head, self.n_kv_head, self.eps = config.n_head, config.kv_heads, config.norm_eps
        self.scale = config.attention_scale if config.attention_scale is not None else config.head_size**-0.5
        self.embedding = _array(model.embed_tokens.weight)
        cos, sin = _array(rotary.cos), _array(rotary.sin)  # (context, D/2)
        # A head's halves (2, D/2) are rotated to halves · cos + (second, first half) · sin.
        self.cos, self.sin = np.stack((cos, cos), axis=1), np.stack((-sin, sin), axis=1)
        self.norm_weight = _array(cast(RMSNorm, model.norm).weight)
        self.layers = [_layer(packed) for packed in blocks]

    def __call__(self, token_id: int, cache: KVCache) -> torch.Tensor:
        """The token's normalized final state (1, C). Its keys and values are appended to the cache's only row.

        Raises ValueError where the cache is full.
        """
        position = cache.lengths[0]
        if position >= cache.max_length:
            raise ValueError(f"the cache holds {cache.max_length} tokens, {position + 1} are needed")
        table = cache.table.numpy()
        x = self.embedding[token_id].copy()  # (C,)
        for layer, keys_values in zip(self.layers, table[:, 0], strict=True):
            x += self._attention(layer, self._norm(x, layer.norm_weight), keys_values, position)
            x += _mlp(layer, self._norm(x, layer.mlp_norm_weight))
        return self._norm(x, self.norm_weight)

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> torch.Tensor:
        """RMSNorm of x (C,), as (1, C)."""
        return torch.from_numpy((x * (weight * (1 / math.sqrt(float(np.dot(x, x)) / len(x) + self.eps))))[None])

    def _attention(self, layer: _Layer, x: torch.Tensor, keys_values: np.ndarray, position: int) -> np.ndarray:
        """What the block's attention adds, (C,). x (1, C); keys_values (2·Hkv, max_length, D) of the layer."""
        n_head, n_kv = self.n_head, self.n_kv_head
        qkv = layer.qkv(x).numpy().reshape(n_head + 2 * n_kv, -1)  # (H + 2·Hkv, D)
        halves = qkv[: n_head + n_kv].reshape(n_head + n_kv, 2, -1)
        rotated = halves * self.cos[position]
        rotated += halves[:, ::-1] * self.sin[position]
        rotated = rotated.reshape(n_head + n_kv, -1)
        keys_values[:n_kv, position], keys_values[n_kv:, position] = rotated[n_head:], qkv[n_head + n_kv :]
        keys, values = keys_values[:n_kv, : position + 1], keys_values[n_kv:, : position + 1]  # (Hkv, S, D)
        queries = (rotated[:n_head] * self.scale).reshape(n_kv, n_head // n_kv, -1)
        scores = np.matmul(queries, keys.transpose(0, 2, 1))  # (Hkv, H / Hkv, S)
        scores -= np.maximum.reduce(scores, axis=2, keepdims=True)
        np.exp(scores, out=scores)
        heads = np.matmul(scores, values)  # (Hkv, H / Hkv, D)
        heads /= np.add.reduce(scores, axis=2, keepdims=True)
        added: np.ndarray = layer.out(torch.from_numpy(heads.reshape(1, -1))).numpy()[0]
        return added


def _layer(packed: PackedBlock) -> _Layer:
    block = packed.block
    assert packed.gate_up is not None
    norms = cast(RMSNorm, block.input_layernorm), cast(RMSNorm, block.post_attention_layernorm)
    norm_weight, mlp_norm_weight = (_array(norm.weight) for norm in norms)
    return _Layer(norm_weight, packed.qkv, packed.out, mlp_norm_weight, packed.gate_up, packed.down)


def _mlp(layer: _Layer, x: torch.Tensor) -> np.ndarray:
    """down(silu(gate) · up) of x (1, C), (C,); silu(z) = z · (1 + tanh(z / 2)) / 2, which never overflows."""
    gate_up = layer.gate_up(x).numpy()[0]
    gate, up = gate_up[: len(gate_up) // 2], gate_up[len(gate_up) // 2 :]
    inside = np.tanh(gate * np.float32(0.5))
    inside += 1
    inside *= gate
    inside *= up
    inside *= np.float32(0.5)
    added: np.ndarray = layer.down(torch.from_numpy(inside[None])).numpy()[0]
    return added


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()
