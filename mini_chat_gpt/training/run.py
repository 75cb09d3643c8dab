"""A training run in its folder: what every training command does before and after the steps themselves.

config.yaml  run.json         the settings with all defaults; versions, code, data, as they were
first_batch.txt               the first step's examples as text
metrics.jsonl  loss.png       what is also shown in the terminal and in wandb
samples.txt                   replies to held-out prompts at each evaluation
step-0000100/ …               checkpoints
result.json                   when the run has come to its end
"""

from __future__ import annotations

import argparse
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

from mini_chat_gpt.checkpoints.find import move_aside, read_state, remove_partial
from mini_chat_gpt.common import distributed
from mini_chat_gpt.common.device import pick_device, pick_precision, set_up
from mini_chat_gpt.common.distributed import World
from mini_chat_gpt.common.entry import under_torchrun
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text, write_json
from mini_chat_gpt.common.terminal import console, format_duration
from mini_chat_gpt.config import Config, PretrainSection, SFTSection, seconds_in
from mini_chat_gpt.config_file import load_config, to_yaml
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.compile import choose_compiling, compile_model
from mini_chat_gpt.training.loss_curves import draw_losses
from mini_chat_gpt.training.monitor import Monitor, keep_metrics_until, new_run_id
from mini_chat_gpt.training.run_facts import collect, differences
from mini_chat_gpt.training.run_folder import FACTS, RESULT, RunFolder, find_place, held, read_facts, run_to_go_on
from mini_chat_gpt.training.stop import EXIT_CODES
from mini_chat_gpt.training.time_budget import time_run
from mini_chat_gpt.training.train_step import TrainStep
from mini_chat_gpt.training.trainer import Callback, Job, Trainer, TrainResult


@dataclass(frozen=True)
class Start:
    """What a run begins with, before there is a model."""

    world: World
    device: torch.device
    place: RunFolder
    out: Console
    time: float  # of `time.monotonic`
    rehearsal: bool = False  # nothing may be written


@dataclass(frozen=True)
class Prepared:
    """What is to be trained, and on what."""

    job: Job
    model: GPT  # on the CPU
    tokenizer: ChatTokenizer


def begin(config: Config, section: SFTSection | PretrainSection) -> Start:
    """Find the other processes, the device, and the folder of the run."""
    started = time.monotonic()
    device = pick_device(config.system.device)
    insist_on_torchrun(config)
    world = distributed.join(device.type)
    if world.launch is not None and device.type == "cuda":
        device = pick_device(f"cuda:{world.local_rank}")
        torch.cuda.set_device(device)
    set_up(config.system.seed, config.system.threads, world)
    if not world.is_main:
        warnings.simplefilter("ignore")  # rank 0 says the same
    place = world.broadcast(lambda: find_place(section, world.launch))
    return Start(world, device, place, console(quiet=not world.is_main), started)


def execute(prepared: Prepared, config: Config, start: Start, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train in the run's folder, showing what is about to happen first and what came of it at the end."""
    folder = start.place.folder
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder) if start.world.is_main else nullcontext(), distributed.lost_peers_named(start.world):
        return _execute(prepared, config, start, callbacks)


def _execute(prepared: Prepared, config: Config, start: Start, callbacks: Sequence[Callback]) -> TrainResult:
    job, world, out, checkpoint = prepared.job, start.world, start.out, start.place.checkpoint
    at_step = read_state(checkpoint)["progress"]["step"] if checkpoint is not None else 0
    facts = world.broadcast(lambda: open_folder(prepared, config, start, at_step))
    precision = pick_precision(config.system.mixed_precision, start.device)
    engine = TrainStep(prepared.model, config, job.phase, precision, world, start.device)
    engine.model.activation_checkpointing = config.training.activation_checkpointing
    folder = start.place.folder
    with Monitor(folder, config.wandb, config.model_dump(), out, facts["wandb_id"], active=world.is_main) as monitor:
        trainer = Trainer(job, engine, prepared.tokenizer, config, folder, monitor, callbacks, start.time)
        if checkpoint is not None:
            trainer.resume(checkpoint)
        steps_left = trainer.total_steps - trainer.progress.step
        compiling = choose_compiling(config.system.compile, start.device, steps_left, engine.model.config)
        if compiling.on:
            compile_model(engine.model)
        if checkpoint is None and config.training.time_budget:
            _plan(trainer, seconds_in(config.training.time_budget), start)
        _announce(trainer, [precision.reason, compiling.reason, _world_summary(engine)], out)
        result = trainer.run()
    if world.is_main:
        _finish(result, trainer, start)
    return result


def open_folder(prepared: Prepared, config: Config, start: Start, at_step: int) -> dict[str, Any]:
    """Make the run's folder ready for going on at `at_step`; returns what its run.json holds."""
    folder = start.place.folder
    remove_partial(folder)
    for later in move_aside(folder, at_step):
        start.out.print(
            f"{later} was ahead of what this run goes on from, or damaged; it is kept under this name.", markup=False
        )
    atomic_write_text(folder / "config.yaml", to_yaml(config))
    keep_metrics_until(folder, at_step)
    now = collect(prepared.job.files, prepared.tokenizer.fingerprint())
    facts = read_facts(folder) if at_step else {}
    if not facts:
        facts = {"launch": start.world.launch, "wandb_id": new_run_id(), "began": now, "went_on": []}
    else:
        for sentence in (changes := differences(facts["began"], now)):
            start.out.print(f"Since this run began: {sentence}", markup=False, soft_wrap=True)
        facts["launch"] = start.world.launch
        facts["went_on"].append({"at_step": at_step, "processes": start.world.size, "changes": changes})
    write_json(folder / FACTS, facts)
    return facts


