"""Training: the loop around the step of `training/train_step.py`, for pretraining and fine-tuning alike.

The examples of a step depend on the seed and the cursor alone, and the cursor in a checkpoint is that of the examples
consumed: a resumed run equals an unbroken one, on a CPU to the bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mini_chat_gpt.checkpoints.save import CheckpointWriter
from mini_chat_gpt.common.device import cpu_threads, gc_frozen
from mini_chat_gpt.common.distributed import ALONE
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.common.resources import CPUContention, memory_in_use
from mini_chat_gpt.common.terminal import StepProgress
from mini_chat_gpt.config import Config, ScheduleFields, seconds_in
from mini_chat_gpt.data.batch_dump import describe
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.data.step_loader import ExampleDataset, StepLoader, count_workers
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.monitor import Monitor, Status
from mini_chat_gpt.training.optim import lr_fraction
from mini_chat_gpt.training.run_state import read_run_state, run_snapshot
from mini_chat_gpt.training.stop import REASONS, StopRequest
from mini_chat_gpt.training.train_step import StepReport, TrainStep

Metrics = dict[str, float]
Callback = Callable[["Trainer", int, Metrics], None]
SMOOTHING = 0.02
"""Share of the newest loss in the smoothed one."""


@dataclass
class Window:
    """What happened since the last line of metrics: sums, so that their ratio is a true token mean."""

    loss_sum: float = 0.0
    weight: float = 0.0
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    waiting: float = 0.0  # of those seconds, for the step's examples

    @property
    def loss(self) -> float:
        return self.loss_sum / self.weight if self.weight else float("nan")

    def per_second(self, tokens: int) -> float:
        return tokens / self.seconds if self.seconds else 0.0


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0  # optimizer steps done, accidents included
    cursor: int = 0  # example slots consumed
    tokens: int = 0  # tokens the model has read
    trained_tokens: int = 0  # of them, targets
    seconds: float = 0.0  # spent in steps
    smoothed_loss: float | None = None
    best: list[float] | None = None  # of `Trainer.standing`
    best_by: str | None = None  # what that was judged by
    evaluations_since_best: int = 0
    accidents: int = 0  # steps with a loss or gradient that wasn't finite
    accidents_in_a_row: int = 0
    planned_steps: int | None = None  # what a time budget came to
    window: Window = field(default_factory=Window)


@dataclass(frozen=True)
class TrainResult:
    """What `train` gives back."""

    folder: Path
    steps: int
    train_loss: float  # over the last lines of metrics
    val_losses: Metrics = field(default_factory=dict)  # "val_loss" and "val_loss/KIND" of the last evaluation
    scores: Metrics = field(default_factory=dict)  # "suite/KIND/MEASURE" of the last evaluation
    seconds: float = 0.0
    stopped: str = ""  # "SIGINT", "SIGTERM" or "time limit" where the run did not come to its end


@dataclass(frozen=True)
class Stage:
    """A part of a run, with examples of its own; what isn't given is as in the rest of it."""

    share: float  # of the run's steps
    source: ExampleDataset
    tokens_per_step: int | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class Job:
    """All that distinguishes one kind of training from another."""

    name: str  # "pretrain" or "sft": prefix of metrics, and what the checkpoint says it is
    phase: ScheduleFields
    source: ExampleDataset
    validation: Sequence[Example]
    # Text to show at each evaluation, for example replies to a few held-out prompts.
    show: Callable[[GPT], str] | None = None
    stages: Sequence[Stage] = ()
    """What comes before `source`."""
    files: Sequence[Path] = ()
    """The text that it is trained on."""
    measure: Callable[[GPT], Metrics] | None = None
    """Scores at each evaluation, the higher the better, by names such as "suite/moral/exact"."""


