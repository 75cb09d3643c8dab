"""Attention of new tokens over those that a cache holds: what generation uses."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field

import numpy as np
import torch

from mini_chat_gpt.ops.products import causal_products, sdpa


class KVCache:
    """Keys and values already computed, preallocated: for each layer (B, Hkv, max_length, D) of both.

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
        # Keys and values of a layer under each other, so that both are written at once.
        shape = (n_layer, batch_size, 2 * n_kv_head, max_length, head_dim)
        if torch.device(device).type == "cpu" and dtype == torch.float32:
            self.table = torch.from_numpy(np.zeros(shape, dtype=np.float32))  # what isn't filled takes no memory
        else:
            self.table = torch.zeros(shape, device=device, dtype=dtype)
        self.n_kv_head, self.max_length = n_kv_head, max_length
        self.lengths = [0] * batch_size

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def keys(self) -> torch.Tensor:
        """(n_layer, B, Hkv, max_length, D)"""
        return self.table[:, :, : self.n_kv_head]

    @property
    def values(self) -> torch.Tensor:
        """(n_layer, B, Hkv, max_length, D)"""
        return self.table[:, :, self.n_kv_head :]

    def advance(self, n_tokens: list[int]) -> None:
        """Count `n_tokens[b]` new tokens of row b as filled; what lies beyond (padding of a prefill) is overwritten next."""
        self.lengths = [length + new for length, new in zip(self.lengths, n_tokens, strict=True)]

    def keep_rows(self, rows: list[int]) -> None:
        """Keep these rows of the batch only: finished replies leave."""
        self.table = self.table.index_select(1, torch.tensor(rows, device=self.device))
        self.lengths = [self.lengths[row] for row in rows]

    def part(self, start: int, stop: int) -> KVCache:
        """Rows start..stop−1 as a cache of their own on the same memory; it counts for itself how far they are filled."""
        part = copy(self)
        part.table, part.lengths = self.table[:, start:stop], self.lengths[start:stop]
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
    masks: dict[object, torch.Tensor] = field(
        default_factory=dict, repr=False
    )  # likewise, by window and number of tokens

    @classmethod
    def after(cls, cache: KVCache) -> Cached:
        starts = tuple(cache.lengths)
        return cls(cache, starts, torch.tensor(starts, device=cache.device)[:, None])

    def at(self, columns: list[int]) -> Cached:
        """A single token a row, new token columns[b] of row b; all keys and values are in the cache already."""
        starts = tuple(start + column for start, column in zip(self.starts, columns, strict=True))
        return Cached(self.cache, starts, torch.tensor(starts, device=self.table.device)[:, None])

    @property
    def alike(self) -> bool:
        """Whether all rows are filled equally far."""
        return len(set(self.starts)) == 1

    def rows_of(self, by_position: torch.Tensor, n_new: int) -> torch.Tensor:
        """Rows of a table (context, ...) at the positions of the new tokens: (1 or B, n_new, ...).

        A padded row may run past the table; those positions are never read, but must stay within it.
        """
        start = self.starts[0]
        if self.alike and start + n_new <= len(by_position):
            return by_position[None, start : start + n_new]
        positions = self.table + torch.arange(n_new, device=self.table.device)
        return by_position[positions.clamp_(max=len(by_position) - 1)]

    def write(self, layer: int, heads: torch.Tensor) -> None:
        """Put keys and values of the new tokens, under each other as (B, 2·Hkv, T, D), into the cache.

        Raises ValueError where it is too short for them.
        """
        cache, starts, n_new = self.cache, self.starts, heads.shape[2]
        filled = max(starts) + n_new
        if filled > cache.max_length:
            raise ValueError(f"the cache holds {cache.max_length} tokens, {filled} are needed")
        table = cache.table[layer]
        if self.alike:
            table[:, :, starts[0] : filled] = heads
        else:
            rows = torch.arange(len(starts), device=table.device)[:, None]
            places = self.table + torch.arange(n_new, device=table.device)  # (B, T)
            table[rows, :, places] = heads.transpose(1, 2).to(table.dtype)  # (B, T, 2·Hkv, D)

    def mask(self, n_new: int, first: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """(B, 1, n_new, filled − first): 0 where a new token sees the cached token first + i, −inf elsewhere."""
        key = (n_new, window, dtype)
        if key not in self.masks:
            device = self.table.device
            queries = self.table[:, :, None] + torch.arange(n_new, device=device)[None, :, None]
            keys = torch.arange(first, max(self.starts) + n_new, device=device)[None, None, :]
            hidden = (keys > queries) if window is None else (keys > queries) | (keys <= queries - window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
            self.masks[key] = mask[:, None]
        return self.masks[key]


def cached(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Cached,
    layer: int,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Put the new keys and values (B, Hkv, T, D) into the cache, then `cached_product`."""
    layout.write(layer, torch.cat((k, v), dim=1))
    return cached_product(q, layout, layer, scale, window)


def cached_product(
    q: torch.Tensor, layout: Cached, layer: int, scale: float | None, window: int | None
) -> torch.Tensor:
    """Attention of new queries (B, H, T, D), whose keys and values are in the cache already; returns (B, H, T, D)."""
    cache, starts, (b, n_head, n_new, size) = layout.cache, layout.starts, q.shape
    filled = max(starts) + n_new
    first = max(0, min(starts) + 1 - window) if window else 0  # keys that no query can reach any more
    heads = cache.table[layer, :, :, first:filled]
    if heads.dtype != q.dtype:
        heads = heads.to(q.dtype)
    keys, values = heads.split(cache.n_kv_head, dim=1)
    if n_new == 1:
        # Heads that share keys stand as so many queries of one token: nothing need be copied for them.
        mask = None if layout.alike else layout.mask(1, first, window, q.dtype)  # `first` cuts away what a window hides
        q = q.reshape(b, cache.n_kv_head, -1, size)
        return sdpa(q, keys, values, mask, scale).reshape(b, n_head, 1, size)
    if layout.alike and q.device.type == "cpu":
        return causal_products(q, keys, values, scale, window)
    if layout.alike and starts[0] == 0 and (window is None or window >= n_new):
        return sdpa(q, keys, values, "causal", scale)
    return sdpa(q, keys, values, layout.mask(n_new, first, window, q.dtype), scale)
