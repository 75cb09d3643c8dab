"""One optimizer step, over micro-batches and processes alike.

Loss and gradient of a step are Σ w·loss / Σ w over *all* its trained tokens, those of other ranks included; never a mean
of means. The order: gather the micro-batches, count over all ranks, backward of sum / count, clip, finite check, update.
So neither the size of a micro-batch nor the number of ranks changes a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from mini_chat_gpt.common.device import Precision
from mini_chat_gpt.common.distributed import ALONE, World
from mini_chat_gpt.config import Config, ScheduleFields
from mini_chat_gpt.data.batching import Batch, Example, blank_batch, micro_batches
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops.loss import LossSums
from mini_chat_gpt.training.optim import Optimizer, clip_gradients
from mini_chat_gpt.training.weight_average import WeightAverage


@dataclass(frozen=True)
class StepReport:
    """What one step was, over all ranks."""

    loss: float  # Σ w·loss / Σ w before the update: what was optimised
    weight: float  # Σ w
    tokens: int  # read by the model
    trained_tokens: int  # of them, targets
    norm: float  # of the gradient, before clipping
    outcome: Literal["updated", "scaled back", "accident"]
    """"scaled back": float16 overflowed and its loss scale was halved; "accident": loss or gradient was not finite."""
    guilty: bool = False  # in an accident: whether this rank's examples have a part in it
    stop: int = 0  # the largest of the ranks' `stop`


@dataclass(frozen=True)
class Gradient:
    """What the gradients that lie in the parameters belong to; all but `own_loss` over all ranks."""

    own_loss: float  # this rank's part of Σ w·loss / Σ w
    weight: float  # Σ w
    tokens: int
    trained_tokens: int
    norm: float  # before clipping


@dataclass
class LossScale:
    """Factor on the loss that keeps small float16 gradients from vanishing (Micikevicius et al. 2018, arXiv:1710.03740).

    A power of two, so that taking it out again is exact. Halved when a gradient overflows, doubled after 2,000 good steps.
    """

    value: float = 2.0**16
    good_steps: int = 0

    def good(self) -> None:
        self.good_steps += 1
        if self.good_steps == 2000:
            self.value, self.good_steps = self.value * 2, 0

    def overflowed(self) -> None:
        self.value, self.good_steps = self.value / 2, 0


class TrainStep:
    """A model with its optimizer, spread over the processes of `world`, on `device` (default: where the model is)."""

    def __init__(
        self,
        model: GPT,
        config: Config,
        phase: ScheduleFields,
        precision: Precision,
        world: World = ALONE,
        device: torch.device | None = None,
    ) -> None:
        self.model, self.precision, self.world = model, precision, world
        self.batch_size = config.step_size(phase).batch_size
        self.batch_tokens, self.grad_clip = config.training.batch_tokens, config.training.grad_clip
        self.seed = config.system.seed
        self.sharded = config.system.fsdp and world.size > 1
        self.net = self._spread(model, device or model.device)
        self.optimizer = Optimizer(model, config.training, phase)
        self.average = WeightAverage(model, config.training.ema) if config.training.ema else None
        self.loss_scale = LossScale() if precision.needs_loss_scale else None

    def _spread(self, model: GPT, device: torch.device) -> nn.Module:
        """The model on `device`, where its shards may have room even if the whole doesn't."""
        if self.sharded:
            from mini_chat_gpt.checkpoints.sharded import shard

            return shard(model, device)
        model.to(device)
        if self.world.size == 1:
            return model
        device_ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(
            model, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def step(
        self,
        examples: Sequence[Example],
        lr_fraction: float = 1.0,
        weight_decay: float | None = None,
        number: int = 0,
        stop: int = 0,
    ) -> StepReport:
        """One optimizer step on these examples and those that the other ranks give.

        Random numbers within it (dropout) depend on the seed, the `number` of the step and the rank alone.
        """
        torch.manual_seed(((self.seed * 1_000_003 + number) * 65_537 + self.world.rank) % 2**63)
        gradient = self.accumulate(examples)
        losses, stops = zip(*self.world.gather([gradient.own_loss, stop]), strict=True)
        loss, norm = sum(losses), gradient.norm
        outcome = self._update(norm, loss, lr_fraction, weight_decay)
        # Where every loss is finite, but not the gradient, whose it was is lost in the sum.
        guilty = outcome == "accident" and (math.isfinite(loss) or not math.isfinite(gradient.own_loss))
        return StepReport(
            loss, gradient.weight, gradient.tokens, gradient.trained_tokens, norm, outcome, guilty, int(max(stops))
        )

    def accumulate(self, examples: Sequence[Example]) -> Gradient:
        """Leave in the parameters the gradient of these examples' and the other ranks' examples' loss, clipped."""
        batches = micro_batches(examples, self.batch_size, self.batch_tokens)
        weight, tokens, trained = self.world.sum(
            [
                sum(float(batch.weights.sum()) for batch in batches),
                sum(batch.n_tokens for batch in batches),
                sum(len(batch.labels) for batch in batches),
            ]
        )
        own_loss = self._backward(self._pad_micro_batches(batches), weight)
        return Gradient(own_loss, weight, int(tokens), int(trained), float(self._clip()))

    def _backward(self, batches: Sequence[Batch], weight: float) -> float:
        """Gradients of Σ w·loss / `weight`; returns this rank's part of that loss."""
        self.net.train()
        # DDP and FSDP2 take the mean over ranks; the sum is what is meant.
        factor = self.world.size * (self.loss_scale.value if self.loss_scale else 1.0)
        loss = torch.zeros((), device=self.model.device)
        for number, batch in enumerate(batches, 1):
            with self._grad_sync(number == len(batches)):
                sums = self._forward(self.net, batch)
                (sums.weighted_sum / weight * factor).backward()
            loss += sums.weighted_sum.detach() / weight
        return float(loss)

    def _pad_micro_batches(self, batches: list[Batch]) -> list[Batch]:
        """Filled up with blank ones: under FSDP2 each pass through the model is something that all ranks do together."""
        most = int(max(count for (count,) in self.world.gather([len(batches)])))
        return batches + [blank_batch()] * (most - len(batches))

    def _grad_sync(self, last: bool) -> AbstractContextManager[object]:
        """Gradients travel between ranks once a step, with its last micro-batch."""
        if self.sharded:
            self.net.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif isinstance(self.net, DistributedDataParallel) and not last:
            return self.net.no_sync()
        return nullcontext()

    def _clip(self) -> torch.Tensor:
        """Take the loss scale out of the gradients and clip them; returns their norm before clipping."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if self.loss_scale is not None:
            torch._foreach_mul_(gradients, 1 / self.loss_scale.value)
        return clip_gradients(self.model.parameters(), self.grad_clip)

    def _update(
        self, norm: float, loss: float, lr_fraction: float, weight_decay: float | None
    ) -> Literal["updated", "scaled back", "accident"]:
        """Move the weights if the gradient is finite; leave all as it was if not."""
        if math.isfinite(norm) and math.isfinite(loss):
            self.optimizer.step(lr_fraction, weight_decay)
            if self.average is not None:
                self.average.update()
            if self.loss_scale is not None:
                self.loss_scale.good()
            return "updated"
        self.optimizer.zero_grad()
        if self.loss_scale is not None and self.loss_scale.value > 1 and math.isfinite(loss):
            self.loss_scale.overflowed()
            return "scaled back"
        return "accident"

    def _forward(self, net: nn.Module, batch: Batch) -> LossSums:
        with self.precision.autocast(self.model.device):
            return net(batch.to(self.model.device))

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the model has its averaged weights, where an average is kept."""
        return self.average.in_place() if self.average is not None else nullcontext()

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Example]) -> dict[str, tuple[float, int]]:
        """Unweighted loss of examples that all ranks are given alike, each counted once: kind -> (Σ loss, targets)."""
        self.model.eval()
        world, kinds = self.world, sorted({example.kind for example in examples})
        batches = micro_batches(examples[world.rank :: world.size], max(8, self.batch_size), self.batch_tokens)
        sums, counts = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0)
        for batch in self._pad_micro_batches(batches):
            losses = self._forward(self.model, batch).losses.double().cpu()
            for index, kind in enumerate(batch.kind_names):
                of_kind = losses[batch.kinds == index]
                sums[kind] += float(of_kind.sum())
                counts[kind] += len(of_kind)
        totals = world.sum([*sums.values(), *counts.values()])
        return {kind: (totals[i], int(totals[i + len(kinds)])) for i, kind in enumerate(kinds)}
