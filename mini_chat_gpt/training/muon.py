"""Muon: momentum with orthogonalized updates (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn as nn

from mini_chat_gpt.common.device import has_fast_bf16
from mini_chat_gpt.common.distributed import is_dtensor, local_shard
from mini_chat_gpt.training.adamw import BaseOptimizer

STACK_ELEMENTS = 2**23  # 16 MiB in bfloat16, 32 in float32


class Muon(BaseOptimizer):
    """Momentum whose singular values are set to about 1, so that all directions of a matrix get updates of the same size.

    The result equals `torch.optim.Muon`. Matrices of one shape are orthogonalized together as one stack, which saves a third
    of the time of a small model, whose step consists of many small matrix products.
    """

    moments = ("momentum_buffer",)

    def __init__(
        self, groups: Sequence[dict[str, Any]], lr: float, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(groups, lr=lr, weight_decay=weight_decay, momentum=momentum)

    @torch.no_grad()
    def step(self) -> None:
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            for stack in _stacks([p for p in group["params"] if p.grad is not None]):
                updates = [self._nesterov(p, group["momentum"]) for p in stack]
                sharded = is_dtensor(stack[0])
                updates = _orthogonalize_sharded(updates, stack[0]) if sharded else orthogonalize(updates)
                for p, update in zip(stack, updates, strict=True):
                    rows, columns = p.shape
                    weight = local_shard(p)
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))

    def _nesterov(self, p: nn.Parameter, momentum: float) -> torch.Tensor:
        """The update with Nesterov momentum, before it is orthogonalized; the local rows if `p` is sharded."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        gradient, buffer = local_shard(p.grad), local_shard(state["momentum_buffer"])
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def _stacks(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Groups of matrices with the same shape up to transposition, of at most STACK_ELEMENTS elements per process.

    Sharded matrices are grouped without transposition, because their rows are distributed.
    """
    by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for p in parameters:
        by_shape.setdefault(tuple(p.shape) if is_dtensor(p) else tuple(sorted(p.shape)), []).append(p)
    for shape, group in by_shape.items():
        processes = group[0].device_mesh.size() if is_dtensor(group[0]) else 1  # type: ignore[attr-defined]
        size = max(1, STACK_ELEMENTS // math.prod(shape)) * processes
        yield from (group[start : start + size] for start in range(0, len(group), size))


def orthogonalize(updates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Orthogonalize each matrix. Tall ones are transposed first: the iteration multiplies by the shorter side."""
    tall = [update.shape[0] > update.shape[1] for update in updates]
    wide = torch.stack([update.T if is_tall else update for update, is_tall in zip(updates, tall, strict=True)])
    return [update.T if is_tall else update for update, is_tall in zip(newton_schulz(wide), tall, strict=True)]


def _orthogonalize_sharded(updates: Sequence[torch.Tensor], matrix: torch.Tensor) -> list[torch.Tensor]:
    """Orthogonalize matrices that are sharded like `matrix`: the local rows of each in, the local rows of each out.

    The processes exchange rows so that each has some whole matrices to orthogonalize, and exchange the results back.
    """
    from torch.distributed.tensor import DTensor, Shard

    mesh, (rows, columns) = matrix.device_mesh, matrix.shape  # type: ignore[attr-defined]
    shape, stride = torch.Size((len(updates), rows, columns)), (rows * columns, columns, 1)

    def redistribute(local: torch.Tensor, source: Shard, target: Shard) -> torch.Tensor:
        stack = DTensor.from_local(local.contiguous(), mesh, [source], run_check=False, shape=shape, stride=stride)
        return stack.redistribute(placements=[target]).to_local()

    whole = redistribute(torch.stack(list(updates)).to(iteration_dtype(updates[0].device)), Shard(1), Shard(0))
    result = torch.stack(orthogonalize(whole.unbind())) if len(whole) else whole
    return list(redistribute(result, Shard(0), Shard(1)).unbind())


def iteration_dtype(device: torch.device) -> torch.dtype:
    """The type of the iteration's products. It needs no more precision than bfloat16, but not every processor multiplies that fast."""
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def newton_schulz(x: torch.Tensor) -> torch.Tensor:
    """(N, rows, columns ≥ rows) -> the same singular vectors with singular values of about 1 (0.7 to 1.2), in `iteration_dtype`.

    Five steps of the quintic Newton-Schulz iteration X ← aX + bXXᵀX + c(XXᵀ)²X with the coefficients of Jordan et al.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x.to(iteration_dtype(x.device))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
