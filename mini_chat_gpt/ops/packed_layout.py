"""The layout of a packed row: examples concatenated in one row, and which of its tokens see which.

Attention is the only operation that looks at the boundaries between examples. Where no kernel accepts the row as it is,
neighboring examples of similar length form a *group*: a table with one example per row, padded to the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol, cast

import torch
import torch.nn.functional as F

# Examples share a group while the shortest has at least this part of the longest one's length and the table stays small:
# fewer calls against computation on padding and products that no longer fit the cache. Measured on a CPU with examples of
# 60-500 tokens.
MIN_FILL = 0.8
MAX_GROUP_TOKENS = 1024
# A CPU prepares a kernel for each shape. Rounded lengths have few shapes, so the kernels are used again.
LENGTH_MULTIPLE = 32


def causal_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which keys each query sees: (T, T) bool, or None where plain causal attention says it all.

    With `window` w a token sees itself and the w − 1 tokens before it.
    """
    if window is None or window >= length:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance >= 0) & (distance < window)


@dataclass(frozen=True)
class Group:
    """Neighboring examples of similar length, padded to the longest of them: n rows of `max_seqlen` tokens."""

    start: int  # first token of the group in the packed row
    stop: int
    n: int  # examples
    max_seqlen: int
    slots: torch.Tensor | None  # (T,) index of each token in the flattened table; None if no row needs padding inside
    positions: torch.Tensor | None = None  # (n, max_seqlen) in each conversation; None without prefix branches
    visible: torch.Tensor | None = None  # (n, max_seqlen, max_seqlen) bool; None without prefix branches

    def pad(self, row: torch.Tensor) -> torch.Tensor:
        """Heads (H, T, D) of the packed row -> (H, n, max_seqlen, D) of this group, zeros at padding."""
        n_head, _, size = row.shape
        part = row[:, self.start : self.stop]
        if self.slots is not None:
            part = part.new_zeros(n_head, self.n * self.max_seqlen, size).index_copy(1, self.slots, part)
        elif part.shape[1] < self.max_seqlen:
            part = F.pad(part, (0, 0, 0, self.max_seqlen - part.shape[1]))
        return part.reshape(n_head, self.n, self.max_seqlen, size)

    def unpad(self, table: torch.Tensor) -> torch.Tensor:
        """(H, n, max_seqlen, D) -> (H, stop − start, D), the group's part of the packed row."""
        part = table.flatten(1, 2)
        return part[:, : self.stop - self.start] if self.slots is None else part.index_select(1, self.slots)

    def mask(self, window: int | None, device: torch.device) -> torch.Tensor | None:
        """The keys that each query sees: (T, T) or (n, 1, T, T) bool, T = max_seqlen; None for plain causal attention."""
        if self.visible is None or self.positions is None:
            return causal_mask(self.max_seqlen, window, device)
        visible = self.visible
        if window is not None:
            # A window counts tokens of the conversation, and branches begin at the same position.
            visible = visible & (self.positions[:, :, None] - self.positions[:, None, :] < window)
        return visible[:, None]


