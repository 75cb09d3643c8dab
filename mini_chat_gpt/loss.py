"""Cross-entropy as a sum, so that the caller can divide once by the true number of trained tokens.

`IGNORE_INDEX` is defined here and nowhere else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100


class LossSums(NamedTuple):
    """What one batch contributes to the loss of a step."""

    weighted_sum: torch.Tensor  # scalar float32 with gradient: Σ w · loss
    losses: torch.Tensor  # (R,) float32, detached: the unweighted loss of each target


def cross_entropy_sums(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> LossSums:
    """−log softmax(hidden · headᵀ)[target], summed with weights.

    hidden (R, C); head (V, C); targets (R,) ids, `IGNORE_INDEX` counts as 0; weights (R,). The log-sum-exp runs in float32
    whatever the precision of the product. Without any target the sum is a zero that is still connected to the graph.
    """
    logits = F.linear(hidden, head, bias).float()  # (R, V)
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")
    return LossSums((losses * weights).sum(), losses.detach())
