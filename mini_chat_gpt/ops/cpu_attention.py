"""Attention for CPUs as plain matrix products in blocks of queries: for training, and for reading prompts.

PyTorch's fused kernel reaches a third of a core's matrix rate at the lengths of chats, and is slower in bf16 than in
float32. Plain products run near the full rate. A block of queries multiplies only the keys up to its own end, so most of
what the causal mask hides is never computed. In training the probabilities are kept for the backward pass.

G below is the number of tables with keys and values of their own: key/value heads times examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from mini_chat_gpt.ops.packed_layout import Packed

# Queries per block in training: smaller blocks compute fewer hidden scores, larger ones multiply faster.
BLOCK = 128
# Queries per block when prompts are read: the scores of a block stay in the processor's cache.
PREFILL_BLOCK = {torch.float32: 64, torch.bfloat16: 128}
# The probabilities that are kept grow with the square of the length; longer examples leave attention to PyTorch's kernel.
MAX_BLOCKED_LENGTH = 1024


# Training: a packed row


def use_blocked_attention(q: torch.Tensor, layout: Packed) -> bool:
    """Whether `blocked_attention` is faster than PyTorch's kernel for q (1, H, T, D), and takes acceptable memory."""
    on_cpu = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float32)
    return on_cpu and max(group.max_seqlen for group in layout.groups) <= MAX_BLOCKED_LENGTH


def blocked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Packed, scale: float, window: int | None
) -> torch.Tensor:
    """Attention within each example of a packed row. q (1, H, T, D); k, v (1, Hkv, T, D) -> (1, H, T, D)."""
    return _BlockedAttention.apply(q[0], k[0], v[0], layout, scale, window).unsqueeze(0)


class _BlockedAttention(torch.autograd.Function):
    """All groups as one operation with its derivative: q (H, T, D); k, v (Hkv, T, D) -> (H, T, D)."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Packed, scale: float, window: int | None
    ) -> torch.Tensor:
        """q (H, T, D); k, v (Hkv, T, D) -> (H, T, D)"""
        out, saved = _empty_token_major(q), []
        for group in layout.groups:
            mask = group.mask(window, q.device)
            queries, keys, values = (_by_kv_head(group.pad(part), len(k)) for part in (q, k, v))
            tables = queries * scale, keys[:, 0], values[:, 0]
            heads, probabilities = block_products(*tables, mask)
            out[:, group.start : group.stop] = group.unpad(_by_head(heads, len(k)))
            saved += [*tables, *probabilities]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.scale, ctx.n_kv = layout, scale, len(k)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """grad (H, T, D) -> dq (H, T, D); dk, dv (Hkv, T, D)"""
        saved = iter(ctx.saved_tensors)
        grads = [_empty_token_major(grad), *(_empty_token_major(grad[: ctx.n_kv]) for _ in "kv")]
        for group in ctx.layout.groups:
            q, k, v = islice(saved, 3)
            probabilities = list(islice(saved, len(_blocks(group.max_seqlen))))
            d_out = _by_kv_head(group.pad(grad), ctx.n_kv)
            dq, dk, dv = block_gradients(d_out, q, k, v, probabilities)
            parts = [_by_head(part, ctx.n_kv) for part in (dq.mul_(ctx.scale), dk[:, None], dv[:, None])]
            for whole, part in zip(grads, parts, strict=True):
                whole[:, group.start : group.stop] = group.unpad(part)
        return *grads, None, None, None


def block_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """O = P·V with P = softmax(Q·Kᵀ), where a query sees the keys up to its own position; and P, block by block.

    q (G, times, T, D), already scaled; k, v (G, T, D): `times` query heads share keys and values. `mask` hides more than
    the later keys: bool, True where visible, (T, T) or (N, 1, T, T) with G a multiple of N. O is (G, times, T, D).
    """
    out, saved = torch.empty_like(q, memory_format=torch.contiguous_format), []
    for start, stop in _blocks(q.shape[2]):
        queries = q[:, :, start:stop].flatten(1, 2)  # (G, times · block, D)
        scores = torch.bmm(queries, k[:, :stop].mT).view(len(q), -1, stop - start, stop)
        _hide(scores, mask, start, stop)
        probabilities = scores.softmax(dim=-1).flatten(1, 2)
        out[:, :, start:stop] = torch.bmm(probabilities, v[:, :stop]).view(len(q), -1, stop - start, v.shape[-1])
        saved.append(probabilities)
    return out, saved


def block_gradients(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, probabilities: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dV = PᵀdO, dS = P∘(dP − rowsum(dP∘P)) with dP = dO·Vᵀ, dQ = dS·K, dK = dSᵀQ.

    grad, q (G, times, T, D); k, v (G, T, D); `probabilities` are those of `block_products`. Returns dQ (G, times, T, D) and
    dK, dV (G, T, D).
    """
    dq, dk, dv = torch.empty_like(q), torch.zeros(0), torch.zeros(0)
    # From the last block to the first: the last block sees all keys and creates the sums, the others add to a part of them.
    for number, ((start, stop), p) in enumerate(
        zip(reversed(_blocks(q.shape[2])), reversed(probabilities), strict=True)
    ):
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


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _hide(scores: torch.Tensor, mask: torch.Tensor | None, start: int, stop: int) -> None:
    """Write −inf where queries start..stop−1 don't see a key; scores (G, times, stop − start, stop)."""
    if mask is not None:
        scores.view(-1, *mask.shape[:1] * (mask.dim() == 4), *scores.shape[1:]).masked_fill_(
            ~mask[..., start:stop, :stop], float("-inf")
        )
    # Adding −inf is faster than filling under a mask.
    scores[..., start:] += _later_keys(stop - start, scores.dtype, scores.device)


