"""The product at the heart of attention, softmax(q·kᵀ·scale)·v, and its masks."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F


def sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | str | None, scale: float | None
) -> torch.Tensor:
    """PyTorch's kernel; `mask` is a bool tensor, "causal", or None (all keys visible)."""
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, str):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


def causal_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | str:
    if window is None or window >= length:
        return "causal"
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance >= 0) & (distance < window)


# Queries are taken so many at a time: the scores of a block stay in the processor's cache, and keys behind it are left out.
QUERIES_AT_ONCE = {torch.float32: 64, torch.bfloat16: 128}


def causal_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, window: int | None
) -> torch.Tensor:
    """Attention of the last T of S tokens over all before them as plain products: q (B, H, T, D); k, v (B, Hkv, S, D).

    On a CPU this is faster than PyTorch's fused kernel, in bf16 twice as fast. Heads that share keys and values are laid
    under each other as one taller product.
    """
    b, n_head, length, size = q.shape
    n_kv, older = k.shape[1], k.shape[2] - length
    times = n_head // n_kv
    q = (q * (scale if scale is not None else size**-0.5)).reshape(b * n_kv, times, length, size)
    k, v = k.reshape(b * n_kv, -1, size), v.reshape(b * n_kv, -1, size)
    at_once, outs = QUERIES_AT_ONCE.get(q.dtype, 128), []
    for begin in range(0, length, at_once):
        end = min(begin + at_once, length)
        first = max(0, older + begin + 1 - window) if window else 0
        queries = q[:, :, begin:end].reshape(b * n_kv, -1, size)
        keys, values = k[:, first : older + end], v[:, first : older + end]
        scores = torch.bmm(queries, keys.mT).unflatten(1, (times, -1))
        hidden = _hidden_keys(end - begin, keys.shape[1], window)
        scores[..., -hidden.shape[1] :] += hidden.to(scores.dtype)
        outs.append(torch.bmm(scores.softmax(dim=-1).flatten(1, 2), values).unflatten(1, (times, -1)))
    return torch.cat(outs, dim=2).reshape(b, n_head, length, size)


@lru_cache(maxsize=32)
def _hidden_keys(n_queries: int, n_keys: int, window: int | None) -> torch.Tensor:
    """(n_queries, up to n_keys), the keys that not all of these last tokens see: −inf for those that one doesn't, else 0."""
    if window is None:
        n_keys = n_queries
    queries, keys = torch.arange(n_queries)[:, None] + n_keys - n_queries, torch.arange(n_keys)[None, :]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
