"""`mini-chat-gpt doctor`: check whether a run works on this machine, and predict its memory and time.

Checks the machine, the data and the base model, predicts peak memory from the settings before anything is allocated, and
times a few steps of the run. Writes nothing to the run folder.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mini_chat_gpt import pretrain, sft_train
from mini_chat_gpt.checkpoints.tensor_files import first_nonfinite
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.device import Precision, pick_device, pick_precision, set_up
from mini_chat_gpt.common.distributed import ALONE
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.resources import free_memory, memory_in_use
from mini_chat_gpt.common.terminal import console, format_duration, format_size
from mini_chat_gpt.config import Config, GPTConfig, ScheduleFields
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.diagnostics.machine_checks import Finding, disk_finding, machine_findings
from mini_chat_gpt.diagnostics.made_up_data import prepare_without_data
from mini_chat_gpt.diagnostics.memory_plan import MemoryPlan, Steps, largest_batch, plan_memory, splits
from mini_chat_gpt.model import GPT
from mini_chat_gpt.training.job import STORY_STEPS
from mini_chat_gpt.training.monitor import Monitor
from mini_chat_gpt.training.run import RunContext, parameter_summary
from mini_chat_gpt.training.time_budget import TimePlan, time_run
from mini_chat_gpt.training.train_step import TrainStep
from mini_chat_gpt.training.trainer import Trainer

SAMPLED_STEPS = 20  # optimizer steps whose examples are read, to find the largest micro-batches
MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "error": "[bold red]error[/]"}
MAX_MEMORY_SHARE = 0.9
"""Share of the free memory that training may use. The rest is for other processes and for the prediction's error."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start, and the examples of its first steps."""

    trainer: Trainer
    config: Config
    device: torch.device
    precision: Precision
    steps: list[list[Example]]
    data_bytes: int  # memory of tokenizer, data and examples

    @property
    def examples_per_step(self) -> int:
        return round(statistics.mean(len(step) for step in self.steps))

    def plan(self) -> MemoryPlan:
        """Predict the peak of memory with the configured micro-batch size."""
        return plan_memory(*self._arguments(), **self._options())

    def largest_batch_size(self, limit: int, first: MemoryPlan) -> int:
        """The largest micro-batch size that needs at most `limit` bytes; `first` is the plan of the configured size."""
        return largest_batch(*self._arguments(), limit=limit, first=first, **self._options())[0]

    def _arguments(self) -> tuple[GPTConfig, Steps, Config, ScheduleFields, torch.device, torch.dtype]:
        job, model = self.trainer.job, self.trainer.model
        return model.config, self.steps, self.config, job.phase, self.device, self.precision.dtype

    def _options(self) -> dict[str, Any]:
        imports = ["mini_chat_gpt.training.run", *(["wandb"] if self.config.wandb.enabled else [])]
        job, model = self.trainer.job, self.trainer.model
        return {"validation": job.validation, "imports": imports, "other": self.data_bytes, "adapter": model.adapter}


def prepare_run(config: Config, job: str, without_data: bool = False) -> PreparedRun:
    """Make everything that the run would make, except its folder; `without_data` with made-up examples instead of its data.

    Raises UserError if something is missing.
    """
    device = pick_device(config.system.device)
    precision = pick_precision(config.system.mixed_precision, device)
    set_up(config.system.seed, config.system.threads)
    quiet = Console(quiet=True)
    section = getattr(config, job)
    context = RunContext(ALONE, device, Path(section.save_dir), None, quiet, time.monotonic(), dry_run=True)
    before = memory_in_use("cpu")
    if without_data:
        prepared = prepare_without_data(config, job, context)
    else:
        prepared = (pretrain if job == "pretrain" else sft_train).prepare(config, context)
    weights = read_weights(prepared.model)
    engine = TrainStep(prepared.model, config, prepared.job.phase, precision, ALONE, device)
    engine.model.activation_checkpointing = config.training.activation_checkpointing
    monitor = Monitor(context.folder, config.wandb, {}, quiet, active=False)
    trainer = Trainer(prepared.job, engine, prepared.tokenizer, config, context.folder, monitor)
    steps = first_steps(trainer)
    data_bytes = max(0, memory_in_use("cpu") - before - weights)
    return PreparedRun(trainer, config, device, precision, steps, data_bytes)


