"""Records of a training run: what to train and on what (`Job`), where the run stands (`Progress`), and its result."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from rich.console import RenderableType

from mini_chat_gpt.checkpoints.purpose import Purpose
from mini_chat_gpt.common.entry import command_of, under_torchrun
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import check_json
from mini_chat_gpt.config import ScheduleFields, current_metric_name
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.data.step_loader import ExampleDataset
from mini_chat_gpt.generation.decode import Model
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

Metrics = dict[str, float]
Callback = Callable[[Any, int, Metrics], None]
"""Called on rank 0 with (trainer, step, metrics) whenever metrics are logged. An Exception is reported and training continues."""
STORY_STEPS, CHAT_EPOCHS = 10_000, 3
"""What max_steps=auto means for stories and for chats."""
SMOOTHING = 0.02
"""Weight of the newest loss in the smoothed loss."""


@dataclass(frozen=True)
class Stage:
    """A part of a run with its own examples: a stage of the curriculum. Options that are None are those of the run."""

    share: float  # fraction of the run's steps
    source: ExampleDataset
    tokens_per_step: int | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class Job:
    """Everything that distinguishes one kind of training from another."""

    name: str  # "pretrain" or "sft": the prefix of metrics, stored in checkpoints
    phase: ScheduleFields
    source: ExampleDataset
    validation: Sequence[Example]
    # Returns text to show at each evaluation, for example replies to a few held-out prompts.
    show: Callable[[Model], str] | None = None
    stages: Sequence[Stage] = ()
    """Curriculum stages, which come before `source`."""
    files: Sequence[Path] = ()
    """The text files that the examples are made from."""
    measure: Callable[[Model], Metrics] | None = None
    """Returns scores at each evaluation, higher is better, with names such as "eval/moral/exact"."""
    purpose: Purpose = field(default_factory=Purpose)
    """What checkpoints say that the model was trained to do."""

    summary: Callable[[Model, TrainResult], RenderableType | None] | None = None
    """Returns what to show when the run has finished."""

    def resume_command(self, folder: Path) -> str:
        """What to type to resume the run in this folder, which has its settings, with as many processes as there are now."""
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if under_torchrun() else None
        return f"{command_of(self.name, processes)} {shlex.quote(f'{self.name}.resume_from={folder}')}"

    def __post_init__(self) -> None:
        """Raise UserError for settings that don't fit: now, not at the first evaluation, which may come after hours."""
        if self.phase.epochs is None and self.phase.max_steps is None:
            raise UserError(f"{self.name}: set max_steps or epochs; both are null.")
        if self.measure is None and self.phase.best_metric != "val_loss":
            raise UserError(
                f"{self.name}.best_metric is {self.phase.best_metric!r}, but this run has no scores; use val_loss."
            )
        if not all(_has_weight(stage.source) for stage in self.all_stages()):
            raise UserError(
                "There is nothing to train on: the loss weights of the examples are 0. Raise data.loss_weights, "
                "data.answer_weight or data.prompt_weight, those of data.curriculum included."
            )

    def all_stages(self) -> list[Stage]:
        """All parts of the run in order: the curriculum stages, then the rest."""
        rest = 1 - sum(stage.share for stage in self.stages)
        return [*self.stages, Stage(rest, self.source)]

    def _ends(self, total_steps: int) -> Iterator[tuple[Stage, int]]:
        """(stage, its last step + 1) in order."""
        share = 0.0
        for stage in self.all_stages():
            share += stage.share
            yield stage, round(share * total_steps)  # the end and not the length, so that rounding errors do not add up

    def stage_at(self, step: int, total_steps: int) -> Stage:
        """The stage of step `step` (from 0)."""
        return next((stage for stage, end in self._ends(total_steps) if step < end), self.all_stages()[-1])

    def tokens_before(self, step: int, total_steps: int, tokens_per_step: int) -> int:
        """The tokens of the steps before step `step`, with `tokens_per_step` where a stage has no number of its own."""
        tokens = first = 0
        for stage, end in self._ends(total_steps):
            tokens += (stage.tokens_per_step or tokens_per_step) * max(0, min(step, end) - first)
            first = end
        return tokens


def count_steps(job: Job, examples_per_step: float, tokens_per_step: int | None) -> int:
    """The number of steps of the whole run, from max_steps or epochs."""
    phase, source = job.phase, job.source
    if phase.epochs is not None:
        examples = phase.epochs * len(source)
        if tokens_per_step:
            # Lengths differ little between samples of 256 examples, and reading all of them could take minutes.
            lengths = [len(source[index].ids) for index in range(min(256, len(source)))]
            # A step takes examples until it exceeds its tokens: on average half an example more.
            examples_per_step = tokens_per_step / (sum(lengths) / len(lengths)) + 0.5
        return max(1, round(examples / examples_per_step))
    assert phase.max_steps is not None  # see `Job`
    return STORY_STEPS if phase.max_steps == "auto" else phase.max_steps


def with_auto_steps(phase: ScheduleFields, of_chats: bool) -> ScheduleFields:
    """The phase with epochs where max_steps=auto stands for them: for data with chats."""
    if of_chats and phase.epochs is None and phase.max_steps == "auto":
        return phase.model_copy(update={"epochs": float(CHAT_EPOCHS)})
    return phase


