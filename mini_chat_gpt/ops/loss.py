"""Cross-entropy as a sum, so that the caller can divide once by the true number of supervised tokens.

The logits are by far the largest tensor of a step. They exist once, in the precision of the product, and their gradient
overwrites them. Exponentials are computed for a few rows at a time, which stay in a processor's cache.
`IGNORE_INDEX` is defined here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mini_chat_gpt.ops.functional import autocast_dtype

IGNORE_INDEX = -100


class LossSums(NamedTuple):
    """What one batch contributes to the loss of a step."""

    weighted_sum: torch.Tensor  # scalar float32 with gradient: Σ w · loss
    losses: torch.Tensor  # (R,) float32, detached: the unweighted loss of each label


def cross_entropy_sums(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    trained_rows: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> LossSums:
    """−log softmax(hidden · headᵀ)[label], summed with weights.

    hidden (R, C); head (V, C); labels (R,) ids, `IGNORE_INDEX` counts as 0; weights (R,). The log-sum-exp is computed in
    float32 whatever the precision of the product. Without any label the sum is a zero that is still connected to the graph.
    `trained_rows`, ids (k,) and rows (k, C), replace those rows of a frozen head.
    """
    ids, rows = trained_rows or (None, None)
    hidden = hidden.to(autocast_dtype(hidden))
    if torch.compiler.is_compiling():  # a compiler makes one kernel of the plain formula
        table = head if ids is None or rows is None else head.index_copy(0, ids, rows)
        logits = F.linear(hidden, table).float()  # (R, V)
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    else:
        losses = _CrossEntropy.apply(hidden, head, labels, ids, rows)
    return LossSums((losses * weights).sum(), losses.detach())


class _CrossEntropy(torch.autograd.Function):
    """The loss of each row (R,), float32. With p = softmax(h · Wᵀ) and e the one-hot labels, both (R, V):

    dh = g·(p − e)·W, dW = (p − e)ᵀ·(g·h); of a frozen W only for `rows`. The first backward pass overwrites the logits; a
    second one raises RuntimeError.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        labels: torch.Tensor,
        ids: torch.Tensor | None,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """hidden (R, C); head (V, C); labels (R,); ids (k,); rows (k, C) -> (R,)"""
        with torch.autocast(hidden.device.type, enabled=False):
            # Computed once for both passes: the backward pass multiplies with the same table.
            table = head.to(hidden.dtype)
            if ids is not None and rows is not None:
                table = table.clone() if table is head else table  # the frozen head itself must not change
                table[ids] = rows.to(table.dtype)
            logits = hidden @ table.T
            counted = labels != IGNORE_INDEX
            chosen = labels.where(counted, 0)[:, None]
            losses = torch.zeros(len(labels), dtype=torch.float32, device=hidden.device)
            for part in _parts(logits):
                log_p = torch.log_softmax(logits[part], dim=-1, dtype=torch.float32)
                losses[part] = -log_p.gather(1, chosen[part])[:, 0]
            losses = losses.where(counted, 0.0)
        ctx.save_for_backward(hidden, table, chosen, counted, losses, ids)
        # Not among the saved tensors: autograd would keep the logits alive, and complain that they are overwritten.
        ctx.logits, ctx.head_dtype = logits, head.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """grad (R,) -> dh (R, C), dW (V, C), d_rows (k, C)"""
        hidden, table, chosen, counted, losses, ids = ctx.saved_tensors
        logits, ctx.logits = ctx.logits, None
        if logits is None:
            raise RuntimeError(
                "the first backward pass of this loss has overwritten its logits; compute the loss again"
            )
        for part in _parts(logits):
            logits[part] = torch.softmax(logits[part], dim=-1)
        # p − 1 of the label from its loss: exact where p is near 1, which 16 bits can't tell from 1.
        logits.scatter_(1, chosen, torch.expm1(-losses)[:, None].to(logits.dtype))
        # Rows that don't count get no gradient, even if their loss is NaN.
        grad = grad.where(counted, 0.0)[:, None]
        d_hidden = ((logits @ table) * grad).to(hidden.dtype)
        weighted, d_head, d_rows = (hidden * grad).to(hidden.dtype), None, None
        if ctx.needs_input_grad[1]:
            d_head = (logits.T @ weighted).to(ctx.head_dtype)
        if ids is not None:
            d_rows = (logits[:, ids].T @ weighted).float()
        return d_hidden, d_head, None, None, d_rows


def _parts(logits: torch.Tensor) -> Iterator[slice]:
    """Slices of a few rows of logits (R, V): on a CPU 2 MiB of float32, on a GPU enough to keep it busy."""
    rows = max(1, (2**19 if logits.device.type == "cpu" else 2**26) // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))
