"""Keys and values of prompts that were read, for later prompts that begin alike.

A prompt is read in blocks of `BLOCK` tokens, always from a multiple of it on. What a block holds then depends on the tokens before
it and on nothing else, so a reply is the same, bit for bit, whether its blocks were read or found here. Tokens of replies are not
kept for that reason: they were computed one at a time, which rounds differently.

Blocks form a tree. When it is full, the least recently used block without successors is dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mini_chat_gpt.ops.kv_cache import KVCache

BLOCK = 32
"""Tokens of a block. Reading fewer at a time is slower, more would be shared less often."""
_Key = tuple[int, tuple[int, ...]]


@dataclass
class Block:
    """Keys and values of `BLOCK` tokens after those of its predecessor."""

    number: int
    parent: Block | None
    key: _Key
    table: torch.Tensor  # (n_layer, 2·Hkv, BLOCK, D)
    n_children: int = 0


class PrefixCache:
    """Blocks of the prompts of models with one base (numbered from 0), at most `max_bytes` of them."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.n_bytes = max_bytes, 0
        self._blocks: OrderedDict[_Key, Block] = OrderedDict()  # least recently used first
        self._next_number = 1

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, model: int, parent: Block | None, ids: Sequence[int]) -> Block | None:
        """The block with these tokens after `parent` (None: at the beginning of a prompt for this model), if it is kept."""
        block = self._blocks.get(_key(model, parent, ids))
        if block is not None:
            self._blocks.move_to_end(block.key)
        return block

    def add(self, model: int, parent: Block | None, ids: Sequence[int], cache: KVCache, start: int) -> Block | None:
        """Keep the tokens `ids` that were read into the row of `cache` at `start`. None if there is no room for them."""
        key = _key(model, parent, ids)
        if parent is not None and self._blocks.get(parent.key) is not parent:
            return None  # it was dropped meanwhile, so no prompt would find its successors
        if (known := self._blocks.get(key)) is not None:
            return known
        table = cache.table[:, 0, :, start : start + BLOCK].clone()
        if parent is not None:
            parent.n_children += 1  # it must not be dropped to make room
        if not self._make_room(table.nbytes):
            if parent is not None:
                parent.n_children -= 1
            return None
        block = Block(self._next_number, parent, key, table)
        self._next_number += 1
        self._blocks[key] = block
        self.n_bytes += table.nbytes
        return block

    def _make_room(self, n_bytes: int) -> bool:
        while self.n_bytes + n_bytes > self.max_bytes:
            oldest = next((block for block in self._blocks.values() if not block.n_children), None)
            if oldest is None:
                return False
            del self._blocks[oldest.key]
            self.n_bytes -= oldest.table.nbytes
            if oldest.parent is not None:
                oldest.parent.n_children -= 1
        return True


def restore(block: Block, cache: KVCache, start: int) -> None:
    """Copy a block into the row of `cache`, as if its tokens had been read there."""
    cache.table[:, 0, :, start : start + BLOCK] = block.table
    cache.lengths = [start + BLOCK]


def _key(model: int, parent: Block | None, ids: Sequence[int]) -> _Key:
    return (-1 - model if parent is None else parent.number, tuple(ids))
