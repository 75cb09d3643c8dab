"""Attention behind one interface: `attention(q, k, v, layout)`.

A *layout* says which query may look at which key; blocks pass it on without looking inside, so a new way of batching is
a new layout and a new branch here, never a change to the model. Queries are (B, H, T, D), keys and values (B, Hkv, T, D)
with H a multiple of Hkv (grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245); the result is (B, H, T, D).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Causal:
    """Every row of the batch is one sequence; token t sees tokens 0..t."""


@dataclass(frozen=True)
class Group:
    """Neighbouring examples of similar length, padded to the longest of them for the attention product alone."""

    start: int  # first token of the group in the flat row
    stop: int
    n: int  # examples
    longest: int
    slots: torch.Tensor | None  # where each token goes in the padded (n · longest) table; None: nothing to pad


@dataclass(frozen=True)
class Flat:
    """Examples end to end in a single row (B = 1); token t sees the tokens of its own example up to itself.

    offsets (0, 2, 5):   1 . . . .
                         1 1 . . .
                         . . 1 . .
                         . . 1 1 .
                         . . 1 1 1
    """

    offsets: tuple[int, ...]
    longest: int
    groups: tuple[Group, ...] = field(repr=False)  # computed once a batch, shared by all layers

    @classmethod
    def from_offsets(cls, offsets: tuple[int, ...], device: torch.device | str = "cpu") -> Flat:
        lengths = [stop - start for start, stop in pairwise(offsets)]
        groups, first = [], 0
        for last in range(1, len(lengths) + 1):
            together = lengths[first : last + 1]
            alike = min(together) >= LEAST_FILL * max(together) and len(together) * max(together) <= MOST_TOKENS
            if last == len(lengths) or not alike:
                groups.append(_group(offsets[first], lengths[first:last], device))
                first = last
        return cls(offsets, max(lengths), tuple(groups))


# Examples are padded together while the shortest has this part of the longest one's length and they stay small: fewer
# calls against wasted work and products that no longer fit the cache. Measured on a CPU with examples of 60-500 tokens.
LEAST_FILL = 0.8
MOST_TOKENS = 1024
ROUND_TO = 32  # lengths are rounded up to this, so that kernels prepared for one shape serve again


def _group(start: int, lengths: list[int], device: torch.device | str) -> Group:
    n, total = len(lengths), sum(lengths)
    longest = -(-max(lengths) // ROUND_TO) * ROUND_TO
    slots = None
    if n * longest != total:
        table = torch.arange(n * longest).view(n, longest)
        slots = table[torch.arange(longest) < torch.tensor(lengths)[:, None]].to(device)
    return Group(start, start + total, n, longest, slots)


class KVCache:
    """Keys and values already computed, preallocated: one (B, Hkv, max_length, D) pair per layer.

    `lengths[b]` tokens of row b are filled. Attention reads only up to the longest filled row. The cache is updated in
    place by `Cached` layouts and moved on by `advance`.
    """

    def __init__(
        self,
        n_layer: int,
        batch_size: int,
        n_kv_head: int,
        max_length: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (n_layer, batch_size, n_kv_head, max_length, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.max_length = max_length
        self.lengths = [0] * batch_size

    def advance(self, n_tokens: list[int]) -> None:
        """Count `n_tokens[b]` new tokens of row b as filled; what lies beyond (padding of a prefill) is overwritten next."""
        self.lengths = [length + new for length, new in zip(self.lengths, n_tokens, strict=True)]

    def keep_rows(self, rows: list[int]) -> None:
        """Keep these rows of the batch only: finished replies leave."""
        index = torch.tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
        self.lengths = [self.lengths[row] for row in rows]

    def part(self, start: int, stop: int) -> KVCache:
        """Rows start..stop−1 as a cache of their own on the same memory; it counts for itself how far they are filled."""
        part = copy(self)
        part.keys, part.values = self.keys[:, start:stop], self.values[:, start:stop]
        part.lengths = self.lengths[start:stop]
        return part

    def truncate(self, row: int, length: int) -> None:
        """Forget what stands in `row` from `length` on."""
        self.lengths[row] = min(self.lengths[row], length)


@dataclass(frozen=True)
class Cached:
    """T new tokens a row, after what the cache holds: new token i of row b sees the cached ones and new ones 0..i."""

    cache: KVCache
    starts: tuple[int, ...]  # filled length of each row before the new tokens
    table: torch.Tensor = field(repr=False)  # the same as (B, 1) on the cache's device, made once for all layers

    @classmethod
    def after(cls, cache: KVCache) -> Cached:
        starts = tuple(cache.lengths)
        return cls(cache, starts, torch.tensor(starts, device=cache.keys.device)[:, None])


Layout = Causal | Flat | Cached


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
    if isinstance(layout, Flat):
        return _flat(q, k, v, layout, scale, window)
    if isinstance(layout, Cached):
        return _cached(q, k, v, layout, layer, scale, window)
    return _sdpa(q, k, v, _causal_mask(q.shape[2], window, q.device), scale)


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | str | None, scale: float | None
) -> torch.Tensor:
    """PyTorch's kernel; `mask` is a bool tensor, "causal", or None (all keys visible)."""
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, str):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


