"""A warning if the loss does not fall at the beginning of a run: the learning rate is too low, or far too high.

The losses of single steps vary with their examples. Therefore the first step's examples are compared with themselves: their loss
before the first update and after the first twentieth of the run.
"""

from __future__ import annotations

from collections.abc import Callable

from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.training.job import Progress
from mini_chat_gpt.training.train_step import StepReport, TrainStep

MIN_FALL = 0.01
"""Fraction of the first loss by which it falls at least in runs that learn (benchmarks/learning_rates.py)."""
MIN_STEPS = 20
"""A shorter beginning tells nothing, because the learning rate is still rising."""


def compared_after(total_steps: int) -> int | None:
    """The step after which the losses are compared; None in a run that is too short."""
    step = max(MIN_STEPS, -(-total_steps // 20))
    return step if step < total_steps else None


def early_loss_warning(
    job: str,
    engine: TrainStep,
    progress: Progress,
    report: StepReport,
    total_steps: int,
    first_examples: Callable[[], list[Example]],
) -> str:
    """A sentence if the loss of the first step's examples has not fallen, otherwise "". All ranks must call it after each step.

    `job` is the section of the settings; `report` is of the last step;
    `first_examples` returns the examples that this rank had in the first one.
    """
    if progress.step == 1 and report.outcome == "updated":
        progress.first_loss = report.loss
    # Without the first loss: the first step was not finite, or the run was begun by an earlier version.
    if progress.step != compared_after(total_steps) or progress.first_loss is None:
        return ""
    first, now = progress.first_loss, engine.loss(first_examples())
    if now < (1 - MIN_FALL) * first:
        return ""
    optimizer = engine.optimizer
    advice = "A lower rate may help" if now > (1 + MIN_FALL) * first else "A higher rate may help"
    return (
        f"Warning: the loss does not fall. That of the first step's examples was {first:.4f} and is {now:.4f} after "
        f"{progress.step:,} of {total_steps:,} steps with a learning rate of up to {optimizer.learning_rate:g}. {advice}"
        + ("." if optimizer.rate_reason else f", or {job}.learning_rate=auto.")
    )
