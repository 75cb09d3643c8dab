"""AdamW, and the base class of the optimizers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn as nn


class BaseOptimizer:
    """Parameters in groups, {"params", "lr", "weight_decay", …}, and the state of each parameter.

    `torch.optim.Optimizer` is not used, because creating one imports PyTorch's compiler, which takes a second at every start.
    """

    moments: ClassVar[tuple[str, ...]]
    """The state of each parameter: tensors of its shape …"""
    counters: ClassVar[tuple[str, ...]] = ()
    """… and numbers of steps."""

    def __init__(self, groups: Sequence[dict[str, Any]], **defaults: float) -> None:
        self.param_groups = [defaults | group for group in groups]
        self.state: defaultdict[nn.Parameter, dict[str, torch.Tensor]] = defaultdict(dict)

    def state_shapes(self, parameter: nn.Parameter) -> dict[str, tuple[int, ...]]:
        """The shapes of a parameter's state after its first update."""
        return dict.fromkeys(self.moments, tuple(parameter.shape)) | dict.fromkeys(self.counters, ())

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        raise NotImplementedError


class AdamW(BaseOptimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101) in PyTorch's fused kernel."""

    moments = ("exp_avg", "exp_avg_sq")
    counters = ("step",)

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, weight_decay=0.0)
        self.betas = betas

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                if not self.state[p]:
                    self.state[p] = {
                        "step": torch.zeros((), dtype=torch.float32, device=p.device),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            states = {name: [self.state[p][name] for p in parameters] for name in ("step", "exp_avg", "exp_avg_sq")}
            torch._foreach_add_(states["step"], 1)
            torch._fused_adamw_(
                parameters,
                [p.grad for p in parameters],
                states["exp_avg"],
                states["exp_avg_sq"],
                [],
                states["step"],
                lr=group["lr"],
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=group["weight_decay"],
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )
