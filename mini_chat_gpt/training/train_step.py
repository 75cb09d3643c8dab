"""One optimizer step over micro-batches and ranks, and its state in checkpoints.

The loss of a step is Σ w·loss / Σ w over *all* of its supervised tokens, those of other ranks included. It is never a
mean of means, so neither the size of a micro-batch nor the number of ranks changes a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from mini_chat_gpt.checkpoints.find import OPTIMIZER, RAW
from mini_chat_gpt.checkpoints.save import Snapshot, take_snapshot
from mini_chat_gpt.common.device import Precision
from mini_chat_gpt.common.distributed import ALONE, World
from mini_chat_gpt.config import Config, ScheduleFields
from mini_chat_gpt.data.batching import Batch, Example, blank_batch, micro_batches
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops.loss import LossSums
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.fsdp import shard
from mini_chat_gpt.training.optim import Optimizer, WeightAverage, clip_gradients
from mini_chat_gpt.training.saved_state import Resumed, read_saved_state, state_changes

Outcome = Literal["updated", "overflow", "non-finite", "empty"]
"""Whether a step changed the weights. "overflow": the float16 loss scale was too large and has been halved.
"non-finite": loss or gradient was NaN or infinite. "empty": the loss weights of all examples are 0."""


@dataclass(frozen=True)
class StepReport:
    """Result of one step, over all ranks."""

    loss: float  # Σ w·loss / Σ w before the update: the optimized value
    local_loss: float  # this rank's part of that sum
    weight: float  # Σ w
    tokens: int  # tokens that the model has read
    trained_tokens: int  # supervised tokens
    norm: float  # of the gradient, before clipping
    outcome: Outcome
    stop: int = 0  # the maximum of the ranks' `stop`

    @property
    def local_nonfinite(self) -> bool:
        """In a non-finite step, whether examples of this rank may have caused it.

        If all losses are finite but the gradient is not, any rank may have caused it.
        """
        return self.outcome == "non-finite" and (math.isfinite(self.loss) or not math.isfinite(self.local_loss))


@dataclass
class LossScale:
    """Factor on the loss that keeps small float16 gradients from underflow (Micikevicius et al. 2018, arXiv:1710.03740).

    It is a power of two, so dividing by it is exact. It is halved after an overflow and doubled after 2,000 finite steps.
    """

    value: float = 2.0**16
    good_steps: int = 0

    def count_finite_step(self) -> None:
        self.good_steps += 1
        if self.good_steps == 2000:
            self.value, self.good_steps = self.value * 2, 0

    def back_off(self) -> None:
        self.value, self.good_steps = self.value / 2, 0

    def unscale(self, model: nn.Module) -> None:
        """Divide the model's gradients by the scale."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.value)