@dataclass(frozen=True)
class Packed:
    """Examples concatenated in a single row (B = 1). A token sees the tokens of its own example up to itself.

    cu_seqlens (0, 2, 5):          1 . . . .
                                   1 1 . . .
                                   . . 1 . .
                                   . . 1 1 .
                                   . . 1 1 1

    An example with prefix branches holds several conversations that share a prefix. A token of one branch doesn't see the
    other branches.

    cu_seqlens (0, 5):             1 . . . .
    prefix_branches ((2, 3),):     1 1 . . .
                                   1 1 1 . .
                                   1 1 . 1 .
                                   1 1 . 1 1
    """

    cu_seqlens: tuple[int, ...]  # cumulative lengths: example n is tokens cu_seqlens[n] to cu_seqlens[n + 1]
    device: torch.device | str = "cpu"
    prefix_branches: tuple[tuple[int, ...], ...] = ()
    """For each example the index in it at which each branch begins; examples missing at the end have no branches."""
    length: int | None = None
    """Tokens of the row. Those after the last example are padding, which forms an example of its own."""

    @property
    def longest_conversation(self) -> int:
        """Tokens of the longest conversation, padding left out."""
        n_examples = len(self.cu_seqlens) - 1
        return max(map(_longest_conversation, self._lengths[:n_examples], self._branches[:n_examples]))

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest example or of the padding."""
        return max(self._lengths)

    # The properties below are computed at their first use and shared by all layers.

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The examples as padded tables."""
        lengths, groups, first = self._lengths, [], 0
        for last in range(1, len(lengths) + 1):
            candidates = lengths[first : last + 1]
            similar = min(candidates) >= MIN_FILL * max(candidates)
            small = len(candidates) * max(candidates) <= MAX_GROUP_TOKENS
            if last == len(lengths) or not (similar and small):
                start, branches = self._boundaries[first], self._branches[first:last]
                groups.append(_make_group(start, lengths[first:last], branches, self.device))
                first = last
        return tuple(groups)

    @cached_property
    def cu_seqlens_tensor(self) -> torch.Tensor:
        """`cu_seqlens` and the end of the row as (N + 1,) int32 on the device, or (N + 2,) with padding."""
        cu_seqlens = torch.tensor(self._boundaries, dtype=torch.int32)
        if torch.device(self.device).type != "cuda":
            return cu_seqlens
        # From pinned memory the copy doesn't wait for the work that the GPU has already queued.
        return cu_seqlens.pin_memory().to(self.device, non_blocking=True)

    @cached_property
    def _boundaries(self) -> tuple[int, ...]:
        padded = self.length is not None and self.length > self.cu_seqlens[-1]
        return (*self.cu_seqlens, cast(int, self.length)) if padded else self.cu_seqlens

    @cached_property
    def _lengths(self) -> list[int]:
        return [stop - start for start, stop in pairwise(self._boundaries)]

    @cached_property
    def _branches(self) -> list[tuple[int, ...]]:
        return [*self.prefix_branches, *[()] * (len(self._lengths) - len(self.prefix_branches))]


class PackedBatch(Protocol):
    """What `GPT.forward` needs of a packed batch (data/batching.py): T tokens, R of which predict a label."""

    @property
    def ids(self) -> torch.Tensor: ...  # (T,)
    @property
    def positions(self) -> torch.Tensor: ...  # (T,)
    @property
    def cu_seqlens(self) -> tuple[int, ...]: ...
    @property
    def prefix_branches(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def target_positions(self) -> torch.Tensor: ...  # (R,)
    @property
    def labels(self) -> torch.Tensor: ...  # (R,)
    @property
    def weights(self) -> torch.Tensor: ...  # (R,)


def positions_of(length: int, branches: tuple[int, ...]) -> torch.Tensor:
    """(length,) the position of each token in its conversation. Every branch continues from the end of the shared prefix."""
    positions = torch.arange(length)
    for begin in branches:
        positions[begin:] = torch.arange(branches[0], branches[0] + length - begin)
    return positions


def _longest_conversation(length: int, branches: tuple[int, ...]) -> int:
    if not branches:
        return length
    return branches[0] + max(stop - start for start, stop in pairwise((*branches, length)))


def _make_group(
    start: int, lengths: list[int], branches: Sequence[tuple[int, ...]], device: torch.device | str
) -> Group:
    n, total = len(lengths), sum(lengths)
    max_seqlen = -(-max(lengths) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    slots = None
    if n > 1 and n * max_seqlen != total:
        table = torch.arange(n * max_seqlen).view(n, max_seqlen)
        slots = table[torch.arange(max_seqlen) < torch.tensor(lengths)[:, None]].to(device)
    if not any(branches):
        return Group(start, start + total, n, max_seqlen, slots)
    positions = torch.stack([positions_of(max_seqlen, begins) for begins in branches])
    visible = torch.ones(max_seqlen, max_seqlen, dtype=torch.bool).tril().repeat(n, 1, 1)
    for row, begins in enumerate(branches):
        for begin in begins:
            visible[row, begin:, begins[0] : begin] = False  # a branch sees the prefix, not the branches before it
    return Group(start, start + total, n, max_seqlen, slots, positions.to(device), visible.to(device))