def _plan(trainer: Trainer, budget: float, start: Start) -> None:
    """Set the number of steps to what fits the time that is left of the budget."""
    start.out.print(f"Timing a few steps, to plan a run of {format_duration(budget)} …", markup=False)
    plan = time_run(trainer, 0.03 * budget)
    spent = start.world.broadcast(lambda: time.monotonic() - start.time)
    trainer.plan(plan.steps_in(budget - spent, trainer.job.phase.eval_interval))
    start.out.print(
        f"{plan.step:.2f} s a step, {plan.evaluation:.1f} s an evaluation: {trainer.total_steps:,} steps fit.",
        markup=False,
    )


def _world_summary(engine: TrainStep) -> str:
    if engine.world.size == 1:
        return ""
    return f"{engine.world.size} processes" + (", sharded (FSDP2)" if engine.sharded else "")


def _announce(trainer: Trainer, reasons: Sequence[str], out: Console) -> None:
    per_step = (
        f"{trainer.tokens_per_step:,} tokens" if trainer.tokens_per_step else f"{trainer.examples_per_step} examples"
    )
    at = f", going on from step {trainer.progress.step:,}" if trainer.progress.step else ""
    out.print(
        f"{trainer.job.name}: {parameters_in_words(trainer.model)}, {trainer.total_steps:,} steps of "
        f"{per_step}{at}, {len(trainer.job.source):,} examples an epoch, {len(trainer.job.validation)} for validation\n"
        f"on {trainer.model.device}; {'; '.join(reason for reason in reasons if reason)}\n"
        f"run folder {trainer.folder}",
        markup=False,
        soft_wrap=True,
    )


def parameters_in_words(model: GPT) -> str:
    """How many there are, and how many of them are trained where not all are."""
    whole = f"{model.n_parameters() / 1e6:.2f} M parameters"
    if model.adapter is None:
        return whole
    n_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    kept = {"float32": "float32", "bf16": "16 bits", "fp16": "16 bits", "nf4": "4 bits"}[model.adapter.frozen]
    return f"{whole}, of which {n_trained / 1e6:.2f} M are trained, in an adapter, and the others frozen in {kept}"


def _finish(result: TrainResult, trainer: Trainer, start: Start) -> None:
    """Say how it ended; a run at its end gets its result.json."""
    out, folder, job = start.out, result.folder, trainer.job.name
    try:
        draw_losses(folder)
    except Exception as error:  # a picture must not end a run, whatever goes wrong inside it
        out.print(f"loss.png could not be drawn: {error}", markup=False)
    if result.stopped:
        out.print(
            f"Stopped ({result.stopped}) at step {result.steps:,} of {trainer.total_steps:,}, saved. "
            f"Go on with: {job}.resume_from={folder}",
            markup=False,
            soft_wrap=True,
        )
        return
    write_json(
        folder / RESULT, {"steps": result.steps, "train_loss": result.train_loss, **result.val_losses, **result.scores}
    )
    early = ""
    if result.steps < trainer.total_steps:
        early = f" at step {result.steps:,}, as the validation loss has not improved {trainer.job.phase.patience} times in a row"
    spent, budget = time.monotonic() - start.time, trainer.config.training.time_budget
    if budget and trainer.progress.step == trainer.progress.planned_steps and spent > 1.02 * seconds_in(budget):
        early += f", {format_duration(spent - seconds_in(budget))} over its budget of {budget}"
    accidents = f"; {trainer.progress.accidents} steps were not finite" if trainer.progress.accidents else ""
    out.print(f"Done in {format_duration(spent)}{early}{accidents}: {folder}", markup=False, soft_wrap=True)


def insist_on_torchrun(config: Config, argv: Sequence[str] = ()) -> None:
    """Raises UserError with the line to type where several processes are asked for and there is only one."""
    asked = [f"system.{name}" for name in ("multi_gpu", "fsdp") if getattr(config.system, name)]
    if not asked or under_torchrun():
        return
    program = Path(sys.argv[0])
    what = str(program) if program.suffix == ".py" else f"-m mini_chat_gpt.cli {program.name.partition(' ')[2]}".strip()
    processes = torch.cuda.device_count() if torch.cuda.device_count() > 1 else 2
    line = f"torchrun --nproc_per_node={processes} {what} {shlex.join(argv)}".strip()
    raise UserError(f"{asked[0]} needs several processes, which torchrun starts; type: {line}")


def run_command(arguments: argparse.Namespace, job: Callable[[Config], TrainResult], section: str) -> int:
    """Run a training job with the settings of its command line (`cli.parse`); returns the exit code (see stop.py)."""
    config: Config = arguments.settings
    insist_on_torchrun(config, arguments.argv)
    launch = distributed.launch_of(os.environ) if under_torchrun() else None
    going_on = run_to_go_on(getattr(config, section), launch)
    if arguments.config is None and going_on is not None and (going_on / "config.yaml").is_file():
        # Resume with the settings of the run, except for the time limit, which applies to one start only.
        config = load_config(going_on / "config.yaml", ["training.time_limit=null", *arguments.overrides])
    result = job(config)
    distributed.leave()
    if result.stopped == "time limit" and launch is not None:
        return 0  # torchrun would take any other code for a failure, and start again
    return EXIT_CODES.get(result.stopped, 0)
