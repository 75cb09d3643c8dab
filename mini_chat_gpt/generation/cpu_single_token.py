"""One token of one row through a model of the Llama family: the innermost step of a reply.

Between two products there are but a few hundred numbers to add, turn or scale. A call into PyTorch takes longer than that
arithmetic, a call into numpy a fraction of it; so here they are numpy's, on the same memory. In a model of 15 M parameters
that saves a third of the time a token. Everything else (several rows, prompts, other architectures) is decoding_model.py's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.generation.cpu_weights import Product
from mini_chat_gpt.model import GPT, RMSNorm
from mini_chat_gpt.ops.kv_cache import KVCache

if TYPE_CHECKING:
    from mini_chat_gpt.generation.cpu_model import DecodingBlock


@dataclass(frozen=True)
class _Layer:
    gain: np.ndarray
    qkv: Product
    out: Product
    mlp_gain: np.ndarray
    gate_up: Product
    down: Product


def is_llama(config: GPTConfig) -> bool:
    """Whether a model is of the family that this module knows."""
    plain = not (config.qk_norm or config.windows)
    return plain and (config.norm, config.position, config.activation) == ("rmsnorm", "rope", "swiglu")


class SingleToken:
    """A `GPT` for which `is_llama` holds, with the packed products of its blocks."""

    def __init__(self, model: GPT, blocks: list[DecodingBlock]) -> None:
        config, rotary = model.config, model.rotary
        assert is_llama(config)
        assert rotary is not None
        self.n_head, self.n_kv_head, self.eps = config.n_head, config.kv_heads, config.norm_eps
        self.scale = config.attention_scale if config.attention_scale is not None else config.head_size**-0.5
        self.embedding = _array(model.embed_tokens.weight)
        cos, sin = _array(rotary.cos), _array(rotary.sin)  # (context, D/2)
        # A head's halves (2, D/2) are turned to halves · cos + (second, first half) · sin.
        self.cos, self.sin = np.stack((cos, cos), axis=1), np.stack((-sin, sin), axis=1)
        self.gain = _array(cast(RMSNorm, model.norm).weight)
        self.layers = []
        for block, packed in zip(model.layers, blocks, strict=True):
            assert packed.gate_up is not None
            norms = cast(RMSNorm, block.input_layernorm), cast(RMSNorm, block.post_attention_layernorm)
            gains = [_array(norm.weight) for norm in norms]
            self.layers.append(_Layer(gains[0], packed.qkv, packed.out, gains[1], packed.gate_up, packed.down))

    def __call__(self, token_id: int, cache: KVCache) -> torch.Tensor:
        """The token's normalised state (1, C); its keys and values are written behind those of the cache's only row.

        Raises ValueError where the cache is full.
        """
        at = cache.lengths[0]
        if at >= cache.max_length:
            raise ValueError(f"the cache holds {cache.max_length} tokens, {at + 1} are needed")
        table = cache.table.numpy()
        cos, sin = self.cos[at], self.sin[at]
        x = self.embedding[token_id].copy()  # (C,)
        for layer, heads in zip(self.layers, table[:, 0], strict=True):
            x += self._attention(layer, self._normed(x, layer.gain), heads, at, cos, sin)
            x += _mlp(layer, self._normed(x, layer.mlp_gain))
        return self._normed(x, self.gain)

    def _normed(self, x: np.ndarray, gain: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((x * (gain * (1 / math.sqrt(float(np.dot(x, x)) / len(x) + self.eps))))[None])

    def _attention(
        self, layer: _Layer, x: torch.Tensor, heads: np.ndarray, at: int, cos: np.ndarray, sin: np.ndarray
    ) -> np.ndarray:
        """What the block's attention adds, (C,). heads (2·Hkv, max_length, D): keys and values of the layer."""
        n_head, n_kv = self.n_head, self.n_kv_head
        qkv = layer.qkv(x).numpy().reshape(n_head + 2 * n_kv, -1)  # (H + 2·Hkv, D)
        halves = qkv[: n_head + n_kv].reshape(n_head + n_kv, 2, -1)
        turned = halves * cos
        turned += halves[:, ::-1] * sin
        turned = turned.reshape(n_head + n_kv, -1)
        heads[:n_kv, at], heads[n_kv:, at] = turned[n_head:], qkv[n_head + n_kv :]
        keys, values = heads[:n_kv, : at + 1], heads[n_kv:, : at + 1]  # (Hkv, S, D)
        queries = (turned[:n_head] * self.scale).reshape(n_kv, n_head // n_kv, -1)
        scores = np.matmul(queries, keys.transpose(0, 2, 1))  # (Hkv, H / Hkv, S)
        scores -= np.maximum.reduce(scores, axis=2, keepdims=True)
        np.exp(scores, out=scores)
        mixed = np.matmul(scores, values)  # (Hkv, H / Hkv, D)
        mixed /= np.add.reduce(scores, axis=2, keepdims=True)
        added: np.ndarray = layer.out(torch.from_numpy(mixed.reshape(1, -1))).numpy()[0]
        return added


def _mlp(layer: _Layer, x: torch.Tensor) -> np.ndarray:
    """down(silu(gate) · up), (C,); silu(z) = z · (1 + tanh(z / 2)) / 2, which overflows nowhere."""
    both = layer.gate_up(x).numpy()[0]
    gate, up = both[: len(both) // 2], both[len(both) // 2 :]
    inside = np.tanh(gate * np.float32(0.5))
    inside += 1
    inside *= gate
    inside *= up
    inside *= np.float32(0.5)
    added: np.ndarray = layer.down(torch.from_numpy(inside[None])).numpy()[0]
    return added


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()
