"""Attention over examples that lie end to end in one row: what training, validation and scoring use.

For the product between tokens, and for that alone, neighbouring examples of similar length are laid under each other in a
table and padded to the longest of them. Which kernel then multiplies is a matter of device and precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from mini_chat_gpt.blocked_products import blocked_products
from mini_chat_gpt.products import causal_mask, sdpa


@dataclass(frozen=True)
class Group:
    """Neighbouring examples of similar length, padded to the longest of them for the attention product alone."""

    start: int  # first token of the group in the flat row
    stop: int
    n: int  # examples
    longest: int
    slots: torch.Tensor | None  # where each token goes in the padded (n · longest) table; None: nothing to pad
    positions: torch.Tensor | None = None  # (n, longest), in the conversation; None: none of them has branches
    visible: torch.Tensor | None = None  # (n, longest, longest) bool, likewise: which keys each query may look at

    def mask(self, window: int | None, device: torch.device) -> torch.Tensor | str:
        """What a kernel is told: "causal", or which keys are visible, (longest, longest) or (n, 1, longest, longest)."""
        if self.visible is None or self.positions is None:
            return causal_mask(self.longest, window, device)
        visible = self.visible
        if window is not None:
            visible = visible & (self.positions[:, :, None] - self.positions[:, None, :] < window)
        return visible[:, None]


@dataclass(frozen=True)
class Flat:
    """Examples end to end in a single row (B = 1); token t sees the tokens of its own example up to itself.

    offsets (0, 2, 5):   1 . . . .
                         1 1 . . .
                         . . 1 . .
                         . . 1 1 .
                         . . 1 1 1

    Where an example has branches, conversations that share their beginning, a token of a branch doesn't see the others.

    offsets (0, 5):      1 . . . .
    branches ((2, 3),):  1 1 . . .
                         1 1 1 . .
                         1 1 . 1 .
                         1 1 . 1 1
    """

    offsets: tuple[int, ...]
    longest: int  # tokens of the longest conversation
    groups: tuple[Group, ...] = field(repr=False)  # computed once a batch, shared by all layers

    @classmethod
    def from_offsets(
        cls,
        offsets: tuple[int, ...],
        device: torch.device | str = "cpu",
        branches: Sequence[tuple[int, ...]] = (),
    ) -> Flat:
        """`branches` has for each example where in it each branch begins; those missing at the end have none."""
        lengths = [stop - start for start, stop in pairwise(offsets)]
        branches = [*branches, *[()] * (len(lengths) - len(branches))]
        groups, first = [], 0
        for last in range(1, len(lengths) + 1):
            together = lengths[first : last + 1]
            alike = min(together) >= LEAST_FILL * max(together) and len(together) * max(together) <= MOST_TOKENS
            if last == len(lengths) or not alike:
                groups.append(_group(offsets[first], lengths[first:last], branches[first:last], device))
                first = last
        return cls(offsets, max(map(_longest_conversation, lengths, branches)), tuple(groups))


# Examples are padded together while the shortest has this part of the longest one's length and they stay small: fewer
# calls against wasted work and products that no longer fit the cache. Measured on a CPU with examples of 60-500 tokens.
LEAST_FILL = 0.8
MOST_TOKENS = 1024
ROUND_TO = 32  # lengths are rounded up to this, so that kernels prepared for one shape serve again


def _longest_conversation(length: int, branches: tuple[int, ...]) -> int:
    if not branches:
        return length
    return branches[0] + max(stop - start for start, stop in pairwise((*branches, length)))


def _group(
    start: int, lengths: list[int], branches: Sequence[tuple[int, ...]], device: torch.device | str
) -> Group:
    n, total = len(lengths), sum(lengths)
    longest = -(-max(lengths) // ROUND_TO) * ROUND_TO
    slots = None
    if n * longest != total:
        table = torch.arange(n * longest).view(n, longest)
        slots = table[torch.arange(longest) < torch.tensor(lengths)[:, None]].to(device)
    if not any(branches):
        return Group(start, start + total, n, longest, slots)
    positions = torch.arange(longest).repeat(n, 1)
    visible = torch.ones(longest, longest, dtype=torch.bool).tril().repeat(n, 1, 1)
    for row, begins in enumerate(branches):
        for begin in begins:
            positions[row, begin:] = torch.arange(begins[0], begins[0] + longest - begin)
            visible[row, begin:, begins[0] : begin] = False  # of the branches before it a branch sees nothing
    return Group(start, start + total, n, longest, slots, positions.to(device), visible.to(device))


def flat(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Flat, scale: float | None, window: int | None
) -> torch.Tensor:
    """Group by group; padding stands behind each example, where the causal mask hides it by itself."""
    scale = scale if scale is not None else q.shape[-1] ** -0.5
    sizes = [group.stop - group.start for group in layout.groups]
    outs = []
    for group, *parts in zip(layout.groups, *(part[0].split(sizes, dim=1) for part in (q, k, v)), strict=True):
        gq, gk, gv = (_pad(part, group) for part in parts)
        mask = group.mask(window, q.device)
        product = _in_blocks if _blocks_are_faster(q, group) else _sdpa_heads_first
        out = product(gq, gk, gv, mask, scale).flatten(1, 2)
        outs.append(out if group.slots is None else out.index_select(1, group.slots))
    return torch.cat(outs, dim=1).unsqueeze(0)  # (1, H, T, D)


def _pad(part: torch.Tensor, group: Group) -> torch.Tensor:
    """(H, T of the group, D) -> (H, N, longest, D), zeros where an example is shorter."""
    n_head, _, head_dim = part.shape
    if group.slots is not None:
        part = part.new_zeros(n_head, group.n * group.longest, head_dim).index_copy(1, group.slots, part)
    return part.view(n_head, group.n, group.longest, head_dim)


# On a CPU plain products are faster than PyTorch's fused kernel, but they keep what is quadratic in the length.
LONGEST_IN_BLOCKS = 1024


def _blocks_are_faster(q: torch.Tensor, group: Group) -> bool:
    on_cpu = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float32)
    return on_cpu and group.longest <= LONGEST_IN_BLOCKS


def _sdpa_heads_first(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | str, scale: float
) -> torch.Tensor:
    return sdpa(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), mask, scale).transpose(0, 1)


def _in_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | str, scale: float
) -> torch.Tensor:
    """(H, N, T, D) all through. Heads that share keys and values go together."""
    (n_head, n, length, size), n_kv = q.shape, k.shape[0]
    queries = q.view(n_kv, n_head // n_kv, n, length, size).transpose(1, 2)  # (Hkv, N, times, T, D)
    out = blocked_products(
        queries.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), None if isinstance(mask, str) else mask, scale
    )
    return out.view(n_kv, n, n_head // n_kv, length, size).transpose(1, 2).flatten(0, 1)
