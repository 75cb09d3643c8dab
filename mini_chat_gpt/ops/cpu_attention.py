"""Causal attention as plain matrix products in blocks of queries, with its derivative written out: for training on a CPU.

PyTorch's fused kernel reaches a third of a core's matrix rate at the lengths of chats, and is slower in bf16 than in float32.
Plain products run near the full rate. A block of queries multiplies only the keys up to its own end, so that most of what the
causal mask would hide is never computed; the probabilities are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

BLOCK = 128
"""Queries at a time: smaller ones waste less on what is hidden, larger ones multiply faster."""


def blocked_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """O = P·V with P = softmax(Q·Kᵀ), where a query sees the keys up to its own place; and P, block by block.

    q (G, times, T, D), scaled already; k, v (G, T, D): `times` heads of queries share keys and values. `mask` hides more than what
    comes later: bool, True where a look is allowed, (T, T) or (N, 1, T, T) with G a multiple of N. O is (G, times, T, D).
    """
    out, kept = torch.empty_like(q, memory_format=torch.contiguous_format), []
    for start, stop in _blocks(q.shape[2]):
        queries = q[:, :, start:stop].flatten(1, 2)  # (G, times · block, D)
        scores = torch.bmm(queries, k[:, :stop].mT).view(len(q), -1, stop - start, stop)
        _hide(scores, mask, start, stop)
        probabilities = scores.softmax(dim=-1).flatten(1, 2)
        out[:, :, start:stop] = torch.bmm(probabilities, v[:, :stop]).view(len(q), -1, stop - start, v.shape[-1])
        kept.append(probabilities)
    return out, kept


def blocked_gradients(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dV = PᵀdO, dS = P∘(dP − rowsum(dP∘P)) with dP = dO·Vᵀ, dQ = dS·K, dK = dSᵀQ; `kept` is what the forward pass gave."""
    dq, dk, dv = torch.empty_like(q), torch.zeros(0), torch.zeros(0)
    # From the last block to the first: the last one's keys are all there are, the others add to a part of them.
    for number, ((start, stop), p) in enumerate(zip(reversed(_blocks(q.shape[2])), reversed(kept), strict=True)):
        queries, d_out = q[:, :, start:stop].flatten(1, 2), grad[:, :, start:stop].flatten(1, 2)
        dp = torch.bmm(d_out, v[:, :stop].mT)
        ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
        dq[:, :, start:stop] = torch.bmm(ds, k[:, :stop]).view(len(q), -1, stop - start, q.shape[-1])
        if number == 0:
            dk, dv = torch.bmm(ds.mT, queries), torch.bmm(p.mT, d_out)
        else:
            dk[:, :stop] += torch.bmm(ds.mT, queries)
            dv[:, :stop] += torch.bmm(p.mT, d_out)
    return dq, dk, dv


def n_blocks(length: int) -> int:
    """How many tensors of probabilities there are for so many queries."""
    return len(_blocks(length))


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _hide(scores: torch.Tensor, mask: torch.Tensor | None, start: int, stop: int) -> None:
    """−inf where queries start..stop−1 may not look; scores (G, times, stop − start, stop)."""
    if mask is not None:
        scores.view(-1, *mask.shape[:1] * (mask.dim() == 4), *scores.shape[1:]).masked_fill_(
            ~mask[..., start:stop, :stop], float("-inf")
        )
    scores[..., start:] += _later(stop - start, scores.dtype, scores.device)


@lru_cache(maxsize=32)  # lengths are rounded, so that few are ever needed
def _later(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(length, length): −inf for the keys of a block that come after each of its queries, else 0. Adding is faster than filling."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)