def _causal_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | str:
    if window is None or window >= length:
        return "causal"
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance >= 0) & (distance < window)


def _flat(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Flat, scale: float | None, window: int | None
) -> torch.Tensor:
    """Group by group; padding stands behind each example, where the causal mask hides it by itself."""
    product = _bf16_products if q.device.type == "cpu" and q.dtype == torch.bfloat16 else _sdpa_heads_first
    sizes = [group.stop - group.start for group in layout.groups]
    outs = []
    for group, *parts in zip(layout.groups, *(part[0].split(sizes, dim=1) for part in (q, k, v)), strict=True):
        gq, gk, gv = (_pad(part, group) for part in parts)
        out = product(gq, gk, gv, _causal_mask(group.longest, window, q.device), scale).flatten(1, 2)
        outs.append(out if group.slots is None else out.index_select(1, group.slots))
    return torch.cat(outs, dim=1).unsqueeze(0)  # (1, H, T, D)


def _pad(part: torch.Tensor, group: Group) -> torch.Tensor:
    """(H, T of the group, D) -> (H, N, longest, D), zeros where an example is shorter."""
    n_head, _, head_dim = part.shape
    if group.slots is not None:
        part = part.new_zeros(n_head, group.n * group.longest, head_dim).index_copy(1, group.slots, part)
    return part.view(n_head, group.n, group.longest, head_dim)


def _sdpa_heads_first(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | str, scale: float | None
) -> torch.Tensor:
    return _sdpa(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), mask, scale).transpose(0, 1)


def _bf16_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | str, scale: float | None
) -> torch.Tensor:
    """Attention as two plain products, (H, N, T, D) all through.

    On a CPU PyTorch's fused kernel is slower in bf16 than in float32; this is twice as fast. Heads that share keys and
    values are laid under each other as one taller product.
    """
    n_head, n, length, size = q.shape
    n_kv = k.shape[0]
    times = n_head // n_kv
    queries = q.view(n_kv, times, n, length, size).transpose(1, 2).reshape(n_kv * n, times * length, size)
    keys, values = k.reshape(n_kv * n, length, size), v.reshape(n_kv * n, length, size)
    bias = _causal_bias(length, q.device) if isinstance(mask, str) else _bias(mask)
    scale = scale if scale is not None else size**-0.5
    with torch.autocast(q.device.type, enabled=False):
        scores = torch.baddbmm(bias.repeat(times, 1) if times > 1 else bias, queries, keys.mT, alpha=scale)
        out = torch.bmm(scores.softmax(dim=-1), values)
    return out.view(n_kv, n, times, length, size).transpose(1, 2).reshape(n_head, n, length, size)


def _bias(mask: torch.Tensor) -> torch.Tensor:
    """bf16: 0 where the bool mask allows a look, −inf elsewhere."""
    return torch.zeros(mask.shape, dtype=torch.bfloat16, device=mask.device).masked_fill(~mask, float("-inf"))


@lru_cache(maxsize=32)  # lengths are rounded, so that few are ever needed
def _causal_bias(length: int, device: torch.device) -> torch.Tensor:
    return _bias(torch.ones(length, length, dtype=torch.bool, device=device).tril())


def _cached(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Cached,
    layer: int,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    cache, starts, n_new = layout.cache, layout.starts, q.shape[2]
    filled = max(starts) + n_new
    if filled > cache.max_length:
        raise ValueError(f"the cache holds {cache.max_length} tokens, {filled} are needed")
    keys, values = cache.keys[layer], cache.values[layer]
    if len(set(starts)) == 1:
        keys[:, :, starts[0] : filled], values[:, :, starts[0] : filled] = k, v
    else:
        rows = torch.arange(len(starts), device=keys.device)[:, None]
        places = layout.table + torch.arange(n_new, device=keys.device)  # (B, T)
        keys[rows, :, places] = k.transpose(1, 2).to(keys.dtype)  # (B, T, Hkv, D)
        values[rows, :, places] = v.transpose(1, 2).to(values.dtype)
    first = max(0, min(starts) + 1 - window) if window else 0  # keys that no query can reach any more
    keys, values = keys[:, :, first:filled], values[:, :, first:filled]
    mask = _cached_mask(layout, n_new, first, filled, window)
    return _sdpa(q, keys.to(q.dtype), values.to(q.dtype), mask, scale)


def _cached_mask(layout: Cached, n_new: int, first: int, filled: int, window: int | None) -> torch.Tensor | str | None:
    """(B, 1, n_new, filled − first) bool, or a shortcut where every row is alike."""
    starts, device = layout.starts, layout.table.device
    alike = len(set(starts)) == 1
    if alike and n_new == 1:
        return None  # `first` has already cut away what a window hides
    if alike and starts[0] == 0 and (window is None or window >= n_new):
        return "causal"
    queries = layout.table[:, :, None] + torch.arange(n_new, device=device)[None, :, None]
    keys = torch.arange(first, filled, device=device)[None, None, :]
    visible = (keys <= queries) if window is None else (keys <= queries) & (keys > queries - window)
    return visible[:, None]
