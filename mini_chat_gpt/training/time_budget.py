"""Time a few steps of a run to predict its duration, or the number of steps that fit a time budget.

The timed steps are real ones, on the run's own examples. Afterwards weights and optimizer are restored, so that the
result of the run depends only on its number of steps.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.training.job import Stage
from mini_chat_gpt.training.step_state import StepState
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
    before = StepState.copy(trainer.engine)
    try:
        step = sum(stage.share * _step_seconds(trainer, stage, seconds / (len(stages) + 1)) for stage in stages)
        evaluation = _evaluation_seconds(trainer)
    finally:
        before.restore(trainer.engine)
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
