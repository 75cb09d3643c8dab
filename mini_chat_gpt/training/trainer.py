"""The training loop around one optimizer step (training/train_step.py), for pretraining and fine-tuning alike.

The examples of a step depend only on the seed and the cursor, and a checkpoint stores the cursor of the examples
consumed. A resumed run therefore equals an uninterrupted one, on a CPU bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from mini_chat_gpt.common.device import gc_frozen
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.common.resources import memory_in_use
from mini_chat_gpt.common.signals import GRACE, leave_within
from mini_chat_gpt.common.terminal import StepProgress
from mini_chat_gpt.config import Config, seconds_in
from mini_chat_gpt.data.batch_dump import describe
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.data.step_loader import StepLoader, count_workers
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.early_loss import early_loss_warning
from mini_chat_gpt.training.evaluation_lines import show_evaluation
from mini_chat_gpt.training.job import (
    SMOOTHING,
    Callback,
    Evaluation,
    Job,
    Metrics,
    Progress,
    Stage,
    TrainResult,
    Window,
    count_steps,
)
from mini_chat_gpt.training.monitor import Monitor, Status
from mini_chat_gpt.training.optim import lr_fraction, warmup_length
from mini_chat_gpt.training.saved_state import Resumed
from mini_chat_gpt.training.saving import Saver
from mini_chat_gpt.training.stop import LOST_WORKER, REASONS, URGENT, Abandoned, StopRequest, exit_code
from mini_chat_gpt.training.threads import ThreadTuner
from mini_chat_gpt.training.train_step import StepReport, TrainStep
from mini_chat_gpt.training.validation import Validation


class Trainer:
    """Runs a job: steps, evaluations, checkpoints. Create it, then call `run`. Every rank has one and does the same."""

    def __init__(
        self,
        job: Job,
        engine: TrainStep,
        tokenizer: ChatTokenizer,
        config: Config,
        folder: Path,
        monitor: Monitor,
        callbacks: Sequence[Callback] = (),
        start_time: float | None = None,
    ) -> None:
        self.job, self.engine, self.tokenizer, self.config = job, engine, tokenizer, config
        self.monitor, self.callbacks = monitor, callbacks
        self.world, self.model = engine.world, engine.model
        self.progress = Progress(learning_rate=engine.optimizer.learning_rate)
        _, self.examples_per_step, self.tokens_per_step = config.step_size(job.phase)
        self.total_steps = count_steps(job, self.examples_per_step, self.tokens_per_step)
        self.evaluation: Evaluation | None = None  # the last one
        self.evaluated_step = self.unevaluated_step = -1  # of `evaluation`; of a resumed checkpoint that waits for it
        self._advanced = False  # whether this start has completed a step or an evaluation
        self._evaluation_seconds = 0.0  # what the last one took
        self._lost_worker = ""
        self.saver = Saver(folder, config.training.keep_checkpoints, job, engine, tokenizer, monitor)
        self.threads = ThreadTuner(engine, monitor.message, self.saver.wait, fixed=config.system.threads is not None)
        limit = config.training.time_limit
        deadline = (start_time or time.monotonic()) + seconds_in(limit) if limit else None
        self.stop = StopRequest(monitor.message, deadline)
        self.validation = Validation(job, engine, self.stop, monitor.attempt)
        self.stopped = ""  # the reason to stop that all ranks have agreed on
        self._learning_rate = 0.0  # of the last step, as the schedule has it

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.saver.folder

    def set_total_steps(self, steps: int) -> None:
        """Set the number of steps of the run. Checkpoints store it, so that a resumed run has the same number."""
        self.total_steps = self.progress.planned_steps = steps

    def loader(self, stage: Stage) -> StepLoader:
        """A loader of the stage's examples, from the current position on."""
        workers = count_workers(self.config.data.num_workers, self.world)
        return StepLoader(stage.source, self.progress.cursor, workers, self.world)

    def next_examples(self, loader: StepLoader, stage: Stage) -> tuple[list[Example], int]:
        """(this rank's examples of the next step, number of examples over all ranks)."""
        return loader.step(self.examples_per_step, stage.tokens_per_step or self.tokens_per_step)

    def _first_examples(self) -> list[Example]:
        """The examples that this rank has in the first step."""
        stage = self.job.stage_at(0, self.total_steps)
        with StepLoader(stage.source, 0, 0, self.world) as loader:
            return self.next_examples(loader, stage)[0]

    def resume(self, resumed: Resumed) -> None:
        """Continue at the position of the checkpoint that the engine has restored."""
        self.progress = resumed.progress
        self.progress.learning_rate = self.engine.optimizer.learning_rate
        for change in resumed.changes:
            self.monitor.message(change)
        # With a time budget, the first start has set the number of steps. Timing again could give another number.
        self.total_steps = self.progress.planned_steps or self.total_steps
        self.unevaluated_step = self.progress.step if self.progress.evaluation_due else -1

    def run(self) -> TrainResult:
        """Train to the last step, or until a stop is requested. The state is saved in both cases."""
        bar = StepProgress(self.monitor.console, self.job.name, self.progress.step, self.total_steps, keep=True)
        with self.stop.on_signals(), gc_frozen(), bar, ExitStack() as loaders:
            try:
                self._train(bar, loaders)
            except Abandoned:
                self.stopped = self.stop.reason
                if self._advanced:
                    self.save()
            except Exception:  # a checkpoint that is being written is still completed
                with suppress(Exception):
                    self.saver.wait()
                raise
        self.saver.finish(self.save)
        if self.stopped in URGENT:
            leave_within(GRACE, exit_code(self.stopped))
        if self.stopped == LOST_WORKER:
            raise UserError(f"{self._lost_worker} The run is saved: {self.job.resume_command(self.folder)}")
        last, progress = self.evaluation or Evaluation({}), self.progress
        rate = self.engine.optimizer.learning_rate
        return TrainResult(
            self.folder,
            progress.step,
            progress.last_loss,
            last.losses,
            last.scores,
            progress.seconds,
            rate,
            self.stopped,
        )

    def _train(self, bar: StepProgress, loaders: ExitStack) -> None:
        progress, loader, stage = self.progress, None, None
        if progress.evaluation_due:
            self._evaluate_and_save()
        while progress.step < self.total_steps and not self.stopped and not self._out_of_patience():
            started = time.monotonic()
            if loader is None or stage != self.job.stage_at(progress.step, self.total_steps):
                self.saver.wait()  # a loader forks worker processes, which is not safe while another thread runs
                loaders.close()
                stage = self.job.stage_at(progress.step, self.total_steps)
                loader = loaders.enter_context(self.loader(stage))
            report, examples, count = self._step(loader, stage)
            self._count(report, count, time.monotonic() - started)
            self._check_nonfinite(report, examples)
            early = (self.job.name, self.engine, progress, report, self.total_steps)
            if warning := early_loss_warning(*early, self._first_examples):
                self.monitor.message(warning)
            if progress.step % self._log_every == 0 or progress.step == self.total_steps:
                if progress.window.weight or report.outcome == "non-finite":
                    progress.train_loss = progress.window.loss if math.isfinite(progress.window.loss) else None
                bar.update(progress.step, self._log_window(report).items(), self._share_of_work(bar.first))
            self._evaluate_and_save()
        if self.evaluation is None and self.job.validation and not self.stopped:
            self.evaluation = self.validation.run()  # the run was resumed after its last evaluation

    def _step(self, loader: StepLoader, stage: Stage) -> tuple[StepReport, list[Example], int]:
        """Read the examples of a step, and train on them: (report, this rank's examples, number of all examples).

        Raises Abandoned if a stop is requested before the step changes anything. Until a start has advanced, that includes its
        first step, which may compile for minutes. Other ranks would wait for this one, so with them the step is completed.
        """
        progress = self.progress
        with ExitStack() as abandonable:
            if self.world.size == 1:
                abandonable.enter_context(self.stop.abandonable(timed=self._advanced))
            wait_started = time.monotonic()
            examples, count = self.next_examples(loader, stage)
            progress.window.waiting += time.monotonic() - wait_started
            if progress.step == 0:
                # A file to inspect which tokens are supervised, before a long run.
                self._write_first_batch(examples)
            if loader.lost_worker:
                self._lost_worker = loader.lost_worker
                self.stop.request(LOST_WORKER, loader.lost_worker)
            if self._advanced:
                self._check_time(2 * self._seconds_per_step())
                abandonable.close()
            # Not what the optimizer has: a step that overflows or is not finite doesn't set it.
            self._learning_rate = self.engine.optimizer.learning_rate * self.lr_fraction
            arguments = (examples, self.lr_fraction, stage.weight_decay, progress.step, self.stop.number)
            report = self.threads.step(partial(self.engine.train_step, *arguments))
        self._advanced = True
        return report, examples, count

    def _check_time(self, seconds_needed: float) -> None:
        """Request a stop if the time limit does not leave these seconds and twice the time of saving."""
        if self.saver.snapshot_seconds is None:  # before the first save: weights and optimizer state at 100 MB/s
            trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
            seconds = 16 * trained / 1e8
        else:
            seconds = self.saver.snapshot_seconds + self.saver.writer.seconds
        self.stop.saving_time = 2 * seconds
        self.stop.check_time(seconds_needed)

    @property
    def _log_every(self) -> int:
        # With every tenth step only, the curves of a short run would have few points.
        return 1 if self.total_steps <= 200 else 10

    def _share_of_work(self, first: int) -> float | None:
        """The finished share of the tokens from step `first` on; None if steps have a number of examples."""
        if self.tokens_per_step is None:
            return None
        steps = (first, self.progress.step, self.total_steps)
        begin, now, end = (self.job.tokens_before(step, self.total_steps, self.tokens_per_step) for step in steps)
        return (now - begin) / (end - begin)

    def _seconds_per_step(self) -> float:
        return self.progress.seconds / self.progress.step if self.progress.step else 0.0

    @property
    def lr_fraction(self) -> float:
        """Learning rate of the next step as a fraction of the peak."""
        phase = self.job.phase
        return lr_fraction(
            self.progress.step,
            self.total_steps,
            warmup_length(phase.warmup_steps, self.total_steps),
            phase.schedule,
            phase.final_lr_fraction,
            phase.decay_fraction,
        )

    def _count(self, report: StepReport, examples: int, seconds: float) -> None:
        """Add a step to the progress and to the logging window."""
        progress, window = self.progress, self.progress.window
        progress.step += 1
        progress.cursor += examples
        progress.tokens += report.tokens
        progress.trained_tokens += report.trained_tokens
        progress.seconds += seconds
        window.tokens += report.tokens
        window.trained_tokens += report.trained_tokens
        window.seconds += seconds
        if report.outcome in ("updated", "overflow"):  # one NaN would make the mean over the window NaN
            window.loss_sum += report.loss * report.weight
            window.weight += report.weight
            previous = progress.smoothed_loss
            progress.smoothed_loss = (
                report.loss if previous is None else previous + SMOOTHING * (report.loss - previous)
            )
        # The ranks have exchanged their stop requests within the step, so all of them stop after the same one.
        self.stopped = REASONS[report.stop]

    def _check_nonfinite(self, report: StepReport, examples: Sequence[Example]) -> None:
        """Count non-finite steps in a row, save the examples that may have caused them, end the run after too many."""
        progress = self.progress
        if report.outcome in ("updated", "overflow"):
            progress.nonfinite_steps_in_a_row = 0
        if report.outcome != "non-finite":
            return
        progress.nonfinite_steps += 1
        progress.nonfinite_steps_in_a_row += 1
        summary = f"step {progress.step}: loss {report.loss}, gradient norm {report.norm}"
        file = self.folder / "nonfinite_steps" / f"step-{progress.step:07d}-rank-{self.world.rank}.txt"
        if report.local_nonfinite:
            self.monitor.attempt(
                f"Writing {file.parent.name}",
                lambda: atomic_write_text(file, describe(examples, self.tokenizer, summary)),
            )
        self.monitor.message(
            f"{summary}: not finite, the weights are unchanged; the examples of the step are in {file.parent}"
        )
        # A single non-finite step can be caused by one example, many in a row by diverged weights.
        if progress.nonfinite_steps_in_a_row >= self.config.training.max_nonfinite_steps:
            self.saver.wait()  # the run can be resumed from this checkpoint
            raise UserError(
                f"{summary}: {progress.nonfinite_steps_in_a_row} non-finite steps in a row, so the run ends. The examples are in "
                f"{file.parent}; lower {self.job.name}.learning_rate or set system.mixed_precision=fp32, and resume with: "
                f"{self.job.resume_command(self.folder)}"
            )

    def _write_first_batch(self, examples: Sequence[Example]) -> None:
        if self.world.is_main:
            file, title = self.folder / "first_batch.txt", "the first step's examples"
            self.monitor.attempt(
                f"Writing {file.name}", lambda: atomic_write_text(file, describe(examples, self.tokenizer, title))
            )

    def _log_window(self, report: StepReport) -> Status:
        """Log the metrics since the last call and start a new window."""
        progress, window = self.progress, self.progress.window
        status = Status(
            loss=window.loss,
            smoothed_loss=progress.smoothed_loss if progress.smoothed_loss is not None else float("nan"),
            grad_norm=report.norm,
            learning_rate=self._learning_rate,
            tokens_per_second=window.per_second(window.tokens),
            trained_per_second=window.per_second(window.trained_tokens),
            memory=memory_in_use(self.model.device),
            data_wait_fraction=window.waiting_fraction,
        )
        self._log(
            {
                "train_loss": status.loss,
                "smoothed_loss": status.smoothed_loss,
                "lr": status.learning_rate,
                "grad_norm": status.grad_norm,
                "tokens_per_second": status.tokens_per_second,
                "trained_tokens_per_second": status.trained_per_second,
                "data_wait_share": status.data_wait_fraction,
                "memory_bytes": status.memory,
                "tokens": progress.tokens,
                "trained_tokens": progress.trained_tokens,
                "nonfinite_steps": progress.nonfinite_steps,
            }
        )
        progress.window = Window()
        return status

    def _log(self, values: Metrics) -> None:
        """Log finite values under the job's name and pass them to the callbacks."""
        # JSON has no NaN, and a gap in a curve is easier to see than a point that is not drawn.
        metrics = {f"{self.job.name}/{name}": value for name, value in values.items() if math.isfinite(value)}
        if self.world.is_main:
            self.saver.restore_folder()
        self.monitor.log(self.progress.step, metrics)
        if self.world.is_main:
            for callback in self.callbacks:
                self.monitor.attempt("A callback", partial(callback, self, self.progress.step, metrics))

    def _evaluate_and_save(self) -> None:
        """Evaluate and save when it is due. A new best model is saved even if no save is due."""
        # All ranks have the same step, losses and stop request, so they make the same decisions here.
        progress, phase = self.progress, self.job.phase
        step = progress.step
        if self.job.validation and (step % phase.eval_interval == 0 or step == self.total_steps):
            progress.evaluation_due = True
        is_best = progress.evaluation_due and self._evaluate()
        is_last = step == self.total_steps or self.stopped or self._out_of_patience()
        if is_best or is_last or step % phase.save_interval == 0:
            self.save()

    def _out_of_patience(self) -> bool:
        patience = self.job.phase.patience
        return patience is not None and self.progress.evaluations_since_best >= patience

    def _evaluate(self) -> bool:
        """Evaluate, log the result and show samples. Returns whether it is the best evaluation of the run.

        If a stop is requested before the end, the evaluation remains due, and a resumed run begins with it.
        """
        started, self.validation.timed = time.monotonic(), self._advanced
        try:
            if self._advanced:
                self._check_time(self._evaluation_seconds)
            self.stop.raise_if_requested(self.world)
            evaluation = self.evaluation = self.validation.run()
        except Abandoned:
            self.stopped = self.stop.reason
            self.monitor.message(f"The evaluation of step {self.progress.step} is left to the resumed run.")
            return False
        self._evaluation_seconds, self._advanced = time.monotonic() - started, True
        self.evaluated_step, self.progress.evaluation_due = self.progress.step, False
        progress, best_metric = self.progress, self.job.phase.best_metric
        self._log(evaluation.losses | evaluation.scores)
        show_evaluation(evaluation, progress.step, self.monitor, self.folder)
        rank_key = evaluation.rank_key(best_metric)
        # A resumed run may have another best_metric; values of different metrics cannot be compared.
        previous = progress.best if progress.best_metric in (best_metric, None) else None
        is_best = previous is None or rank_key > previous
        if is_best:
            progress.best, progress.best_metric = rank_key, best_metric
        progress.evaluations_since_best = 0 if is_best else progress.evaluations_since_best + 1
        return is_best

    def save(self) -> None:
        """Save the state of this step. A checkpoint saved without its evaluation is replaced by the same state with the result."""
        progress = self.progress
        evaluation = self.evaluation if self.evaluated_step == progress.step else None
        self.saver.save(
            progress, evaluation, replace=progress.step == self.unevaluated_step and not progress.evaluation_due
        )
