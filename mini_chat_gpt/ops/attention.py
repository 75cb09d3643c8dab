"""Attention behind one interface: `attention(q, k, v, layout)`.

A *layout* says which query may look at which key; blocks pass it on without looking inside, so a new way of batching is
a new layout and a new branch here, never a change to the model. Queries are (B, H, T, D), keys and values (B, Hkv, T, D)
with H a multiple of Hkv (grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245); the result is (B, H, T, D).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mini_chat_gpt.ops.kv_cache import Cached, KVCache, cached
from mini_chat_gpt.ops.packed_layout import Packed, flat
from mini_chat_gpt.ops.products import causal_mask, sdpa

__all__ = ["Cached", "Causal", "KVCache", "Layout", "Packed", "attention"]


@dataclass(frozen=True)
class Causal:
    """Every row of the batch is one sequence; token t sees tokens 0..t."""


Layout = Causal | Packed | Cached


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    *,
    layer: int = 0,
    scale: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """softmax(q·kᵀ·scale)·v over the pairs that `layout` allows (Vaswani et al. 2017, arXiv:1706.03762).

    q (B, H, T, D); k, v (B, Hkv, T, D). `scale` defaults to 1/√D. With `window` w a token sees itself and the w − 1 tokens
    before it. `layer` says which slice of a cache is meant. Returns (B, H, T, D).
    """
    if isinstance(layout, Packed):
        return flat(q, k, v, layout, scale, window)
    if isinstance(layout, Cached):
        return cached(q, k, v, layout, layer, scale, window)
    return sdpa(q, k, v, causal_mask(q.shape[2], window, q.device), scale)