class Trainer:
    """Runs a job: steps, evaluations, checkpoints. Build it, then call `run`. Every rank has one and does the same."""

    def __init__(
        self,
        job: Job,
        engine: TrainStep,
        tokenizer: ChatTokenizer,
        config: Config,
        folder: Path,
        monitor: Monitor,
        callbacks: Sequence[Callback] = (),
        started: float | None = None,
    ) -> None:
        self.job, self.engine, self.tokenizer, self.config = job, engine, tokenizer, config
        self.folder, self.monitor, self.callbacks = folder, monitor, callbacks
        self.world, self.model = engine.world, engine.model
        self.progress = Progress()
        training = config.training
        _, self.examples_per_step, self.tokens_per_step = config.step_size(job.phase)
        self.total_steps = self._count_steps()
        if job.measure is None and job.phase.best_metric != "val_loss":
            raise UserError(
                f"{job.name}.best_metric is {job.phase.best_metric!r}, but nothing is scored here; take val_loss."
            )
        self.val_losses: Metrics = {}
        self.scores: Metrics = {}
        writers = self.world.new_group() if engine.sharded else ALONE
        self.writer = CheckpointWriter(folder, training.keep_checkpoints, writers)
        limit = (started or time.monotonic()) + seconds_in(training.time_limit) if training.time_limit else None
        self.stop = StopRequest(monitor.message, limit)
        self.stopped = ""  # what all ranks have agreed on

    def _count_steps(self) -> int:
        phase = self.job.phase
        if phase.epochs is not None:
            slots = phase.epochs * len(self.job.source)
            per_step = float(self.examples_per_step)
            if self.tokens_per_step:
                probe = [len(self.job.source[index].ids) for index in range(min(256, len(self.job.source)))]
                per_step = self.tokens_per_step / (sum(probe) / len(probe)) + 0.5  # a step ends above its budget
            return max(1, round(slots / per_step))
        if phase.max_steps is None:
            raise UserError(f"{self.job.name}: give max_steps or epochs; both are null.")
        return phase.max_steps

    def stages(self) -> list[Stage]:
        """The parts of the run, in order: those of the job, and the rest."""
        rest = 1 - sum(stage.share for stage in self.job.stages)
        return [*self.job.stages, Stage(rest, self.job.source)]

    def stage_at(self, step: int) -> Stage:
        """The part of the run that step `step` (from 0) belongs to."""
        *first, rest = self.stages()
        before = 0.0
        for stage in first:
            before += stage.share
            if step < round(before * self.total_steps):
                return stage
        return rest

    def plan(self, steps: int) -> None:
        """Fix the number of steps, for a resumed run as well."""
        self.total_steps = self.progress.planned_steps = steps

    def reader(self, stage: Stage) -> StepLoader:
        """Of the stage's examples, from the present position on."""
        workers = count_workers(self.config.data.num_workers, self.world)
        return StepLoader(stage.source, self.progress.cursor, workers, self.world)

    def read_step(self, reader: StepLoader, stage: Stage) -> tuple[list[Example], int]:
        """(this rank's examples of the coming step, slots it takes)."""
        return reader.step(self.examples_per_step, stage.tokens_per_step or self.tokens_per_step)

    def resume(self, checkpoint: Path) -> None:
        """Take everything but the model's own file from a checkpoint: position, optimizer, averages, loss scale."""
        facts = read_run_state(checkpoint, self.engine)["progress"]
        if (loss := facts.pop("best_val_loss", None)) is not None:  # what earlier versions called it
            facts["best"] = -loss
        if isinstance(facts.get("best"), float):
            facts["best"] = [facts["best"], -math.inf]
        self.progress = Progress(**facts | {"window": Window(**facts["window"])})
        self.total_steps = self.progress.planned_steps or self.total_steps

    def run(self) -> TrainResult:
        """Train to the end, or until asked to stop; the last state is always saved."""
        progress, last_loss = self.progress, float("nan")
        reader = stage = None
        cores = CPUContention(cpu_threads(self.model.device))
        bar = StepProgress(self.monitor.console, self.job.name, progress.step, self.total_steps, keep=True)
        with self.stop.on_signals(), gc_frozen(), bar, ExitStack() as readers:
            while progress.step < self.total_steps and not self.stopped and not self._out_of_patience():
                started = time.monotonic()
                coming = self.stage_at(progress.step)
                if reader is None or coming != stage:
                    self.writer.wait()  # worker processes are forked, which a thread at work would not survive
                    readers.close()
                    stage, reader = coming, readers.enter_context(self.reader(coming))
                read_from = time.monotonic()
                examples, slots = self.read_step(reader, coming)
                self.progress.window.waiting += time.monotonic() - read_from
                if progress.step == 0:
                    self._write_first_batch(examples)
                self.stop.check_time(2 * self._seconds_a_step() + 2 * self.writer.seconds)
                report = self.engine.step(
                    examples, self.lr_fraction, coming.weight_decay, progress.step, self.stop.number
                )
                self._count(report, slots, time.monotonic() - started)
                self._look_at(report, examples)
                if progress.step % self._log_every == 0 or progress.step == self.total_steps or self.stopped:
                    last_loss = progress.window.loss
                    bar.update(progress.step, self._log_window(report).items())
                    if warning := cores.check():
                        self.monitor.message(warning)
                self._milestones()
        self.writer.wait()
        found = self.val_losses, self.scores
        return TrainResult(self.folder, progress.step, last_loss, *found, progress.seconds, self.stopped)

    @property
    def _log_every(self) -> int:
        return 1 if self.total_steps <= 200 else 10

    def _seconds_a_step(self) -> float:
        return self.progress.seconds / self.progress.step if self.progress.step else 0.0

    @property
    def lr_fraction(self) -> float:
        """The coming step's learning rate as a fraction of the peak."""
        phase = self.job.phase
        return lr_fraction(
            self.progress.step,
            self.total_steps,
            phase.warmup_steps,
            phase.schedule,
            phase.final_lr_fraction,
            phase.decay_fraction,
        )

    def _count(self, report: StepReport, slots: int, seconds: float) -> None:
        progress, window = self.progress, self.progress.window
        progress.step += 1
        progress.cursor += slots
        progress.tokens += report.tokens
        progress.trained_tokens += report.trained_tokens
        progress.seconds += seconds
        window.tokens += report.tokens
        window.trained_tokens += report.trained_tokens
        window.seconds += seconds
        if report.outcome != "accident":
            window.loss_sum += report.loss * report.weight
            window.weight += report.weight
            before = progress.smoothed_loss
            progress.smoothed_loss = report.loss if before is None else before + SMOOTHING * (report.loss - before)
        self.stopped = REASONS[report.stop]

    def _look_at(self, report: StepReport, examples: Sequence[Example]) -> None:
        """Count accidents in a row, keep the examples that gave them, and end the run when there are too many."""
        progress = self.progress
        if report.outcome != "accident":
            progress.accidents_in_a_row = 0
            return
        progress.accidents += 1
        progress.accidents_in_a_row += 1
        what = f"step {progress.step}: loss {report.loss}, gradient norm {report.norm}"
        place = self.folder / "accidents" / f"step-{progress.step:07d}-rank-{self.world.rank}.txt"
        if report.guilty:
            atomic_write_text(place, describe(examples, self.tokenizer, what))
        self.monitor.message(
            f"{what}: not finite, the weights are left as they were; its examples are in {place.parent}"
        )
        if progress.accidents_in_a_row >= self.config.training.max_nonfinite_steps:
            self.writer.wait()
            raise UserError(
                f"{what}: {progress.accidents_in_a_row} steps in a row were not finite, and the run ends. The examples are in "
                f"{place.parent}; lower {self.job.name}.learning_rate, or set system.mixed_precision=fp32, and go on with "
                f"{self.job.name}.resume_from={self.folder}."
            )

    def _write_first_batch(self, examples: Sequence[Example]) -> None:
        if self.world.is_main:
            atomic_write_text(
                self.folder / "first_batch.txt", describe(examples, self.tokenizer, "the first step's examples")
            )

    def _log_window(self, report: StepReport) -> Status:
        progress, window = self.progress, self.progress.window
        status = Status(
            loss=window.loss,
            smoothed_loss=progress.smoothed_loss if progress.smoothed_loss is not None else float("nan"),
            grad_norm=report.norm,
            learning_rate=self.engine.optimizer.learning_rate,
            tokens_per_second=window.per_second(window.tokens),
            trained_per_second=window.per_second(window.trained_tokens),
            memory=memory_in_use(self.model.device),
            data_wait_share=window.waiting / window.seconds if window.seconds else 0.0,
        )
        self._log(
            {
                "train_loss": status.loss,
                "smoothed_loss": status.smoothed_loss,
                "lr": status.learning_rate,
                "grad_norm": status.grad_norm,
                "tokens_per_second": status.tokens_per_second,
                "trained_tokens_per_second": status.trained_per_second,
                "data_wait_share": status.data_wait_share,
                "memory_bytes": status.memory,
                "tokens": progress.tokens,
                "trained_tokens": progress.trained_tokens,
                "accidents": progress.accidents,
            }
        )
        progress.window = Window()
        return status

    def _log(self, values: Metrics) -> None:
        metrics = {f"{self.job.name}/{name}": value for name, value in values.items() if math.isfinite(value)}
        self.monitor.log(self.progress.step, metrics)
        if self.world.is_main:
            for callback in self.callbacks:
                callback(self, self.progress.step, metrics)

    def _milestones(self) -> None:
        """Evaluate and save when it is due. A new best is saved whether or not a save is due."""
        step, phase = self.progress.step, self.job.phase
        best = False
        if self.job.validation and (step % phase.eval_interval == 0 or step == self.total_steps):
            best = self._evaluate_and_log()
        last = step == self.total_steps or self.stopped or self._out_of_patience()
        if best or last or step % phase.save_interval == 0:
            self.save()

    def _out_of_patience(self) -> bool:
        patience = self.job.phase.patience
        return patience is not None and self.progress.evaluations_since_best >= patience

    def _evaluate_and_log(self) -> bool:
        """Validation losses and sample replies, of the averaged weights if there are any; whether this is the best so far."""
        with self.engine.averaged():
            self.val_losses, self.scores = self.validate(), self.measure()
            text = self.replies()
        value = self.val_losses["val_loss"]
        self._log(self.val_losses | self.scores)
        by_kind = "  ".join(
            f"{name.partition('/')[2]} {loss:.3f}" for name, loss in self.val_losses.items() if "/" in name
        )
        self.monitor.message(f"step {self.progress.step}  validation loss {value:.4f}  {by_kind}".rstrip())
        if self.scores:
            found = "  ".join(f"{name.removeprefix('suite/')} {score:.2f}" for name, score in self.scores.items())
            self.monitor.message(f"held-out tasks: {found}")
        if text:
            self.monitor.message(text)
            with open(self.folder / "samples.txt", "a", encoding="utf-8") as file:
                file.write(f"=== step {self.progress.step}\n{text}\n")
        by, standing = self.job.phase.best_metric, self.standing()
        earlier = self.progress.best if self.progress.best_by in (by, None) else None
        best = earlier is None or standing > earlier
        if best:
            self.progress.best, self.progress.best_by = standing, by
        self.progress.evaluations_since_best = 0 if best else self.progress.evaluations_since_best + 1
        return best

    def measure(self) -> Metrics:
        """The job's scores. Of a model in shards all ranks compute them together, else the first one for all."""
        measure = self.job.measure
        if measure is None:
            return {}
        model = self.model.eval()
        return measure(model) if self.engine.sharded else self.world.broadcast(lambda: measure(model))

    def goodness(self) -> float:
        """Of the last evaluation, by what `best_by` names; the higher the better."""
        name = self.job.phase.best_metric
        return -self.val_losses[name] if name in self.val_losses else self.scores[name]

    def standing(self) -> list[float]:
        """By what evaluations are compared: `goodness`, and between equals the validation loss. What isn't finite is worst."""
        values = (self.goodness(), -self.val_losses["val_loss"])
        return [value if math.isfinite(value) else -math.inf for value in values]

    def replies(self) -> str:
        """What the job shows; of a model in shards all ranks compute it together, else the first one alone."""
        if self.job.show is None or not (self.world.is_main or self.engine.sharded):
            return ""
        text = self.job.show(self.model.eval())
        return text if self.world.is_main else ""

    def validate(self) -> Metrics:
        """Unweighted token mean over the fixed validation set, overall and by kind, each example exactly once."""
        sums = self.engine.evaluate(self.job.validation)
        overall = {"val_loss": sum(loss for loss, _ in sums.values()) / sum(count for _, count in sums.values())}
        if len(sums) == 1:
            return overall
        return overall | {f"val_loss/{kind}": loss / count for kind, (loss, count) in sums.items()}

    def save(self) -> None:
        """Copy this step's state and have it written as a checkpoint; those that need not stay are deleted after it."""
        name = f"step-{self.progress.step:07d}"
        self.writer.wait()
        if self.world.broadcast((self.folder / name).exists):
            return
        info = {"job": self.job.name, "step": self.progress.step, "trained_tokens": self.progress.trained_tokens}
        now = self._evaluated_now()
        info |= {"val_loss": self.val_losses.get("val_loss") if now else None}
        info |= {"goodness": self.goodness() if now else None, "best_by": self.job.phase.best_metric}
        snapshot = run_snapshot(self.engine, self.tokenizer, info, asdict(self.progress))
        if self.world.is_main or self.engine.sharded:
            self.writer.write(name, snapshot)

    def _evaluated_now(self) -> bool:
        """Whether `val_losses` belongs to the present weights."""
        step = self.progress.step
        return bool(self.val_losses) and (step % self.job.phase.eval_interval == 0 or step == self.total_steps)
