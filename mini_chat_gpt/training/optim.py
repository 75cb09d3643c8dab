"""Learning-rate schedules, the optimizer of a model, gradient clipping, and the moving average of weights.

Weight decay applies to matrices only. With training.optimizer=muon, Muon updates the matrices inside the blocks; AdamW
updates embeddings, head and vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn as nn

from mini_chat_gpt.checkpoints.tensor_files import compare_tensors
from mini_chat_gpt.common.distributed import is_dtensor, local_shard
from mini_chat_gpt.config import ScheduleFields, TrainingSection
from mini_chat_gpt.model import GPT
from mini_chat_gpt.training.adamw import AdamW, BaseOptimizer
from mini_chat_gpt.training.auto_rate import auto_learning_rate
from mini_chat_gpt.training.muon import Muon


def warmup_length(setting: int | Literal["auto"], total: int) -> int:
    """Steps of warm-up in a run of `total` steps."""
    return min(500, total // 10) if isinstance(setting, str) else setting


def lr_fraction(step: int, total: int, warmup: int, schedule: str, final: float, decay: float = 0.2) -> float:
    """Learning rate of optimizer step `step` (from 0) as a fraction of the peak; a pure function.

    Linear warm-up over `warmup` steps, then cosine, linear, constant, or wsd: constant, then linear in the last fraction `decay`.
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
        return 1 - (1 - final) * max(0.0, (progress - (1 - decay)) / decay)
    return 1.0


class Optimizer:
    """AdamW, alone or with Muon, behind one `step(fraction)`. The state is stored by parameter name for checkpoints."""

    def __init__(self, model: GPT, training: TrainingSection, phase: ScheduleFields) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        muon = (
            [p for name, p in self.parameters.items() if is_block_matrix(name, p)]
            if training.optimizer == "muon"
            else []
        )
        by_muon = {id(parameter) for parameter in muon}
        rest = [p for p in self.parameters.values() if id(p) not in by_muon]
        rate, self.rate_reason = phase.learning_rate, ""  # the reason of a rate that was not given
        if isinstance(rate, str):
            rate, self.rate_reason = auto_learning_rate(model)
        groups = [
            {"params": [p for p in rest if p.dim() >= 2], "decays": True},
            {"params": [p for p in rest if p.dim() < 2], "decays": False},
        ]
        self.optimizers: list[BaseOptimizer] = [
            AdamW(
                [group for group in groups if group["params"]],
                lr=rate,
                betas=(training.beta1, training.beta2),
            )
        ]
        if muon:
            self.optimizers.append(Muon([{"params": muon, "decays": True}], lr=phase.muon_lr))
        self.weight_decay = training.weight_decay
        self.peaks = [rate, phase.muon_lr][: len(self.optimizers)]

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of AdamW."""
        return self.peaks[0]

    def step(self, fraction: float, weight_decay: float | None = None) -> None:
        """Update with `fraction` of the peak learning rates and clear the gradients.

        `weight_decay` (default: the config's) applies to matrices; vectors are not decayed.
        """
        decay = self.weight_decay if weight_decay is None else weight_decay
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * fraction
                group["weight_decay"] = decay if group["decays"] else 0.0
            optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def reset(self) -> None:
        """Drop all state, as before the first step."""
        for optimizer in self.optimizers:
            optimizer.state.clear()

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All state as flat tensors: "layers.0.mlp.up_proj.weight/exp_avg" → tensor."""
        return {
            f"{self._names[id(parameter)]}/{key}": value
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }

    def parameter_of(self, key: str) -> nn.Parameter | None:
        """The parameter that the state tensor with this name belongs to."""
        return self.parameters.get(key.rpartition("/")[0])

    def _owners(self) -> Iterator[tuple[BaseOptimizer, nn.Parameter]]:
        """Each parameter with the optimizer that updates it."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                yield from ((optimizer, parameter) for parameter in group["params"])

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of `state_tensors` after the first update."""
        return {
            f"{self._names[id(parameter)]}/{key}": shape
            for optimizer, parameter in self._owners()
            for key, shape in optimizer.state_shapes(parameter).items()
        }

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the state from `state_tensors` exactly. Raises UserError for any tensor that this model does not have."""
        # The kernels trust their arguments: moments of another shape would make them write outside the weights.
        compare_tensors(
            tensors, self.state_shapes() if tensors else {}, "The optimizer state", "use that of this model"
        )
        owners = {id(parameter): optimizer for optimizer, parameter in self._owners()}
        for key, value in tensors.items():
            name, _, field = key.rpartition("/")
            parameter = self.parameters[name]
            # A step counter stays on the CPU if its parameter is there; moments are on the device of their parameter.
            where = value.clone() if value.dim() == 0 and parameter.device.type == "cpu" else value.to(parameter.device)
            owners[id(parameter)].state[parameter][field] = where


def is_block_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon updates this parameter: a matrix inside a block."""
    return parameter.dim() == 2 and name.startswith("layers.")


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale the gradients to a total norm of at most `limit` (0: no limit); returns the norm before scaling.

    The norm of sharded gradients is that over all processes, which must call this together.
    """
    norm = nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else math.inf)
    return norm.full_tensor() if is_dtensor(norm) else norm  # type: ignore[attr-defined]


class WeightAverage:
    """Exponential moving average of weights (Polyak & Juditsky 1992), often better than the last weights.

    average ← decay · average + (1 − decay) · weight after each step, in float32. At first the decay is lower,
    (1 + n) / (10 + n) after n steps, so that the random initial weights soon lose their influence.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages, weights = (
            [local_shard(tensor) for tensor in tensors.values()] for tensors in (self.averages, self.parameters)
        )
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model has the averages as weights. Afterwards its own weights are restored exactly."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            weight = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(weight)

    @torch.no_grad()
    def load(self, averages: Mapping[str, torch.Tensor], steps: int) -> None:
        """Restore averages and step count."""
        self.steps = steps
        for name, average in self.averages.items():
            average.copy_(averages[name])
