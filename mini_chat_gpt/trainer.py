"""Training: one optimizer step for pretraining and fine-tuning alike, and the loop around it.

The step's loss is Σ w·loss / Σ w over *all* its trained tokens, counted before the first backward; never a mean of means,
so that the size of a micro-batch changes nothing. The examples of a step depend on the seed and the cursor alone, and
the cursor in a checkpoint is that of the examples consumed: a resumed run equals an unbroken one.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn as nn

from mini_chat_gpt.attention import attention
from mini_chat_gpt.batching import Batch, Example, micro_batches
from mini_chat_gpt.checkpoint import load_optimizer, prune, read_state, save_checkpoint
from mini_chat_gpt.config import Config, ScheduleFields
from mini_chat_gpt.device import Precision
from mini_chat_gpt.errors import UserError
from mini_chat_gpt.loss import LossSums
from mini_chat_gpt.model import GPT, Attention
from mini_chat_gpt.monitor import Monitor, StepProgress
from mini_chat_gpt.optim import Optimizer, clip_gradients, lr_fraction
from mini_chat_gpt.tokenizer import ChatTokenizer

Metrics = dict[str, float]
Callback = Callable[["Trainer", int, Metrics], None]


class ExampleSource(Protocol):
    """Examples by slot: `example(i)` is a pure function of i, for any i ≥ 0; `len` is one epoch."""

    def __len__(self) -> int: ...
    def example(self, slot: int) -> Example: ...


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0  # optimizer steps done
    cursor: int = 0  # example slots consumed
    tokens: int = 0  # tokens the model has read
    trained_tokens: int = 0  # of them, targets
    seconds: float = 0.0  # spent in steps
    best_val_loss: float | None = None


@dataclass
class Window:
    """What happened since the last line of metrics: sums, so that their ratio is a true token mean."""

    loss_sum: float = 0.0
    weight: float = 0.0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        return self.loss_sum / self.weight if self.weight else float("nan")

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class TrainResult:
    """What `train` gives back."""

    folder: Path
    steps: int
    train_loss: float  # over the last lines of metrics
    val_losses: Metrics = field(default_factory=dict)  # "val_loss" and "val_loss/KIND" of the last evaluation
    seconds: float = 0.0
    interrupted: bool = False


@dataclass(frozen=True)
class Stage:
    """A part of a run, with examples of its own; what isn't given is as in the rest of it."""

    share: float  # of the run's steps
    source: ExampleSource
    tokens_per_step: int | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class Job:
    """All that distinguishes one kind of training from another."""

    name: str  # "pretrain" or "sft": prefix of metrics, and what the checkpoint says it is
    phase: ScheduleFields
    source: ExampleSource
    validation: Sequence[Example]
    # Text to show at each evaluation, for example replies to a few held-out prompts.
    show: Callable[[GPT], str] | None = None
    stages: Sequence[Stage] = ()
    """What comes before `source`."""


class SlotReader(torch.utils.data.Dataset[Example]):
    """A source as a PyTorch dataset, so that worker processes can prepare examples in order."""

    def __init__(self, source: ExampleSource) -> None:
        self.source = source

    def __getitem__(self, slot: int) -> Example:
        return self.source.example(slot)


def examples_from(source: ExampleSource, cursor: int, workers: int) -> Iterator[Example]:
    """The stream of examples from slot `cursor` on, endless; `workers` processes prepare ahead, the order is the same."""
    if workers == 0:
        while True:
            yield source.example(cursor)
            cursor += 1
    slots = range(cursor, 2**62)
    loader = torch.utils.data.DataLoader(
        SlotReader(source), batch_sampler=_chunks(slots, 32), num_workers=workers, collate_fn=list, prefetch_factor=4
    )
    for examples in loader:
        yield from examples


