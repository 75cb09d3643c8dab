"""Run a training job in its folder: everything that a training command does before and after the steps.

config.yaml  run.json         all settings, defaults included; versions, code and data
first_batch.txt               the examples of the first step as text
metrics.jsonl  loss.png       the metrics that the terminal and wandb show, too
samples.txt                   replies to held-out prompts at each evaluation
step-0000100/ …               checkpoints
result.json                   written when the run has finished
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mini_chat_gpt.checkpoints.find import is_checkpoint, move_aside, steps_of
from mini_chat_gpt.common import distributed
from mini_chat_gpt.common.device import pick_device, pick_precision, set_up
from mini_chat_gpt.common.distributed import World
from mini_chat_gpt.common.entry import command_of, under_torchrun
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text, json_text, readable_disk_errors, remove_leftovers, write_json
from mini_chat_gpt.common.output import flush_or_discard
from mini_chat_gpt.common.terminal import console, format_duration
from mini_chat_gpt.common.writable import path_errors, require_writable
from mini_chat_gpt.config import Config, PretrainSection, SFTSection, seconds_in
from mini_chat_gpt.config_file import load_config, to_yaml
from mini_chat_gpt.data.step_loader import count_workers
from mini_chat_gpt.model import GPT
from mini_chat_gpt.training.compile import choose_compiling, compile_model
from mini_chat_gpt.training.fixed_settings import changed_settings, require_same_settings
from mini_chat_gpt.training.job import CHAT_EPOCHS, STORY_STEPS, Callback, Prepared, Progress, TrainResult
from mini_chat_gpt.training.loss_curves import PLOT, draw_losses
from mini_chat_gpt.training.monitor import Monitor, keep_metrics_until
from mini_chat_gpt.training.provenance import (
    METADATA,
    collect_provenance,
    keep_damaged_metadata,
    provenance_changes,
    read_metadata,
)
from mini_chat_gpt.training.run_folder import (
    RESULT,
    RunFolder,
    RunLock,
    find_run_folder,
    locked,
    run_to_resume,
)
from mini_chat_gpt.training.stop import URGENT, exit_code
from mini_chat_gpt.training.time_budget import time_run
from mini_chat_gpt.training.train_step import TrainStep
from mini_chat_gpt.training.trainer import Trainer
from mini_chat_gpt.training.wandb_run import new_run_id

CONFIG = "config.yaml"
SUMMARY = 60.0
"""Seconds before the time limit from which on a run ends without its summary."""
FEW_STEPS = 10
"""A run of fewer steps than these changes little, whatever the learning rate."""


@dataclass(frozen=True)
class RunContext:
    """What a run knows before its model is loaded."""

    world: World
    device: torch.device
    folder: Path
    checkpoint: Path | None  # to resume from; None for a new run
    out: Console
    start_time: float  # reading of `time.monotonic`
    dry_run: bool = False  # write nothing


def begin(config: Config, section: SFTSection | PretrainSection) -> RunContext:
    """Join the other processes, choose the device, and find the folder of the run."""
    start_time = time.monotonic()
    device = pick_device(config.system.device)
    require_torchrun(config)
    world = distributed.join(device.type)
    if world.launch is not None and device.type == "cuda":
        device = pick_device(f"cuda:{world.local_rank}")
        torch.cuda.set_device(device)
    count_workers(config.data.num_workers)  # raises UserError for too many
    set_up(config.system.seed, config.system.threads, world)
    if not world.is_main:
        warnings.simplefilter("ignore")  # rank 0 prints the same warnings
    out = console(quiet=not world.is_main, optional=True)
    found = world.broadcast(lambda: _find_folder(config, section, world.launch))
    return RunContext(world, device, found.folder, found.checkpoint, out, start_time)


def _find_folder(config: Config, section: SFTSection | PretrainSection, launch: str | None) -> RunFolder:
    """The run's folder. Raises UserError if the run can't be resumed, not with these settings, or can't be written."""
    with path_errors(section.save_dir):
        found = find_run_folder(section, launch)
    if found.checkpoint is not None:
        require_same_settings(config, "sft" if isinstance(section, SFTSection) else "pretrain", found.checkpoint)
    require_writable(found.folder)  # now, not after the data has been prepared
    return found


