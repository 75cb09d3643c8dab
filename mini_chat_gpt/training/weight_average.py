"""An exponential moving average of a model's weights (Polyak & Juditsky 1992), often better than the last of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn as nn

from mini_chat_gpt.common.distributed import local_shard


class WeightAverage:
    """average ← decay · average + (1 − decay) · weight after each step, in float32.

    Early on the decay is lower, (1 + n) / (10 + n) after n steps, so that the random beginning is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages, weights = ([local_shard(t) for t in those.values()] for those in (self.averages, self.parameters))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the model has the averages for weights, and afterwards its own again, to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            weight = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(weight)

    @torch.no_grad()
    def load(self, averages: Mapping[str, torch.Tensor], steps: int) -> None:
        """Put back what `averages` and `steps` were."""
        self.steps = steps
        for name, average in self.averages.items():
            average.copy_(averages[name])
