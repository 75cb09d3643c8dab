"""Attention over examples that lie end to end in one row: what training, validation and scoring use.

For the product between tokens, and for that alone, neighbouring examples of similar length are laid under each other in a
table and padded to the longest of them. Which kernel then multiplies is a matter of device and precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mini_chat_gpt.ops.cpu_attention import blocked_gradients, blocked_products, n_blocks
from mini_chat_gpt.ops.products import causal_mask, sdpa


@dataclass(frozen=True)
class Group:
    """Neighbouring examples of similar length, padded to the longest of them for the attention product alone."""

    start: int  # first token of the group in the flat row
    stop: int
    n: int  # examples
    longest: int
    slots: torch.Tensor | None  # where each token goes in the padded (n · longest) table; None: one after the other
    positions: torch.Tensor | None = None  # (n, longest), in the conversation; None: none of them has branches
    visible: torch.Tensor | None = None  # (n, longest, longest) bool, likewise: which keys each query may look at

    def laid_out(self, row: torch.Tensor) -> torch.Tensor:
        """(H, T, D) of the whole row -> (H, n, longest, D) of this group, zeros where an example is shorter."""
        n_head, _, size = row.shape
        part = row[:, self.start : self.stop]
        if self.slots is not None:
            part = part.new_zeros(n_head, self.n * self.longest, size).index_copy(1, self.slots, part)
        elif part.shape[1] < self.longest:
            part = F.pad(part, (0, 0, 0, self.longest - part.shape[1]))
        return part.reshape(n_head, self.n, self.longest, size)

    def taken_back(self, table: torch.Tensor) -> torch.Tensor:
        """(H, n, longest, D) -> (H, T, D) of this group's part of the row."""
        part = table.flatten(1, 2)
        return part[:, : self.stop - self.start] if self.slots is None else part.index_select(1, self.slots)

    def mask(self, window: int | None, device: torch.device) -> torch.Tensor | str:
        """What a kernel is told: "causal", or which keys are visible, (longest, longest) or (n, 1, longest, longest)."""
        if self.visible is None or self.positions is None:
            return causal_mask(self.longest, window, device)
        visible = self.visible
        if window is not None:
            visible = visible & (self.positions[:, :, None] - self.positions[:, None, :] < window)
        return visible[:, None]


@dataclass(frozen=True)
class Packed:
    """Examples end to end in a single row (B = 1); token t sees the tokens of its own example up to itself.

    cu_seqlens (0, 2, 5):       1 . . . .
                                1 1 . . .
                                . . 1 . .
                                . . 1 1 .
                                . . 1 1 1

    Where an example has branches, conversations that share their beginning, a token of a branch doesn't see the others.

    cu_seqlens (0, 5):          1 . . . .
    prefix_branches ((2, 3),):  1 1 . . .
                                1 1 1 . .
                                1 1 . 1 .
                                1 1 . 1 1
    """

    cu_seqlens: tuple[int, ...]
    device: torch.device | str = "cpu"
    prefix_branches: tuple[tuple[int, ...], ...] = ()
    """For each example where in it each branch begins; those missing at the end have none."""

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation."""
        return max(map(_longest_conversation, self._lengths, self._all_branches))

    # The rest is made at its first use and shared by all layers.

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The examples as tables."""
        lengths, groups, first = self._lengths, [], 0
        for last in range(1, len(lengths) + 1):
            together = lengths[first : last + 1]
            alike = min(together) >= LEAST_FILL * max(together) and len(together) * max(together) <= MOST_TOKENS
            if last == len(lengths) or not alike:
                groups.append(
                    _group(self.cu_seqlens[first], lengths[first:last], self._all_branches[first:last], self.device)
                )
                first = last
        return tuple(groups)

    @cached_property
    def edges(self) -> torch.Tensor:
        """`cu_seqlens`, (N + 1,) int32 on the device."""
        edges = torch.tensor(self.cu_seqlens, dtype=torch.int32)
        return (
            edges.pin_memory().to(self.device, non_blocking=True) if torch.device(self.device).type == "cuda" else edges
        )

    @cached_property
    def _lengths(self) -> list[int]:
        return [stop - start for start, stop in pairwise(self.cu_seqlens)]

    @cached_property
    def _all_branches(self) -> list[tuple[int, ...]]:
        return [*self.prefix_branches, *[()] * (len(self._lengths) - len(self.prefix_branches))]


# Examples are padded together while the shortest has this part of the longest one's length and they stay small: fewer
# calls against wasted work and products that no longer fit the cache. Measured on a CPU with examples of 60-500 tokens.
LEAST_FILL = 0.8
MOST_TOKENS = 1024
ROUND_TO = 32  # lengths are rounded up to this, so that kernels prepared for one shape serve again


def positions_of(length: int, branches: tuple[int, ...]) -> torch.Tensor:
    """(length,) how many tokens stand before each token of an example in its conversation."""
    positions = torch.arange(length)
    for begin in branches:
        positions[begin:] = torch.arange(branches[0], branches[0] + length - begin)
    return positions


def _longest_conversation(length: int, branches: tuple[int, ...]) -> int:
    if not branches:
        return length
    return branches[0] + max(stop - start for start, stop in pairwise((*branches, length)))


