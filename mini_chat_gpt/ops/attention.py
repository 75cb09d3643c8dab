"""Attention behind one interface: `attention(q, k, v, layout)`.

A *layout* says which query sees which key. The model's blocks pass it on unread, so a new way of batching is a new layout
and a new branch here, not a change to the model. Queries are (B, H, T, D), keys and values (B, Hkv, T, D) with H a multiple
of Hkv (grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245). The result is (B, H, T, D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F

from mini_chat_gpt.ops.cpu_attention import blocked_attention, last_tokens_attention, use_blocked_attention
from mini_chat_gpt.ops.kv_cache import Cached, KVCache
from mini_chat_gpt.ops.packed_layout import LENGTH_MULTIPLE, Packed, causal_mask

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
    before it. `layer` selects the slice of a cache. Returns (B, H, T, D).
    """
    if isinstance(layout, Packed):
        return packed_attention(q, k, v, layout, scale, window)
    if isinstance(layout, Cached):
        layout.write(layer, torch.cat((k, v), dim=1))
        return cached_attention(q, layout, layer, scale, window)
    mask = causal_mask(q.shape[2], window, q.device)
    return sdpa(q, k, v, mask, scale, is_causal=mask is None)


def sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    is_causal: bool = False,
) -> torch.Tensor:
    """PyTorch's kernel for q (B, H, T, D); k, v (B, Hkv, S, D); returns (B, H, T, D).

    `mask` is bool (True: visible) or added to the scores, and broadcasts to (B, H, T, S); None shows all keys.
    """
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=grouped)


# Training, validation and scoring: a packed row


def packed_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Packed, scale: float | None, window: int | None
) -> torch.Tensor:
    """Attention within each example of a packed row. q (1, H, T, D); k, v (1, Hkv, T, D) -> (1, H, T, D).

    Device, precision and lengths decide which kernel is used.
    """
    scale = scale if scale is not None else q.shape[-1] ** -0.5
    if use_flash_varlen(q, layout):
        return _flash_varlen(q, k, v, layout, scale, window)
    if use_blocked_attention(q, layout):
        return blocked_attention(q, k, v, layout, scale, window)
    outs = []
    for group in layout.groups:
        # Padding comes after each example, so the causal mask hides it from every real token.
        gq, gk, gv = (group.pad(part[0]).transpose(0, 1) for part in (q, k, v))  # (N, H, T, D)
        mask = group.mask(window, q.device)
        out = sdpa(gq, gk, gv, mask, scale, is_causal=mask is None)
        outs.append(group.unpad(out.transpose(0, 1)))
    return torch.cat(outs, dim=1).unsqueeze(0)


def use_flash_varlen(q: torch.Tensor, layout: Packed) -> bool:
    """Whether PyTorch's flash kernel accepts q (1, H, T, D): on a GPU from Ampere on, in 16 bits, without prefix branches."""
    if q.device.type != "cuda" or q.dtype == torch.float32 or any(layout.prefix_branches):
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def _flash_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Packed, scale: float, window: int | None
) -> torch.Tensor:
    """Nothing is padded: the kernel reads where each example begins (Dao 2023, arXiv:2307.08691).

    q (1, H, T, D); k, v (1, Hkv, T, D) -> (1, H, T, D).
    """
    from torch.nn.attention.varlen import varlen_attn

    # The kernel's choices depend on the longest sequence; rounded it changes less often from batch to batch.
    max_seqlen = -(-layout.max_seqlen // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    queries, keys, values = (part[0].transpose(0, 1) for part in (q, k, v))  # (T, H, D)
    out = varlen_attn(
        queries,
        keys,
        values,
        layout.cu_seqlens_tensor,
        layout.cu_seqlens_tensor,
        max_seqlen,
        max_seqlen,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),  # keys before a query, and after it
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return cast(torch.Tensor, out).transpose(0, 1).unsqueeze(0)


# Generation: new tokens after those in a cache


def on_cpu(q: torch.Tensor) -> bool:
    """Whether q (B, H, T, D) is on a processor, where blocks of queries are faster than PyTorch's kernel."""
    return q.device.type == "cpu"


def cached_attention(
    q: torch.Tensor, layout: Cached, layer: int, scale: float | None, window: int | None
) -> torch.Tensor:
    """Attention of new queries (B, H, T, D), whose keys and values are in the cache already; returns (B, H, T, D)."""
    cache, starts, (b, n_head, n_new, size) = layout.cache, layout.starts, q.shape
    filled = max(starts) + n_new
    first = max(0, min(starts) + 1 - window) if window else 0  # no query sees the keys before this one
    keys_values = cache.table[layer, :, :, first:filled]
    if keys_values.dtype != q.dtype:
        keys_values = keys_values.to(q.dtype)
    keys, values = keys_values.split(cache.n_kv_head, dim=1)  # (B, Hkv, S, D)
    if n_new == 1:
        # Query heads that share keys become several queries of one head: the kernel needn't copy the keys for each.
        # With equal lengths all keys from `first` on are visible.
        mask = None if layout.same_length else layout.mask(1, first, window, q.dtype)
        q = q.reshape(b, cache.n_kv_head, -1, size)
        return sdpa(q, keys, values, mask, scale).reshape(b, n_head, 1, size)
    if layout.same_length and on_cpu(q):
        return last_tokens_attention(q, keys, values, scale, window)
    if layout.same_length and starts[0] == 0 and (window is None or window >= n_new):
        return sdpa(q, keys, values, None, scale, is_causal=True)
    return sdpa(q, keys, values, layout.mask(n_new, first, window, q.dtype), scale)