def read_weights(model: GPT) -> int:
    """Bytes of a model's weights, which are then in memory: those that are mapped from a file are read only when they are used."""
    tensors = {tensor.data_ptr(): tensor for tensor in [*model.parameters(), *model.buffers()]}
    first_nonfinite({str(address): tensor.detach() for address, tensor in tensors.items()})
    return sum(tensor.nbytes for tensor in tensors.values())


def weights_finding(config: Config, device: torch.device) -> Finding | None:
    """Return an error if the weights of a new model and their gradients alone don't fit in memory, else None.

    Needs no allocation, so that a model that is far too large is reported before it is made.
    """
    shape = config.model.gpt_config(config.model.vocab_size or config.pretrain.tokenizer_vocab_size)
    needed, free = 8 * shape.n_parameters, free_memory(device)
    if free is None or needed <= free:
        return None
    advice = "use a smaller model.preset, a smaller vocabulary, or more GPUs with system.fsdp=true"
    return Finding(
        "error",
        "memory",
        f"weights and gradients alone take {format_size(needed)}, {format_size(free)} are free: {advice}",
    )


def first_steps(trainer: Trainer) -> list[list[Example]]:
    """Return the examples of the run's first steps; every curriculum stage contributes some."""
    stages = trainer.job.all_stages()
    per_stage = min(max(2, SAMPLED_STEPS // len(stages)), trainer.total_steps)
    steps = []
    for stage in stages:
        with trainer.loader(stage) as loader:
            steps += [trainer.next_examples(loader, stage)[0] for _ in range(per_stage)]
    return steps


def memory_table(plan: MemoryPlan, free: int | None) -> Table:
    """A table of memory at the peak, by purpose."""
    table = Table("at the peak of memory", "", box=None, title_justify="left")
    table.columns[1].justify = "right"
    rows = {
        "weights": plan.weights, "gradients": plan.gradients, "optimizer": plan.optimizer, "averaged weights": plan.ema,
        "activations": plan.activations, "logits": plan.logits, "copy for a checkpoint": plan.snapshot,
        "kernels and gaps": plan.kernels + plan.gaps, "Python and PyTorch": plan.baseline, "tokenizer and data": plan.other,
    }  # fmt: skip
    for name, n_bytes in rows.items():
        if n_bytes >= 5e5:
            table.add_row(name, format_size(n_bytes))
    table.add_row("[bold]total[/]", f"[bold]{format_size(plan.total)}[/]", end_section=True)
    if free is not None:
        table.add_row("free now", format_size(free))
    return table


def memory_finding(plan: MemoryPlan, free: int | None) -> Finding:
    """Compare the predicted peak with the free memory."""
    if free is None:
        return Finding(
            "note", "memory", f"{format_size(plan.total)} needed; this system does not report its free memory"
        )
    if plan.total > free:
        advice = "lower training.batch_size or data.seq_len, or set training.activation_checkpointing=true"
        return Finding("error", "memory", f"{format_size(plan.total)} needed, {format_size(free)} free: {advice}")
    return Finding("ok", "memory", f"{format_size(plan.total)} needed, {format_size(free)} free")


def gaps_advice(plan: MemoryPlan) -> str | None:
    """Suggest an allocator setting if gaps between tensors take much memory (measured in benchmarks/RESULTS.md)."""
    if plan.gaps < 0.15 * plan.total or "tcache_count" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    return (
        f"{format_size(plan.gaps)} are gaps between tensors that the C library can't reuse. Put "
        "GLIBC_TUNABLES=glibc.malloc.tcache_count=0 before the command to have fewer of them, at the same speed."
    )


def time_estimate(trainer: Trainer, plan: TimePlan) -> str:
    """A sentence about the duration of the whole run."""
    phase = trainer.job.phase
    seconds = plan.seconds_of(trainer.total_steps, phase.eval_interval)
    evaluations = -(-trainer.total_steps // phase.eval_interval)
    return (
        f"{trainer.total_steps:,} steps of {plan.step:.2f} s and {evaluations:,} evaluations of {plan.evaluation:.1f} s: "
        f"about {format_duration(seconds)} (--time-budget chooses the number of steps for a given time)"
    )


def compare_batch_sizes(run: PreparedRun, plan: MemoryPlan, free: int | None, out: Console) -> None:
    """Time several micro-batch sizes that fit in memory, with the same examples per step, and print the fastest."""
    largest = run.trainer.engine.batch_size
    if free is not None:
        largest = run.largest_batch_size(int(MAX_MEMORY_SHARE * free), plan)
    candidates = splits(run.examples_per_step, max(1, largest))[:5]
    engine, per_step = run.trainer.engine, run.examples_per_step
    configured, current = engine.batch_size, min(engine.batch_size, per_step)
    speeds: dict[int, float] = {}
    for batch_size in dict.fromkeys([current, *(split.batch_size for split in candidates)]):
        # With training.tokens_per_step the number of examples varies, and a configured size may mean "all of them".
        engine.batch_size = configured if batch_size == current else batch_size
        speeds[batch_size] = per_step / time_run(run.trainer, seconds=6.0).step
    engine.batch_size = configured
    table = Table("micro-batch", "accumulation", "examples/s", box=None)
    for batch_size, speed in sorted(speeds.items()):
        note = " (as configured)" if batch_size == current else ""
        table.add_row(f"{batch_size}{note}", str(-(-run.examples_per_step // batch_size)), f"{speed:.1f}")
    out.print(table)
    best = max(speeds, key=lambda batch_size: speeds[batch_size])
    if speeds[best] > 1.05 * speeds[current]:
        gain = speeds[best] / speeds[current]
        out.print(
            f"training.batch_size={best} is {gain:.2f} times as fast, with the same examples in each step.",
            markup=False,
        )
    else:
        out.print(f"training.batch_size={configured} is as fast as any other that fits.", markup=False)


def show(findings: Sequence[Finding], out: Console) -> None:
    """Print one line for each finding."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        table.add_row(MARKS[finding.level], finding.about, finding.what)
    out.print(table)


def check(config: Config, job: str, out: Console) -> int:
    """Run all checks and print their results. Return 0 if the run can start, else 2."""
    section = getattr(config, job)
    findings = list(machine_findings(config, section.max_steps if isinstance(section.max_steps, int) else STORY_STEPS))
    if job == "pretrain" and (too_large := weights_finding(config, pick_device(config.system.device))):
        findings.append(too_large)
    if any(finding.level == "error" for finding in findings):
        show(findings, out)
        return 2
    run = prepare_what_is_there(config, job, findings)
    if run is None:
        show(findings, out)
        return 2
    model, trainer = run.trainer.model, run.trainer
    findings.append(Finding("ok", "model", f"{parameter_summary(model)}, context {model.config.context_length}"))
    plan, free = run.plan(), free_memory(run.device)
    findings.append(
        disk_finding(Path(section.save_dir), plan.weights + plan.optimizer + plan.ema, config.training.keep_checkpoints)
    )
    findings.append(memory_finding(plan, free))
    show(findings, out)
    out.print()
    out.print(memory_table(plan, free))
    for note in [*plan.notes, *filter(None, [gaps_advice(plan)])]:
        out.print(note, markup=False)
    missing = [finding.about for finding in findings if finding.level == "error"]
    if missing not in ([], ["data"]):
        return 2
    out.print()
    out.print(time_estimate(trainer, time_run(trainer, seconds=10.0)), markup=False)
    out.print()
    compare_batch_sizes(run, plan, free, out)
    return 2 if missing else 0


def prepare_what_is_there(config: Config, job: str, findings: list[Finding]) -> PreparedRun | None:
    """The run, with made-up examples if its data can't be used; None if its model can't either. Adds to the findings."""
    try:
        run = prepare_run(config, job)
    except UserError as error:
        findings.append(Finding("error", "data", str(error)))
    else:
        job_ = run.trainer.job
        findings.append(Finding("ok", "data", f"{', '.join(map(str, job_.files))}: {len(job_.source):,} examples"))
        return run
    with suppress(UserError):
        run = prepare_run(config, job, without_data=True)
        findings.append(Finding("note", "plan", f"the following is for {run.trainer.job.source}"))
        return run
    return None


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt doctor` with a parsed command line."""
    return check(arguments.settings, arguments.job, console())


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("doctor", argv))


if __name__ == "__main__":
    exit_with(main)
