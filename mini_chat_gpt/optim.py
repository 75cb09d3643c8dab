"""Optimizers and learning-rate schedules.

Weight decay acts on matrices only. With Muon, the matrices inside the blocks get orthogonalised momentum (Jordan et al.
2024; PyTorch's `torch.optim.Muon`), embeddings, head and vectors stay with AdamW (arXiv:1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn as nn

from mini_chat_gpt.config import ScheduleFields, TrainingSection


def lr_fraction(step: int, total: int, warmup: int, schedule: str, final: float) -> float:
    """Learning rate of optimizer step `step` (from 0) as a fraction of the peak; a pure function.

    Linear warm-up over `warmup` steps, then cosine, linear or constant, or wsd: constant and linear over the last fifth.
    """
    if warmup >= total:
        warmup = total // 10
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "cosine":
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - (1 - final) * progress
    if schedule == "wsd":
        return 1 - (1 - final) * max(0.0, (progress - 0.8) / 0.2)
    return 1.0


class Optimizer:
    """AdamW, alone or beside Muon, behind one `step(fraction)`; state by parameter name, ready for a checkpoint."""

    def __init__(self, model: nn.Module, training: TrainingSection, phase: ScheduleFields) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        muon = (
            [p for name, p in self.parameters.items() if is_block_matrix(name, p)]
            if training.optimizer == "muon"
            else []
        )
        by_muon = {id(parameter) for parameter in muon}
        rest = [p for p in self.parameters.values() if id(p) not in by_muon]
        groups = [
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": training.weight_decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.members: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [group for group in groups if group["params"]],
                lr=phase.learning_rate,
                betas=(training.beta1, training.beta2),
                fused=True,
            )
        ]
        if muon:
            self.members.append(torch.optim.Muon(muon, lr=phase.muon_lr, weight_decay=training.weight_decay))
        self.peaks = [phase.learning_rate, phase.muon_lr][: len(self.members)]

    def step(self, fraction: float) -> None:
        """Update with `fraction` of the peak learning rates and clear the gradients."""
        for member, peak in zip(self.members, self.peaks, strict=True):
            for group in member.param_groups:
                group["lr"] = peak * fraction
            member.step()
        self.zero_grad()

    @property
    def learning_rate(self) -> float:
        """AdamW's learning rate of the last step."""
        return float(self.members[0].param_groups[0]["lr"])

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All state as flat tensors: "layers.0.mlp.up_proj.weight/exp_avg" → tensor."""
        return {
            f"{self._names[id(parameter)]}/{key}": value
            for member in self.members
            for parameter, state in member.state.items()
            for key, value in state.items()
        }

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `state_tensors` gave, exactly. Raises KeyError for a parameter that does not exist."""
        owners = {id(p): member for member in self.members for group in member.param_groups for p in group["params"]}
        for key, value in tensors.items():
            name, _, field = key.rpartition("/")
            parameter = self.parameters[name]
            # Counters stay where the optimizer makes them; moments lie with their parameter.
            where = value.clone() if value.dim() == 0 and parameter.device.type == "cpu" else value.to(parameter.device)
            owners[id(parameter)].state[parameter][field] = where


def is_block_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon is meant for this parameter: a matrix inside a block."""
    return parameter.dim() == 2 and name.startswith("layers.")


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale the gradients to a joint norm of at most `limit` (0: leave them); returns the norm before."""
    return nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else math.inf)
