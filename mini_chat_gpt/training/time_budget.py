"""Time a few steps of a run to predict its duration, or the number of steps that fit a time budget.

The timed steps are real ones, on the run's own examples. Afterwards weights and optimizer are restored, so that the
result of the run depends only on its number of steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.training.job import Stage
from mini_chat_gpt.training.train_step import LossScale, TrainStep
from mini_chat_gpt.training.trainer import Trainer

WARM_UP = 2  # steps that are not timed: they compile kernels and allocate memory
MIN_STEPS, MAX_STEPS = 3, 20  # timed steps of each stage


@dataclass(frozen=True)
class TimePlan:
    """Duration of the parts of a run, in seconds."""

    step: float  # mean over all stages, weighted by their shares
    evaluation: float
    timing: float  # spent on the measurement

    def steps_in(self, seconds: float, eval_interval: int) -> int:
        """Number of steps that fit, including evaluations between them and one at the end; at least 1."""
        steps = (seconds - self.evaluation) / self.step
        if steps > eval_interval:
            steps = (seconds - self.evaluation) / (self.step + self.evaluation / eval_interval)
        return max(1, int(steps))

    def seconds_of(self, steps: int, eval_interval: int) -> float:
        """Duration of a run of `steps` steps, with the evaluation at its end."""
        return steps * self.step + -(-steps // eval_interval) * self.evaluation


def time_run(trainer: Trainer, seconds: float) -> TimePlan:
    """Time steps of every stage and an evaluation, in about `seconds`. Call it only before the first step."""
    started = time.monotonic()
    stages = trainer.job.all_stages()
    with _restored(trainer.engine):
        step = sum(stage.share * _step_seconds(trainer, stage, seconds / (len(stages) + 1)) for stage in stages)
        evaluation = _evaluation_seconds(trainer)
    return trainer.world.broadcast(lambda: TimePlan(step, evaluation, time.monotonic() - started))


def _step_seconds(trainer: Trainer, stage: Stage, seconds: float) -> float:
    """Median duration of a few steps, reading their examples included."""
    world, times = trainer.world, list[float]()
    end = time.monotonic() + seconds

    def continue_timing() -> bool:
        return len(times) < WARM_UP + MIN_STEPS or world.broadcast(lambda: time.monotonic() < end)

    with trainer.loader(stage) as loader:
        while len(times) < WARM_UP + MAX_STEPS and continue_timing():
            started = time.monotonic()
            examples, _ = trainer.next_examples(loader, stage)
            if loader.lost_worker:
                raise UserError(loader.lost_worker)
            trainer.engine.train_step(examples, lr_fraction=1e-3)
            times.append(time.monotonic() - started)
    return statistics.median(times[WARM_UP:])


def _evaluation_seconds(trainer: Trainer) -> float:
    """Duration of an evaluation, extrapolated from a part of the validation set, with the samples."""
    validation = trainer.job.validation
    if not validation:
        return 0.0
    part = validation[:64]
    started = time.monotonic()
    trainer.engine.evaluate(part)
    evaluated = time.monotonic()
    trainer.validation.samples()
    return (evaluated - started) * len(validation) / len(part) + time.monotonic() - evaluated


@contextmanager
def _restored(engine: TrainStep) -> Iterator[None]:
    """Restore the state of an engine that has not made a step yet."""
    parameters = list(engine.model.parameters())
    initial = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in zip(parameters, initial, strict=True):
                parameter.copy_(weight)
        engine.optimizer.reset()
        if engine.average is not None:
            engine.average.load(dict(zip(engine.average.parameters, initial, strict=True)), steps=0)
        if engine.loss_scale is not None:
            engine.loss_scale = LossScale()