def _chunks(slots: range, size: int) -> Any:
    return (slots[start : start + size] for start in range(0, len(slots) // size * size, size))


def step_examples(stream: Iterator[Example], examples: int, tokens: int | None) -> list[Example]:
    """The examples of one optimizer step: a fixed number, or as many as reach `tokens`."""
    if tokens is None:
        return [next(stream) for _ in range(examples)]
    taken: list[Example] = []
    while sum(len(example.ids) for example in taken) < tokens:
        taken.append(next(stream))
    return taken


def compile_model(model: GPT) -> nn.Module:
    """The model compiled for any length, but for its attention.

    Layouts are Python objects that differ from batch to batch: compiled code would be made anew for each of them.
    """
    eager = torch.compiler.disable(attention)
    for module in model.modules():
        if isinstance(module, Attention):
            module.product = eager
    return torch.compile(model, dynamic=True)  # type: ignore[return-value]


class Trainer:
    """Runs a job: steps, evaluations, checkpoints. Build it, then call `run`."""

    def __init__(
        self,
        job: Job,
        model: GPT,
        tokenizer: ChatTokenizer,
        config: Config,
        folder: Path,
        monitor: Monitor,
        precision: Precision,
        compiled: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.job, self.model, self.tokenizer, self.config = job, model, tokenizer, config
        self.folder, self.monitor, self.precision, self.callbacks = folder, monitor, precision, callbacks
        self.net: nn.Module = compile_model(model) if compiled else model
        self.optimizer = Optimizer(model, config.training, job.phase)
        self.progress = Progress()
        phase, training = job.phase, config.training
        self.batch_size = phase.batch_size or training.batch_size
        self.tokens_per_step = phase.tokens_per_step or (None if phase.examples_per_step else training.tokens_per_step)
        self.examples_per_step = phase.examples_per_step or training.examples_per_step or self.batch_size
        self.total_steps = self._count_steps()
        self.val_losses: Metrics = {}
        self.stop_requested = False

    def _count_steps(self) -> int:
        phase = self.job.phase
        if phase.epochs is not None:
            slots = phase.epochs * len(self.job.source)
            per_step = float(self.examples_per_step)
            if self.tokens_per_step:
                probe = [len(self.job.source.example(slot).ids) for slot in range(min(256, len(self.job.source)))]
                per_step = self.tokens_per_step / (sum(probe) / len(probe)) + 0.5  # a step ends above its budget
            return max(1, round(slots / per_step))
        if phase.max_steps is None:
            raise UserError(f"{self.job.name}: give max_steps or epochs; both are null.")
        return phase.max_steps

    @property
    def stage(self) -> Stage:
        """The part of the run that the coming step belongs to: one of the job's stages, or the rest."""
        before = 0.0
        for stage in self.job.stages:
            before += stage.share
            if self.progress.step < round(before * self.total_steps):
                return stage
        return Stage(1 - before, self.job.source)

    def resume(self, checkpoint: Path) -> None:
        """Take optimizer and position from a checkpoint (the model's weights are loaded already)."""
        self.progress = Progress(**read_state(checkpoint)["progress"])
        load_optimizer(checkpoint, self.optimizer)

    def run(self) -> TrainResult:
        """Train to the end, or until asked to stop; the last state is always saved."""
        progress, window, last_loss = self.progress, Window(), float("nan")
        stream: Iterator[Example] = iter(())
        streamed: ExampleSource | None = None
        log_every = 1 if self.total_steps <= 200 else 10
        bar = StepProgress(self.monitor.console, self.job.name, progress.step, self.total_steps)
        with _stop_signals(self), bar:
            while progress.step < self.total_steps and not self.stop_requested:
                started = time.monotonic()
                stage = self.stage
                if stage.source is not streamed:
                    streamed = stage.source
                    stream = examples_from(streamed, progress.cursor, self.config.data.num_workers)
                tokens = stage.tokens_per_step or self.tokens_per_step
                examples = step_examples(stream, self.examples_per_step, tokens)
                loss, weight, norm = self.training_step(examples)
                self._count(examples, loss, weight, time.monotonic() - started, window)
                if progress.step % log_every == 0 or progress.step == self.total_steps:
                    last_loss = window.loss
                    self._log_window(window, norm)
                    bar.update(progress.step, f"loss {last_loss:.3f}  {window.tokens_per_second:,.0f} tokens/s")
                    window = Window()
                self._milestones()
        return TrainResult(
            folder=self.folder,
            steps=progress.step,
            train_loss=last_loss,
            val_losses=self.val_losses,
            seconds=progress.seconds,
            interrupted=self.stop_requested,
        )

    def training_step(self, examples: Sequence[Example]) -> tuple[float, float, float]:
        """One optimizer step on these examples: (loss, Σ w, gradient norm)."""
        self.net.train()
        batches = micro_batches(examples, self.batch_size)
        total = sum(float(batch.weights.sum()) for batch in batches)  # before the first backward
        loss = torch.zeros((), device=self.model.device)
        for batch in batches:
            sums = self._forward(batch)
            (sums.weighted_sum / total).backward()
            loss += sums.weighted_sum.detach() / total
        norm = clip_gradients(self.model.parameters(), self.config.training.grad_clip)
        if not torch.isfinite(norm):
            raise UserError(
                f"step {self.progress.step + 1}: loss {float(loss)} and gradient norm {float(norm)} are not finite; "
                "lower the learning rate or set system.mixed_precision=fp32."
            )
        self.optimizer.step(self.lr_fraction, self.stage.weight_decay)
        return float(loss), total, float(norm)

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

    def _forward(self, batch: Batch) -> LossSums:
        with self.precision.autocast(self.model.device):
            return self.net(batch.to(self.model.device))

    def _count(self, examples: Sequence[Example], loss: float, weight: float, seconds: float, window: Window) -> None:
        tokens = sum(len(example.ids) for example in examples)
        window.loss_sum += loss * weight
        window.weight += weight
        window.tokens += tokens
        window.seconds += seconds
        self.progress.step += 1
        self.progress.cursor += len(examples)
        self.progress.tokens += tokens
        self.progress.trained_tokens += sum(example.n_trained for example in examples)
        self.progress.seconds += seconds

    def _log_window(self, window: Window, norm: float) -> None:
        self._log(
            {
                "train_loss": window.loss,
                "lr": self.optimizer.learning_rate,
                "grad_norm": norm,
                "tokens_per_second": window.tokens_per_second,
                "tokens": self.progress.tokens,
                "trained_tokens": self.progress.trained_tokens,
            }
        )

    def _log(self, values: Metrics) -> None:
        metrics = {f"{self.job.name}/{name}": value for name, value in values.items()}
        self.monitor.log(self.progress.step, metrics)
        for callback in self.callbacks:
            callback(self, self.progress.step, metrics)

    def _milestones(self) -> None:
        """Evaluate and save when it is due. A new best is saved whether or not a save is due."""
        step, phase = self.progress.step, self.job.phase
        last = step == self.total_steps or self.stop_requested
        best = False
        if self.job.validation and (step % phase.eval_interval == 0 or step == self.total_steps):
            best = self._evaluate_and_log()
        if best or last or step % phase.save_interval == 0:
            self.save()

    def _evaluate_and_log(self) -> bool:
        """Validation losses and sample replies; returns whether this is the best so far."""
        self.val_losses = self.validate()
        value = self.val_losses["val_loss"]
        self._log(self.val_losses)
        by_kind = "  ".join(
            f"{name.partition('/')[2]} {loss:.3f}" for name, loss in self.val_losses.items() if "/" in name
        )
        self.monitor.message(f"step {self.progress.step}  validation loss {value:.4f}  {by_kind}".rstrip())
        if self.job.show is not None:
            text = self.job.show(self.model.eval())
            self.monitor.message(text)
            with open(self.folder / "samples.txt", "a", encoding="utf-8") as file:
                file.write(f"=== step {self.progress.step}\n{text}\n")
        best = self.progress.best_val_loss is None or value < self.progress.best_val_loss
        if best:
            self.progress.best_val_loss = value
        return best

    @torch.no_grad()
    def validate(self) -> Metrics:
        """Unweighted token mean over the fixed validation set, overall and by kind, each example exactly once."""
        self.model.eval()
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for batch in micro_batches(self.job.validation, max(8, self.batch_size)):
            losses = self._forward(batch).losses.double().cpu()
            for index, kind in enumerate(batch.kind_names):
                of_kind = losses[batch.kinds == index]
                sums[kind] += float(of_kind.sum())
                counts[kind] += len(of_kind)
        overall = {"val_loss": sum(sums.values()) / sum(counts.values())}
        if len(sums) == 1:
            return overall
        return overall | {f"val_loss/{kind}": sums[kind] / counts[kind] for kind in sorted(sums)}

    def save(self) -> None:
        """Write this step's checkpoint and delete those that need not stay."""
        folder = self.folder / f"step-{self.progress.step:07d}"
        if folder.exists():
            return
        info = {"job": self.job.name, "step": self.progress.step, "trained_tokens": self.progress.trained_tokens}
        info |= {"val_loss": self.val_losses.get("val_loss") if self._evaluated_now() else None}
        state = {"progress": asdict(self.progress), "total_steps": self.total_steps}
        save_checkpoint(folder, self.model, self.tokenizer, info, self.optimizer, state)
        prune(self.folder, self.config.training.keep_checkpoints)

    def _evaluated_now(self) -> bool:
        """Whether `val_losses` belongs to the present weights."""
        step = self.progress.step
        return bool(self.val_losses) and (step % self.job.phase.eval_interval == 0 or step == self.total_steps)


@contextmanager
def _stop_signals(trainer: Trainer) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the current step, with a checkpoint; a second SIGINT leaves at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        if trainer.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        trainer.stop_requested = True
        trainer.monitor.message("Stopping after this step and saving; Ctrl-C again leaves at once.")

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