def _group(start: int, lengths: list[int], branches: Sequence[tuple[int, ...]], device: torch.device | str) -> Group:
    n, total = len(lengths), sum(lengths)
    longest = -(-max(lengths) // ROUND_TO) * ROUND_TO
    slots = None
    if n > 1 and n * longest != total:
        table = torch.arange(n * longest).view(n, longest)
        slots = table[torch.arange(longest) < torch.tensor(lengths)[:, None]].to(device)
    if not any(branches):
        return Group(start, start + total, n, longest, slots)
    positions = torch.stack([positions_of(longest, begins) for begins in branches])
    visible = torch.ones(longest, longest, dtype=torch.bool).tril().repeat(n, 1, 1)
    for row, begins in enumerate(branches):
        for begin in begins:
            visible[row, begin:, begins[0] : begin] = False  # of the branches before it a branch sees nothing
    return Group(start, start + total, n, longest, slots, positions.to(device), visible.to(device))


def flat(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Packed, scale: float | None, window: int | None
) -> torch.Tensor:
    """q (1, H, T, D); k, v (1, Hkv, T, D) -> (1, H, T, D), group by group.

    Padding stands behind each example, where the causal mask hides it by itself.
    """
    scale = scale if scale is not None else q.shape[-1] ** -0.5
    if flash_can(q, layout):
        return _by_flash(q, k, v, layout, scale, window)
    if blocks_are_faster(q, layout):
        return _InBlocks.apply(q[0], k[0], v[0], layout, scale, window).unsqueeze(0)
    outs = []
    for group in layout.groups:
        gq, gk, gv = (group.laid_out(part[0]).transpose(0, 1) for part in (q, k, v))  # (N, H, T, D)
        out = sdpa(gq, gk, gv, group.mask(window, q.device), scale)
        outs.append(group.taken_back(out.transpose(0, 1)))
    return torch.cat(outs, dim=1).unsqueeze(0)


def flash_can(q: torch.Tensor, layout: Packed) -> bool:
    """Whether PyTorch's flash kernel takes the row as it is: on a GPU from Ampere on, in 16 bits, without branches."""
    if q.device.type != "cuda" or q.dtype == torch.float32 or any(layout.prefix_branches):
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def _by_flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Packed, scale: float, window: int | None
) -> torch.Tensor:
    """Nothing is padded: the kernel is told where examples begin (Dao 2023, arXiv:2307.08691)."""
    from torch.nn.attention.varlen import varlen_attn

    longest = -(-layout.longest // ROUND_TO) * ROUND_TO
    queries, keys, values = (part[0].transpose(0, 1) for part in (q, k, v))  # (T, H, D)
    out = varlen_attn(
        queries,
        keys,
        values,
        layout.edges,
        layout.edges,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),  # keys before a query, and after it
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return cast(torch.Tensor, out).transpose(0, 1).unsqueeze(0)


# On a CPU plain products are faster than PyTorch's fused kernel, but they keep what is quadratic in the length.
LONGEST_IN_BLOCKS = 1024


def blocks_are_faster(q: torch.Tensor, layout: Packed) -> bool:
    on_cpu = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float32)
    return on_cpu and max(group.longest for group in layout.groups) <= LONGEST_IN_BLOCKS


class _InBlocks(torch.autograd.Function):
    """All groups as one operation, of which the derivative is written out: q (H, T, D); k, v (Hkv, T, D) -> (H, T, D)."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Packed, scale: float, window: int | None
    ) -> torch.Tensor:
        out, kept = _row_like(q), []
        for group in layout.groups:
            mask = group.mask(window, q.device)
            queries, keys, values = (_by_kv_head(group.laid_out(part), len(k)) for part in (q, k, v))
            tables = queries * scale, keys[:, 0], values[:, 0]
            product, probabilities = blocked_products(*tables, None if isinstance(mask, str) else mask)
            out[:, group.start : group.stop] = group.taken_back(_by_head(product, len(k)))
            kept += [*tables, *probabilities]
        ctx.save_for_backward(*kept)
        ctx.layout, ctx.scale, ctx.n_kv = layout, scale, len(k)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept = iter(ctx.saved_tensors)
        grads = [_row_like(grad), *(_row_like(grad[: ctx.n_kv]) for _ in "kv")]
        for group in ctx.layout.groups:
            q, k, v = islice(kept, 3)
            probabilities = list(islice(kept, n_blocks(group.longest)))
            d_out = _by_kv_head(group.laid_out(grad), ctx.n_kv)
            dq, dk, dv = blocked_gradients(d_out, q, k, v, probabilities)
            parts = [_by_head(part, ctx.n_kv) for part in (dq.mul_(ctx.scale), dk[:, None], dv[:, None])]
            for whole, part in zip(grads, parts, strict=True):
                whole[:, group.start : group.stop] = group.taken_back(part)
        return *grads, None, None, None


def _row_like(heads: torch.Tensor) -> torch.Tensor:
    """(H, T, D) that lies in memory as what goes into products with weights does: token by token."""
    n_head, n_tokens, size = heads.shape
    return heads.new_empty(n_tokens, n_head, size).transpose(0, 1)


def _by_kv_head(table: torch.Tensor, n_kv: int) -> torch.Tensor:
    """(H, N, T, D) -> (Hkv · N, H / Hkv, T, D): the heads that share keys and values together."""
    n_head, n, length, size = table.shape
    return table.view(n_kv, n_head // n_kv, n, length, size).transpose(1, 2).reshape(n_kv * n, -1, length, size)


def _by_head(table: torch.Tensor, n_kv: int) -> torch.Tensor:
    """(Hkv · N, H / Hkv, T, D) -> (H, N, T, D)."""
    _, times, length, size = table.shape
    return table.view(n_kv, -1, times, length, size).transpose(1, 2).reshape(n_kv * times, -1, length, size)
