"""The key/value cache of generation, and the layout of new tokens that come after those in it."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field

import numpy as np
import torch


class KVCache:
    """Preallocated keys and values of the tokens read so far: for each layer (B, Hkv, max_length, D) of both.

    `lengths[b]` tokens of row b are filled; attention reads only up to the longest filled row. `Cached` layouts write the
    cache in place, and `advance` counts what they wrote.
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
        # Keys and values of a layer share one tensor, so that one copy writes both.
        shape = (n_layer, batch_size, 2 * n_kv_head, max_length, head_dim)
        if torch.device(device).type == "cpu" and dtype == torch.float32:
            # numpy's zeros take memory only where something is written.
            self.table = torch.from_numpy(np.zeros(shape, dtype=np.float32))
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
        """Count `n_tokens[b]` new tokens of row b as filled. Padding written after them is overwritten next."""
        self.lengths = [length + new for length, new in zip(self.lengths, n_tokens, strict=True)]

    def keep_rows(self, rows: list[int]) -> None:
        """Keep these rows of the batch only, where other replies have ended."""
        self.table = self.table.index_select(1, torch.tensor(rows, device=self.device))
        self.lengths = [self.lengths[row] for row in rows]

    def part(self, start: int, stop: int) -> KVCache:
        """Rows start..stop−1 as a cache on the same memory, with lengths of its own."""
        part = copy(self)
        part.table, part.lengths = self.table[:, start:stop], self.lengths[start:stop]
        return part

    def truncate(self, row: int, length: int) -> None:
        """Drop the tokens of `row` from index `length` on."""
        self.lengths[row] = min(self.lengths[row], length)


@dataclass(frozen=True)
class Cached:
    """T new tokens per row after those in the cache: new token i of row b sees the cached ones and new ones 0..i."""

    cache: KVCache
    starts: tuple[int, ...]  # filled length of each row before the new tokens
    starts_tensor: torch.Tensor = field(repr=False)  # (B, 1), the same on the cache's device, made once for all layers
    masks: dict[object, torch.Tensor] = field(default_factory=dict, repr=False)  # made once for all layers, too

    @classmethod
    def after(cls, cache: KVCache) -> Cached:
        """The layout of new tokens right after what each row of the cache holds."""
        starts = tuple(cache.lengths)
        return cls(cache, starts, torch.tensor(starts, device=cache.device)[:, None])

    def single_tokens(self, columns: list[int]) -> Cached:
        """The layout of one token per row: new token columns[b] of row b. All keys and values are in the cache already."""
        starts = tuple(start + column for start, column in zip(self.starts, columns, strict=True))
        return Cached(self.cache, starts, torch.tensor(starts, device=self.starts_tensor.device)[:, None])

    @property
    def same_length(self) -> bool:
        """Whether all rows are filled to the same length."""
        return len(set(self.starts)) == 1

    def at_new_positions(self, by_position: torch.Tensor, n_new: int) -> torch.Tensor:
        """Entries of a table (context, ...) at the positions of the new tokens: (1 or B, n_new, ...)."""
        start = self.starts[0]
        if self.same_length and start + n_new <= len(by_position):
            return by_position[None, start : start + n_new]
        positions = self.starts_tensor + torch.arange(n_new, device=self.starts_tensor.device)
        # The padding of a row may reach past the table. Its entries are never used, but the index must be valid.
        return by_position[positions.clamp_(max=len(by_position) - 1)]

    def write(self, layer: int, keys_values: torch.Tensor) -> None:
        """Put keys and values of the new tokens, concatenated as (B, 2·Hkv, T, D), into the cache.

        Raises ValueError where the cache is too short for them.
        """
        cache, starts, n_new = self.cache, self.starts, keys_values.shape[2]
        filled = max(starts) + n_new
        if filled > cache.max_length:
            raise ValueError(f"the cache holds {cache.max_length} tokens, {filled} are needed")
        table = cache.table[layer]
        # A slice is one contiguous copy per head; indexing by row and column is needed only for rows of different lengths.
        if self.same_length:
            table[:, :, starts[0] : filled] = keys_values
        else:
            rows = torch.arange(len(starts), device=table.device)[:, None]
            columns = self.starts_tensor + torch.arange(n_new, device=table.device)  # (B, T)
            table[rows, :, columns] = keys_values.transpose(1, 2).to(table.dtype)  # (B, T, 2·Hkv, D)

    def mask(self, n_new: int, first: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """(B, 1, n_new, filled − first): 0 where a new token sees cached token first + i, −inf elsewhere."""
        key = (n_new, window, dtype)
        if key not in self.masks:
            device = self.starts_tensor.device
            queries = self.starts_tensor[:, :, None] + torch.arange(n_new, device=device)[None, :, None]
            keys = torch.arange(first, max(self.starts) + n_new, device=device)[None, None, :]
            hidden = (keys > queries) if window is None else (keys > queries) | (keys <= queries - window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
            self.masks[key] = mask[:, None]
        return self.masks[key]