def execute(prepared: Prepared, config: Config, run: RunContext, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train in the run's folder. Prints a summary before the first step and after the last."""
    with locked(run.folder) if run.world.is_main else nullcontext() as lock:
        return _execute(prepared, config, run, callbacks, lock)


def _execute(
    prepared: Prepared, config: Config, run: RunContext, callbacks: Sequence[Callback], lock: RunLock | None
) -> TrainResult:
    job, world, out, folder = prepared.job, run.world, run.out, run.folder
    precision = pick_precision(config.system.mixed_precision, run.device)
    engine = TrainStep(prepared.model, config, job.phase, precision, world, run.device)
    engine.model.activation_checkpointing = config.training.activation_checkpointing
    # A run that can't be resumed is refused before anything in its folder changes.
    resumed = None if run.checkpoint is None else engine.restore(run.checkpoint, config.training.reset_optimizer)
    start = Progress() if resumed is None else resumed.progress
    metadata = world.broadcast(lambda: prepare_folder(prepared, config, run, start))
    settings, wandb_id = config.model_dump(), metadata["wandb_id"]
    with Monitor(folder, config.wandb, settings, out, wandb_id, active=world.is_main) as monitor:
        trainer = Trainer(job, engine, prepared.tokenizer, config, folder, monitor, callbacks, run.start_time)
        if resumed is not None:
            trainer.resume(resumed)
        trainer.saver.lock = lock
        trainer.saver.files = {CONFIG: to_yaml(config), METADATA: json_text(metadata)}
        steps_left = trainer.total_steps - trainer.progress.step
        compiling = choose_compiling(config.system.compile, run.device, steps_left, engine.model.config)
        if compiling.on:
            compile_model(engine.model)
            trainer.threads.fixed = True  # code is compiled for the number of threads
        if run.checkpoint is None and config.training.time_budget:
            _fit_time_budget(trainer, seconds_in(config.training.time_budget), run)
        _print_summary(trainer, [precision.reason, compiling.reason, _world_summary(engine)], out)
        result = trainer.run()
    if world.is_main:
        _finish(result, trainer, run)
    return result


def prepare_folder(prepared: Prepared, config: Config, run: RunContext, start: Progress) -> dict[str, Any]:
    """Prepare the run's folder for training from the position `start` on. Returns the content of run.json."""
    with readable_disk_errors(run.folder):
        return _prepare_folder(prepared, config, run, start)


def _prepare_folder(prepared: Prepared, config: Config, run: RunContext, start: Progress) -> dict[str, Any]:
    first_step = start.step
    provenance = collect_provenance(prepared.job.files, prepared.tokenizer.fingerprint(), run.folder)
    remove_leftovers(run.folder, exclusive=True)  # the folder's lock is held
    for moved in move_aside(run.folder, first_step):
        run.out.print(
            f"{moved} is damaged or later than the resumed checkpoint; it is kept under this name.", markup=False
        )
    if first_step and (changed := changed_settings(config, prepared.job.name, run.folder)):
        run.out.print(f"Other settings than at the last start: {', '.join(changed)}", markup=False, soft_wrap=True)
    atomic_write_text(run.folder / CONFIG, to_yaml(config))
    keep_metrics_until(run.folder, first_step, evaluated=not start.evaluation_due)
    metadata = read_metadata(run.folder) if first_step else {}
    if not metadata:
        keep_damaged_metadata(run.folder)
        metadata = {"launch": run.world.launch, "wandb_id": new_run_id(), "began": provenance, "went_on": []}
    else:
        for sentence in (changes := provenance_changes(metadata["began"], provenance)):
            run.out.print(f"Since this run began: {sentence}", markup=False, soft_wrap=True)
        metadata["launch"] = run.world.launch
        metadata["went_on"].append({"at_step": first_step, "processes": run.world.size, "changes": changes})
    write_json(run.folder / METADATA, metadata)
    return metadata


def _fit_time_budget(trainer: Trainer, budget: float, run: RunContext) -> None:
    """Set the number of steps to what fits in the rest of the budget, in seconds."""
    run.out.print(f"Timing a few steps to plan a run of {format_duration(budget)} …", markup=False)
    plan = time_run(trainer, 0.03 * budget)
    spent = run.world.broadcast(lambda: time.monotonic() - run.start_time)
    trainer.set_total_steps(plan.steps_in(budget - spent, trainer.job.phase.eval_interval))
    run.out.print(
        f"{plan.step:.2f} s per step, {plan.evaluation:.1f} s per evaluation: {trainer.total_steps:,} steps fit.",
        markup=False,
    )


def _world_summary(engine: TrainStep) -> str:
    if engine.world.size == 1:
        return ""
    return f"{engine.world.size} processes" + (", sharded (FSDP2)" if engine.sharded else "")


def _print_summary(trainer: Trainer, reasons: Sequence[str], out: Console) -> None:
    per_step = (
        f"{trainer.tokens_per_step:,} tokens" if trainer.tokens_per_step else f"{trainer.examples_per_step} examples"
    )
    resumed = f", resumed from step {trainer.progress.step:,}" if trainer.progress.step else ""
    optimizer = trainer.engine.optimizer
    reason = f" (auto: {optimizer.rate_reason})" if optimizer.rate_reason else ""
    out.print(
        f"{trainer.job.name}: {parameter_summary(trainer.model)}, {trainer.total_steps:,} steps of {per_step}{resumed}, "
        f"{len(trainer.job.source):,} examples per epoch, {len(trainer.job.validation)} for validation\n"
        f"learning rate {optimizer.learning_rate:g}{reason}{_steps_reason(trainer)}\n"
        f"on {trainer.model.device}; {'; '.join(reason for reason in reasons if reason)}\n"
        f"run folder {trainer.folder}",
        markup=False,
        soft_wrap=True,
    )


def _steps_reason(trainer: Trainer) -> str:
    """What max_steps=auto has chosen, if it has."""
    section = getattr(trainer.config, trainer.job.name)
    if section.max_steps != "auto" or section.epochs is not None or trainer.progress.planned_steps:
        return ""
    chosen = f"{CHAT_EPOCHS} epochs of the chats" if trainer.job.phase.epochs else f"{STORY_STEPS:,} steps of stories"
    few = trainer.job.phase.epochs and trainer.total_steps < FEW_STEPS
    more = f", too few steps to learn much; {trainer.job.name}.max_steps=100 makes more" if few else ""
    return f"; length {chosen} (auto){more}"


def parameter_summary(model: GPT) -> str:
    """The number of parameters, and the number of trained ones if some are frozen."""
    total = f"{model.n_parameters() / 1e6:.2f} M parameters"
    if model.adapter is None:
        return total
    n_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = {"float32": "float32", "bf16": "16 bits", "fp16": "16 bits", "nf4": "4 bits"}[model.adapter.frozen]
    return f"{total}, of which {n_trained / 1e6:.2f} M are trained in an adapter; the rest is frozen in {frozen}"


def _finish(result: TrainResult, trainer: Trainer, run: RunContext) -> None:
    """Draw the losses, write result.json if the run has finished, and print how it ended."""
    out, folder = run.out, result.folder
    if result.stopped not in URGENT:  # drawing can take long
        trainer.monitor.attempt(f"Drawing {PLOT}", lambda: draw_losses(folder))
    if result.stopped:
        saved = f"at step {result.steps:,} of {trainer.total_steps:,}, saved. Resume with: {trainer.job.resume_command(folder)}"
        if not steps_of(folder):
            saved = "before the first step; start it again with the same command."
        out.print(f"Stopped ({result.stopped}) {saved}", markup=False, soft_wrap=True)
        return
    _require_finite(result, trainer)
    train_loss = result.train_loss if math.isfinite(result.train_loss) else None
    scores = {"steps": result.steps, "train_loss": train_loss, **result.val_losses, **result.scores}
    write_json(folder / RESULT, scores)
    details = ""
    if result.steps < trainer.total_steps:
        patience = trainer.job.phase.patience
        times = "1 evaluation" if patience == 1 else f"{patience} evaluations"
        details = f" at step {result.steps:,}, because {times} in a row did not improve the best"
    spent, budget = time.monotonic() - run.start_time, trainer.config.training.time_budget
    if budget and trainer.progress.step == trainer.progress.planned_steps and spent > 1.02 * seconds_in(budget):
        details += f", {format_duration(spent - seconds_in(budget))} over its budget of {budget}"
    if trainer.progress.nonfinite_steps:
        details += f"; {trainer.progress.nonfinite_steps} non-finite steps"
    out.print(f"Done in {format_duration(spent)}{details}: {folder}", markup=False, soft_wrap=True)
    trainer.monitor.attempt("Replying to held-out prompts", lambda: _print_result(result, trainer, out))


def _print_result(result: TrainResult, trainer: Trainer, out: Console) -> None:
    """Print the job's summary, from the weights of the last step, unless the time is up or they are not on this process alone."""
    deadline = trainer.stop.deadline
    if trainer.job.summary is None or trainer.engine.sharded or (deadline and time.monotonic() + SUMMARY > deadline):
        return
    with trainer.engine.averaged():
        shown = trainer.job.summary(trainer.validation.model(), result)
    if shown is not None:
        out.print(shown)


def _require_finite(result: TrainResult, trainer: Trainer) -> None:
    """Raise UserError if a run that has made its last step ends with a loss that is not finite."""
    n, loss = trainer.progress.nonfinite_steps_in_a_row, result.val_losses.get("val_loss", 0.0)
    if n and not math.isfinite(result.train_loss):
        problem = f"its last {n} steps were not finite" if n > 1 else "its last step was not finite"
    elif not math.isfinite(loss):
        problem = f"its validation loss is {loss}"
    else:
        return
    raise UserError(
        f"The run in {result.folder} has made its {result.steps:,} steps, but {problem}, so it is not finished; train again "
        f"with a lower {trainer.job.name}.learning_rate or with system.mixed_precision=fp32."
    )


def require_torchrun(config: Config, argv: Sequence[str] = ()) -> None:
    """Raises UserError with the command to type if the settings need several processes and there is only one."""
    settings = [f"system.{name}" for name in ("multi_gpu", "fsdp") if getattr(config.system, name)]
    if not settings or under_torchrun():
        return
    processes = torch.cuda.device_count() if torch.cuda.device_count() > 1 else 2
    command = f"{command_of(Path(sys.argv[0]).name.partition(' ')[2], processes)} {shlex.join(argv)}".strip()
    raise UserError(f"{settings[0]} needs several processes, which torchrun starts; type: {command}")


def run_command(arguments: argparse.Namespace, job: Callable[[Config], TrainResult], section: str) -> int:
    """Run a training job with the settings of its command line (`cli.parse`); returns the exit code (see stop.py)."""
    config: Config = arguments.settings
    require_torchrun(config, arguments.argv)
    launch = distributed.launch_of(os.environ) if under_torchrun() else None
    own: SFTSection | PretrainSection = getattr(config, section)
    with path_errors(own.save_dir):
        resumed = run_to_resume(own, launch)
    is_run = resumed is not None and ((resumed / CONFIG).is_file() or bool(steps_of(resumed)))
    if own.resume_from is not None and is_checkpoint(Path(own.resume_from)):
        is_run = True  # also a checkpoint that was copied out of its run
    if arguments.config is None and resumed is not None and is_run:
        # Resume with the settings of the run, except for those that apply to one start only.
        if not (resumed / CONFIG).exists():
            raise UserError(
                f"{resumed} has no {CONFIG}, so the settings of the run are not known; name a file with them: --config FILE."
            )
        once = ["training.time_limit=null", "training.reset_optimizer=false"]
        config = load_config(resumed / CONFIG, [*once, *arguments.overrides], of_run=True)
    result = job(config)
    distributed.leave()
    flush_or_discard(sys.stdout)  # a run that has finished is a success even if its output is lost
    return exit_code(result.stopped)
