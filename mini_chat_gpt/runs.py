"""A training run from a config to its result: what pretraining and fine-tuning do alike around the trainer.

The run folder holds all that is needed to look at the run later: the resolved config, the metrics, samples, checkpoints.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from mini_chat_gpt.checkpoint import find_checkpoint, is_checkpoint, read_state, steps_of
from mini_chat_gpt.config import Config
from mini_chat_gpt.device import Precision, pick_precision, should_compile
from mini_chat_gpt.files import atomic_write_text, write_json
from mini_chat_gpt.model import GPT
from mini_chat_gpt.monitor import Monitor, clock, keep_metrics_until
from mini_chat_gpt.settings_file import load_config, to_yaml
from mini_chat_gpt.tokenizer import ChatTokenizer
from mini_chat_gpt.trainer import Callback, Job, Trainer, TrainResult

RESULT = "result.json"


def console() -> Console:
    """The terminal, as every job writes to it."""
    return Console(highlight=False)


def resume_point(resume_from: str | None) -> tuple[Path, Path] | None:
    """(run folder, checkpoint) to go on from: the newest whole checkpoint of a run, or the one named."""
    if resume_from is None:
        return None
    checkpoint = find_checkpoint(resume_from, prefer="last")
    read_state(checkpoint)  # says so if it can't be continued
    return checkpoint.parent, checkpoint


def execute(
    job: Job,
    model: GPT,
    tokenizer: ChatTokenizer,
    config: Config,
    save_dir: str,
    resume: tuple[Path, Path] | None,
    out: Console,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train `job` in its run folder, showing what is about to happen first and what came of it at the end."""
    folder = resume[0] if resume else free_run(save_dir)
    precision = pick_precision(config.system.mixed_precision, model.device)
    compiled = should_compile(config.system.compile)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / "config.yaml", to_yaml(config))
    keep_metrics_until(folder, read_state(resume[1])["progress"]["step"] if resume else 0)
    with Monitor(folder, config.wandb, config.model_dump(), out) as monitor:
        trainer = Trainer(job, model, tokenizer, config, folder, monitor, precision, compiled, callbacks)
        if resume:
            trainer.resume(resume[1])
        _announce(trainer, model, precision, compiled, out)
        started = time.monotonic()
        result = trainer.run()
    if result.interrupted:
        out.print(
            f"Stopped at step {result.steps} of {trainer.total_steps}, saved. Go on with: {job.name}.resume_from={folder}",
            markup=False,
        )
    else:
        write_json(folder / RESULT, {"steps": result.steps, "train_loss": result.train_loss, **result.val_losses})
        out.print(f"Done in {clock(time.monotonic() - started)}: {folder}", markup=False)
    return result


def _announce(trainer: Trainer, model: GPT, precision: Precision, compiled: bool, out: Console) -> None:
    per_step = (
        f"{trainer.tokens_per_step:,} tokens" if trainer.tokens_per_step else f"{trainer.examples_per_step} examples"
    )
    at = f", going on from step {trainer.progress.step:,}" if trainer.progress.step else ""
    out.print(
        f"{trainer.job.name}: {model.n_parameters() / 1e6:.2f} M parameters, {trainer.total_steps:,} steps of {per_step}{at}, "
        f"{len(trainer.job.source):,} examples an epoch, {len(trainer.job.validation)} for validation\n"
        f"on {model.device}, {precision.reason}{', compiled' if compiled else ''}; run folder {trainer.folder}",
        markup=False,
        soft_wrap=True,
    )


def holds_run(folder: Path) -> bool:
    """Whether something was trained or imported here; a start that never reached a checkpoint doesn't count."""
    return is_checkpoint(folder) or is_finished(folder) or bool(steps_of(folder))


def is_finished(folder: Path) -> bool:
    """Whether the run in this folder came to its end."""
    return (folder / RESULT).is_file()


def free_run(save_dir: Path | str) -> Path:
    """`save_dir`, or with -2, -3, … the first that holds no run yet: a run is never overwritten."""
    first = Path(save_dir)
    number, folder = 1, first
    while holds_run(folder):
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


def run_command(
    argv: Sequence[str] | None,
    description: str,
    job: Callable[[Config], TrainResult],
    default_config: str = "sft_config.yaml",
) -> int:
    """Command line of a training job: [--config FILE] [section.key=value ...]. Exit code 0, or 130 when interrupted."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", help=f"YAML file with settings (default: {default_config} if it is there)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file")
    arguments = parser.parse_intermixed_args(argv)
    path = arguments.config or (default_config if Path(default_config).is_file() else None)
    return 130 if job(load_config(path, arguments.overrides)).interrupted else 0