class TrainStep:
    """A model with its optimizer, distributed over the ranks of `world`, on `device` (default: where the model is)."""

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
        # First, because FSDP2 replaces the parameters that the optimizer needs.
        self.net = self._distribute(model, device or model.device)
        self.optimizer = Optimizer(model, config.training, phase)
        self.average = WeightAverage(model, config.training.ema) if config.training.ema else None
        self.loss_scale = LossScale() if precision.needs_loss_scale else None

    def train_step(
        self,
        examples: Sequence[Example],
        lr_fraction: float = 1.0,
        weight_decay: float | None = None,
        step: int = 0,
        stop: int = 0,
        update: bool = True,
    ) -> StepReport:
        """One optimizer step on these examples and those of the other ranks. All ranks must call it together.

        With `update=False` the gradients stay in the parameters and the weights do not change.
        """
        # Dropout depends on the seed, the step and the rank only, so a resumed run draws the same masks.
        torch.manual_seed(((self.seed * 1_000_003 + step) * 65_537 + self.world.rank) % 2**63)
        self.net.train()

        # Gather the micro-batches, and count over all ranks before the first backward pass.
        batches = micro_batches(examples, self.batch_size, self.batch_tokens)
        weight, tokens, trained = self.world.sum(_counts(batches))
        batches = self._pad_micro_batches(batches)

        # Backward of sum / count. DDP and FSDP2 average gradients over ranks: the factor `world.size` makes it a sum.
        factor = self.world.size * (self.loss_scale.value if self.loss_scale else 1.0)
        local_loss = torch.zeros((), device=self.model.device)
        for number, batch in enumerate(batches, 1):
            with self._grad_sync(last=number == len(batches)):
                part = self._forward(self.net, batch).weighted_sum / (weight or 1.0)
                (part * factor).backward()
            local_loss += part.detach()

        # Clip the gradient of the whole step. The norm is that of the true gradient, without the loss scale.
        if self.loss_scale is not None:
            self.loss_scale.unscale(self.model)
        norm = float(clip_gradients(self.model.parameters(), self.grad_clip))

        # Finite check: loss and norm are the same on all ranks, so either all of them update or none does.
        losses, stops = zip(*self.world.gather([float(local_loss), stop]), strict=True)
        loss = sum(losses)
        outcome = self._check_finite(loss, norm) if weight else "empty"

        # Update, or drop the gradients of a non-finite step.
        if update and outcome == "updated":
            self.optimizer.step(lr_fraction, weight_decay)
            if self.average is not None:
                self.average.update()
        elif update:
            self.optimizer.zero_grad()
        return StepReport(loss, float(local_loss), weight, int(tokens), int(trained), norm, outcome, int(max(stops)))

    def _distribute(self, model: GPT, device: torch.device) -> nn.Module:
        """The model on `device`, wrapped for several ranks. Its shards may fit there even if the whole model does not."""
        if self.sharded:
            return shard(model, device)
        model.to(device)
        if self.world.size == 1:
            return model
        device_ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(
            model, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def _pad_micro_batches(self, batches: list[Batch]) -> list[Batch]:
        """Append blank batches: every rank must run the same number of forward passes, because FSDP2 gathers in each."""
        most = int(max(count for (count,) in self.world.gather([len(batches)])))
        return batches + [blank_batch()] * (most - len(batches))

    def _grad_sync(self, last: bool) -> AbstractContextManager[object]:
        """Context that exchanges gradients between ranks once a step, in its last micro-batch."""
        if self.sharded:
            self.net.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif isinstance(self.net, DistributedDataParallel) and not last:
            return self.net.no_sync()
        return nullcontext()

    def _forward(self, net: nn.Module, batch: Batch) -> LossSums:
        with self.precision.autocast(self.model.device):
            return net(batch.to(self.model.device))

    def _check_finite(self, loss: float, norm: float) -> Outcome:
        """Whether the step may update the weights; adjusts the loss scale of float16."""
        if math.isfinite(loss) and math.isfinite(norm):
            if self.loss_scale is not None:
                self.loss_scale.count_finite_step()
            return "updated"
        if self.loss_scale is not None and self.loss_scale.value > 1 and math.isfinite(loss):
            self.loss_scale.back_off()  # a finite loss whose gradient overflows: a smaller scale may help
            return "overflow"
        return "non-finite"

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the model has its averaged weights, if an average is kept."""
        return self.average.applied() if self.average is not None else nullcontext()

    @torch.no_grad()
    def evaluate(
        self, examples: Sequence[Example], before_batch: Callable[[], None] = lambda: None
    ) -> dict[str, tuple[float, int]]:
        """Unweighted loss of examples, the same list on all ranks; each counts once: kind -> (Σ loss, supervised tokens)."""
        self.model.eval()
        world, kinds = self.world, sorted({example.kind for example in examples})
        # Without gradients and activations, at least 8 examples at a time fit in memory.
        batches = micro_batches(examples[world.rank :: world.size], max(8, self.batch_size), self.batch_tokens)
        sums, counts = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0)
        for batch in self._pad_micro_batches(batches):
            before_batch()
            # The model without its DDP wrapper: there are no gradients to exchange.
            losses = self._forward(self.model, batch).losses.double().cpu()
            for index, kind in enumerate(batch.kind_names):
                of_kind = losses[batch.kinds == index]
                sums[kind] += float(of_kind.sum())
                counts[kind] += len(of_kind)
        totals = world.sum([*sums.values(), *counts.values()])
        return {kind: (totals[i], int(totals[i + len(kinds)])) for i, kind in enumerate(kinds)}

    @torch.no_grad()
    def loss(self, examples: Sequence[Example]) -> float:
        """Σ w·loss / Σ w of these examples and those of the other ranks, without dropout. All ranks must call it together."""
        self.model.eval()
        batches = micro_batches(examples, self.batch_size, self.batch_tokens)
        weight, *_ = self.world.sum(_counts(batches))
        batches = self._pad_micro_batches(batches)
        local = sum(float(self._forward(self.model, batch).weighted_sum) for batch in batches)
        return self.world.sum([local])[0] / weight

    # State in checkpoints

    def snapshot(self, tokenizer: ChatTokenizer, info: dict[str, Any], progress: dict[str, Any]) -> Snapshot:
        """Copies of everything that a resumed run needs, and of the model for use.

        With averaged weights (`training.ema`) the model of the checkpoint is the average, because that is what was
        evaluated. The weights that training continues with are stored in a file of their own.
        """
        state: dict[str, Any] = {"progress": progress}
        files = {OPTIMIZER: self.optimizer.state_tensors()}
        if self.loss_scale is not None:
            state["loss_scale"] = asdict(self.loss_scale)
        if self.average is not None:
            state["averaged_steps"] = self.average.steps
            files[RAW] = {name: parameter.detach().clone() for name, parameter in self.average.parameters.items()}
        with self.averaged():
            return take_snapshot(self.model, tokenizer, info, files, state)

    @torch.no_grad()
    def restore(self, checkpoint: Path, reset_optimizer: bool = False) -> Resumed:
        """Continue with the state in a checkpoint; the model must hold the checkpoint's weights already.

        With `reset_optimizer` the optimizer has no state, as before its first step. Raises UserError if the checkpoint does
        not match the settings of this run; nothing is changed then.
        """
        saved = read_saved_state(checkpoint, self.optimizer, self.world, reset_optimizer)
        if self.average is not None:  # the checkpoint's model is the average, or becomes its first value
            averages = {name: parameter.clone() for name, parameter in self.average.parameters.items()}
            self.average.load(averages, saved.averaged_steps)
        if saved.raw_weights is not None:
            for name, parameter in self.optimizer.parameters.items():
                parameter.copy_(saved.raw_weights[name])
        if self.loss_scale is not None and saved.loss_scale is not None:
            self.loss_scale = LossScale(saved.loss_scale.value, saved.loss_scale.good_steps)
        self.optimizer.load_state_tensors(saved.optimizer)
        if self.optimizer.rate_reason and saved.progress.learning_rate is not None:
            # What auto chose for the weights as they were then.
            self.optimizer.peaks[0] = saved.progress.learning_rate
            self.optimizer.rate_reason = "as when the run began"
        return Resumed(saved.progress, state_changes(saved, self.average is not None, reset_optimizer))


def _counts(batches: Sequence[Batch]) -> list[float]:
    """[Σ w, tokens, supervised tokens] of micro-batches."""
    return [
        sum(batch.total_weight for batch in batches),
        sum(batch.n_tokens for batch in batches),
        sum(batch.n_targets for batch in batches),
    ]
