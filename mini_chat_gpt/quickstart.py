"""The whole pipeline in minutes: sample data, tokenizer, base model, fine-tuning, replies to held-out prompts.

Each stage is the ordinary command with the settings of assets/quickstart.yaml. A finished stage is skipped, an interrupted one
is resumed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from mini_chat_gpt.checkpoints.find import steps_of
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with, under_torchrun
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import free_name
from mini_chat_gpt.common.output import flush_or_discard
from mini_chat_gpt.common.signals import after_interruption
from mini_chat_gpt.common.terminal import console, format_duration
from mini_chat_gpt.config import Config
from mini_chat_gpt.prepare.prepare import write_sample_folder
from mini_chat_gpt.pretrain import pretrain
from mini_chat_gpt.reports.compare import EvalOptions, compare
from mini_chat_gpt.sft_train import train
from mini_chat_gpt.training.job import TrainResult
from mini_chat_gpt.training.run_folder import is_finished
from mini_chat_gpt.training.stop import exit_code


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt quickstart` with a parsed command line."""
    config: Config = arguments.settings
    if under_torchrun():
        raise UserError("quickstart runs in one process; start it without torchrun.")
    out = console(optional=True)
    with after_interruption(lambda: out.print(HOW_TO_RESUME)):
        return run_stages(config, arguments.items, out)


HOW_TO_RESUME = "The same quickstart command resumes from here."


def run_stages(config: Config, n_items: int, out: Console) -> int:
    """Run all stages that have not finished; returns the exit code."""
    started = time.monotonic()
    make_data(Path(config.sft.dataset_path), out)
    for title, job, stage in (("Base model", pretrain, "pretrain"), ("Fine-tuning", train, "sft")):
        if stopped := run_stage(title, job, stage, config, out):
            out.print(HOW_TO_RESUME)
            return exit_code(stopped)
    base, fine_tuned = Path(config.pretrain.save_dir), Path(config.sft.save_dir)
    out.rule("Base and fine-tuned model on held-out prompts")
    page = free_name(Path("runs/reports") / "quickstart")
    options = EvalOptions(n=n_items, seed=config.system.seed, report=page)
    compare([base, fine_tuned], None, options, out)
    out.print(f"\nTotal time: {format_duration(time.monotonic() - started)}. Now chat with the model:", markup=False)
    out.print(f"  mini-chat-gpt chat --checkpoint {fine_tuned}", markup=False, soft_wrap=True)
    flush_or_discard(sys.stdout)
    return 0


def make_data(folder: Path, out: Console) -> None:
    """Write the sample data set, unless it exists."""
    if not (folder / "SOURCE.json").is_file():
        write_sample_folder(folder, out)
    out.print(f"Sample stories: {folder}", markup=False)


def run_stage(title: str, job: Callable[[Config], TrainResult], stage: str, config: Config, out: Console) -> str:
    """Train, resume or skip one stage; returns why it stopped before its end, otherwise ""."""
    folder = Path(getattr(config, stage).save_dir)
    out.rule(title)
    if is_finished(folder):
        out.print(f"Already finished: {folder}", markup=False)
        return ""
    if steps_of(folder):
        resumed = getattr(config, stage).model_copy(update={"resume_from": str(folder)})
        config = config.model_copy(update={stage: resumed})
    return job(config).stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("quickstart", argv))


if __name__ == "__main__":
    exit_with(main)
