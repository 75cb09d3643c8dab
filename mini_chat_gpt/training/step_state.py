"""What an optimizer step changes, copied and restored within a process: to time steps, and to compare them bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from mini_chat_gpt.training.train_step import LossScale, TrainStep


@dataclass(frozen=True)
class StepState:
    """A copy of everything that a step changes: trained weights, optimizer state, averaged weights, loss scale."""

    weights: list[torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    averages: list[torch.Tensor]
    averaged_steps: int
    loss_scale: LossScale | None

    @classmethod
    def copy(cls, engine: TrainStep) -> StepState:
        """The state as it is now. Takes as much memory as the weights and the optimizer state."""
        average = engine.average
        return cls(
            [weight.clone() for weight in _weights(engine)],
            {name: tensor.clone() for name, tensor in engine.optimizer.state_tensors().items()},
            [tensor.clone() for tensor in average.averages.values()] if average is not None else [],
            average.steps if average is not None else 0,
            replace(engine.loss_scale) if engine.loss_scale is not None else None,
        )

    @torch.no_grad()
    def restore(self, engine: TrainStep) -> None:
        """Set the engine to this state. It can be restored again."""
        for weight, saved in zip(_weights(engine), self.weights, strict=True):
            weight.copy_(saved)
        engine.optimizer.reset()
        engine.optimizer.load_state_tensors({name: tensor.clone() for name, tensor in self.optimizer.items()})
        if engine.average is not None:
            for average, saved in zip(engine.average.averages.values(), self.averages, strict=True):
                average.copy_(saved)
            engine.average.steps = self.averaged_steps
        if self.loss_scale is not None:
            engine.loss_scale = replace(self.loss_scale)


def digest(engine: TrainStep) -> str:
    """A hash of every bit of the state."""
    hashed = hashlib.sha256()
    tensors: list[torch.Tensor] = [*_weights(engine), *engine.optimizer.state_tensors().values()]
    if engine.average is not None:
        tensors += engine.average.averages.values()
    for tensor in tensors:
        hashed.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return f"{hashed.hexdigest()} {engine.loss_scale}"


def _weights(engine: TrainStep) -> Iterator[torch.Tensor]:
    return (weight.detach() for weight in engine.model.parameters() if weight.requires_grad)
