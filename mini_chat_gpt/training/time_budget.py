"""How long a run takes, from a few of its own steps; and how many steps fit a given time.

The steps that are timed are real ones, on the run's own examples; afterwards weights and optimizer are put back as they were, so
that the run itself depends on the number of steps alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mini_chat_gpt.training.train_step import LossScale, TrainStep
from mini_chat_gpt.training.trainer import Stage, Trainer

WARM_UP = 2  # steps that are not counted: kernels are prepared, memory is got
LEAST, MOST = 3, 20  # counted steps of each stage


@dataclass(frozen=True)
class TimePlan:
    """Seconds that the parts of a run take."""

    step: float  # over all stages, by their shares
    evaluation: float
    timing: float  # spent on finding this out

    def steps_in(self, seconds: float, eval_interval: int) -> int:
        """Steps that fit, with the evaluations among them and the one at the end; at least 1."""
        steps = (seconds - self.evaluation) / self.step
        if steps > eval_interval:
            steps = (seconds - self.evaluation) / (self.step + self.evaluation / eval_interval)
        return max(1, int(steps))

    def seconds_of(self, steps: int, eval_interval: int) -> float:
        """What a run of so many steps takes; the last evaluation stands at its end."""
        return steps * self.step + -(-steps // eval_interval) * self.evaluation


def time_run(trainer: Trainer, seconds: float) -> TimePlan:
    """Time steps of every stage and an evaluation, for about `seconds` in all. Only before the first step."""
    started = time.monotonic()
    stages = trainer.stages()
    with _as_it_was(trainer.engine):
        step = sum(stage.share * _step_seconds(trainer, stage, seconds / (len(stages) + 1)) for stage in stages)
        evaluation = _evaluation_seconds(trainer)
    return trainer.world.broadcast(lambda: TimePlan(step, evaluation, time.monotonic() - started))


def _step_seconds(trainer: Trainer, stage: Stage, seconds: float) -> float:
    """Median over a few steps, the reading of their examples included."""
    world, times = trainer.world, list[float]()
    end = time.monotonic() + seconds

    def go_on() -> bool:
        return len(times) < WARM_UP + LEAST or world.broadcast(lambda: time.monotonic() < end)

    with trainer.reader(stage) as reader:
        while len(times) < WARM_UP + MOST and go_on():
            started = time.monotonic()
            examples, _ = trainer.read_step(reader, stage)
            trainer.engine.step(examples, lr_fraction=1e-3)
            times.append(time.monotonic() - started)
    return statistics.median(times[WARM_UP:])


def _evaluation_seconds(trainer: Trainer) -> float:
    """Of the whole validation set, from a part of it, with the replies that are shown."""
    if not trainer.job.validation:
        return 0.0
    part = trainer.job.validation[:64]
    started = time.monotonic()
    trainer.engine.evaluate(part)
    evaluated = time.monotonic()
    trainer.replies()
    return (evaluated - started) * len(trainer.job.validation) / len(part) + time.monotonic() - evaluated


@contextmanager
def _as_it_was(engine: TrainStep) -> Iterator[None]:
    """Undo what steps do to an engine that has not made one yet."""
    parameters = list(engine.model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in zip(parameters, before, strict=True):
                parameter.copy_(weight)
        engine.optimizer.forget()
        if engine.average is not None:
            engine.average.load(dict(zip(engine.average.parameters, before, strict=True)), steps=0)
        if engine.loss_scale is not None:
            engine.loss_scale = LossScale()