def _has_weight(source: ExampleDataset) -> bool:
    """Whether an example among the first ones has a loss weight. Steps without any weight are skipped."""
    examples = (source[index] for index in range(min(256, len(source))))
    return any((example.weights[1:][example.loss_mask[1:]] != 0).any() for example in examples)


@dataclass(frozen=True)
class Prepared:
    """A job with the model and the tokenizer that it trains."""

    job: Job
    model: GPT  # on the CPU
    tokenizer: ChatTokenizer


@dataclass(frozen=True)
class TrainResult:
    """What `train` returns."""

    folder: Path
    steps: int
    train_loss: float  # over the last logging interval
    val_losses: Metrics = field(default_factory=dict)  # "val_loss" and "val_loss/KIND" of the last evaluation
    scores: Metrics = field(default_factory=dict)  # "eval/KIND/METRIC" of the last evaluation
    seconds: float = 0.0
    learning_rate: float = 0.0  # the peak
    stopped: str = ""  # "SIGINT", "SIGHUP", "SIGTERM" or "time limit" if the run stopped before its last step


Count = Annotated[int, Field(ge=0, lt=2**53)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
STRICT = ConfigDict(strict=True, extra="forbid")
"""How pydantic reads the records below from a checkpoint. A key that is not known may be a damaged name of one that is."""


@dataclass
class Window:
    """Sums since metrics were last logged. Their ratio is a true mean over tokens."""

    loss_sum: Finite = 0.0
    weight: NonNegative = 0.0
    tokens: Count = 0
    trained_tokens: Count = 0
    seconds: NonNegative = 0.0
    waiting: NonNegative = 0.0  # part of `seconds` spent waiting for examples
    __pydantic_config__ = STRICT

    @property
    def loss(self) -> float:
        return self.loss_sum / self.weight if self.weight else float("nan")

    @property
    def waiting_fraction(self) -> float:
        return self.waiting / self.seconds if self.seconds else 0.0

    def per_second(self, tokens: int) -> float:
        return tokens / self.seconds if self.seconds else 0.0


@dataclass
class Progress:
    """The position of a run. Every checkpoint stores it."""

    step: Count = 0  # optimizer steps done, non-finite steps included
    cursor: Count = 0  # example indices consumed
    tokens: Count = 0  # tokens that the model has read
    trained_tokens: Count = 0  # supervised tokens
    seconds: NonNegative = 0.0  # spent in steps
    smoothed_loss: Finite | None = None
    train_loss: Finite | None = None  # over the last logging interval
    best: list[float] | None = None  # rank key of the best evaluation, see `Evaluation.rank_key`
    best_metric: str | None = None  # the metric that `best` was computed from
    evaluations_since_best: Count = 0
    evaluation_due: bool = False  # the evaluation of this step was left to the resumed run
    nonfinite_steps: Count = 0  # steps with a non-finite loss or gradient
    nonfinite_steps_in_a_row: Count = 0
    planned_steps: Count | None = None  # number of steps that a time budget allowed
    learning_rate: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None  # the peak
    first_loss: NonNegative | None = None  # of the first step, before its update
    window: Window = field(default_factory=Window)
    __pydantic_config__ = STRICT

    @property
    def last_loss(self) -> float:
        """The loss over the current logging interval, or over the last one if it has just ended; NaN before the first step."""
        if self.window.weight:
            return self.window.loss
        return math.nan if self.train_loss is None else self.train_loss

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str) -> Progress:
        """Progress from training_state.json, also with the names that earlier versions wrote.

        Raises UserError, which names the file `source`, for a missing or impossible value.
        """
        renamed = {"best_by": "best_metric"}
        renamed |= {"accidents": "nonfinite_steps"}  # old name
        renamed |= {"accidents_in_a_row": "nonfinite_steps_in_a_row"}  # old name
        fields = {renamed.get(name, name): value for name, value in values.items()}
        remedy = "use another checkpoint of the run"
        progress = check_json(fields, cls, source, remedy)
        # A default would silently restart a part of the run.
        if missing := _ALWAYS - fields.keys() or _ALWAYS_IN_WINDOW - fields["window"].keys():
            raise UserError(f"{source} is damaged: {min(missing)} is missing; {remedy}.")
        progress.best_metric = current_metric_name(progress.best_metric)
        return progress


_ALWAYS_IN_WINDOW = {"loss_sum", "weight", "tokens", "trained_tokens", "seconds", "waiting"}
_ALWAYS = {
    "step", "cursor", "tokens", "trained_tokens", "seconds", "smoothed_loss", "best", "best_metric",
    "evaluations_since_best", "nonfinite_steps", "nonfinite_steps_in_a_row", "planned_steps", "window",
}  # fmt: skip
"""What every version has written. Fields that were added later have defaults which mean "as before"."""


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation."""

    losses: Metrics  # "val_loss", and "val_loss/KIND" if there are several kinds
    scores: Metrics = field(default_factory=dict)  # "eval/KIND/METRIC": higher is better
    samples: str = ""  # text to show

    def score(self, best_metric: str) -> float:
        """The value by which evaluations are compared: the named score or the negative loss. Higher is better; NaN if missing."""
        return -self.losses[best_metric] if best_metric in self.losses else self.scores.get(best_metric, math.nan)

    def rank_key(self, best_metric: str) -> list[float]:
        """Sort key of evaluations: `score`, then the validation loss. Non-finite values rank last."""
        values = (self.score(best_metric), -self.losses["val_loss"])
        return [value if math.isfinite(value) else -math.inf for value in values]