@lru_cache(maxsize=32)  # lengths are rounded, so there are few of them
def _later_keys(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(length, length): −inf for the keys of a block that come after each of its queries, else 0."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)


def _empty_token_major(heads: torch.Tensor) -> torch.Tensor:
    """An empty tensor like heads (H, T, D), contiguous by token: products with weight matrices read it without a copy."""
    n_head, n_tokens, size = heads.shape
    return heads.new_empty(n_tokens, n_head, size).transpose(0, 1)


def _by_kv_head(table: torch.Tensor, n_kv: int) -> torch.Tensor:
    """(H, N, T, D) -> (Hkv · N, H / Hkv, T, D): heads that share keys and values next to each other."""
    n_head, n, length, size = table.shape
    return table.view(n_kv, n_head // n_kv, n, length, size).transpose(1, 2).reshape(n_kv * n, -1, length, size)


def _by_head(table: torch.Tensor, n_kv: int) -> torch.Tensor:
    """(Hkv · N, H / Hkv, T, D) -> (H, N, T, D), the inverse of `_by_kv_head`."""
    _, times, length, size = table.shape
    return table.view(n_kv, -1, times, length, size).transpose(1, 2).reshape(n_kv * times, -1, length, size)


# Generation: prompts


def last_tokens_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, window: int | None
) -> torch.Tensor:
    """Causal attention of the last T of S tokens. q (B, H, T, D); k, v (B, Hkv, S, D) -> (B, H, T, D).

    In bf16 this takes half the time of PyTorch's fused kernel. Query heads that share keys are stacked into one taller
    product.
    """
    b, n_head, length, size = q.shape
    n_kv, older = k.shape[1], k.shape[2] - length
    times = n_head // n_kv
    q = (q * (scale if scale is not None else size**-0.5)).reshape(b * n_kv, times, length, size)
    k, v = k.reshape(b * n_kv, -1, size), v.reshape(b * n_kv, -1, size)
    block, outs = PREFILL_BLOCK.get(q.dtype, 128), []
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = max(0, older + start + 1 - window) if window else 0
        queries = q[:, :, start:stop].reshape(b * n_kv, -1, size)
        keys, values = k[:, first : older + stop], v[:, first : older + stop]
        scores = torch.bmm(queries, keys.mT).unflatten(1, (times, -1))
        hidden = _hidden_keys(stop - start, keys.shape[1], window)
        scores[..., -hidden.shape[1] :] += hidden.to(scores.dtype)
        outs.append(torch.bmm(scores.softmax(dim=-1).flatten(1, 2), values).unflatten(1, (times, -1)))
    return torch.cat(outs, dim=2).reshape(b, n_head, length, size)


@lru_cache(maxsize=32)
def _hidden_keys(n_queries: int, n_keys: int, window: int | None) -> torch.Tensor:
    """(n_queries, up to n_keys) over the last keys: −inf where one of the last n_queries tokens doesn't see a key, else 0.

    Without a window all earlier keys are visible, and only n_queries columns are needed.
    """
    if window is None:
        n_keys = n_queries
    queries, keys = torch.arange(n_queries)[:, None] + n_keys - n_queries, torch.arange(n_keys)[None, :]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
