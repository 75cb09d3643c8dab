"""The whole way in minutes: sample data, tokenizer, base model, fine-tuning, replies to prompts that were held out.

Each stage is the ordinary command with the settings of data/quickstart.yaml. A stage that is finished is not done again, one
that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from rich.console import Console

from mini_chat_gpt.checkpoints.find import steps_of
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with, under_torchrun
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import free_name
from mini_chat_gpt.common.terminal import console, format_duration
from mini_chat_gpt.config import Config
from mini_chat_gpt.prepare.prepare import write_sample_folder
from mini_chat_gpt.pretrain import pretrain
from mini_chat_gpt.reports.compare import EvalOptions, compare
from mini_chat_gpt.sft_train import train
from mini_chat_gpt.training.job import TrainResult
from mini_chat_gpt.training.run_folder import is_finished

SETTINGS = Path(str(files("mini_chat_gpt.assets") / "quickstart.yaml"))


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt quickstart` with a parsed command line."""
    config: Config = arguments.settings
    if under_torchrun():
        raise UserError("quickstart is for one process; start it without torchrun.")
    out, started = console(), time.monotonic()
    make_data(Path(config.sft.dataset_path), out)
    for title, job, stage in (("Base model", pretrain, "pretrain"), ("Fine-tuning", train, "sft")):
        if run_stage(title, job, stage, config, out):
            out.print("The same quickstart command goes on from there, too.")
            return 130
    base, tuned = Path(config.pretrain.save_dir), Path(config.sft.save_dir)
    out.rule("Base and tuned model on prompts that training never saw")
    page = free_name(Path("runs/reports") / "quickstart")
    options = EvalOptions(n=arguments.items, seed=config.system.seed, report=page)
    compare([base, tuned], None, options, out)
    out.print(f"\nAll of it took {format_duration(time.monotonic() - started)}. Now chat with it:", markup=False)
    out.print(f"  mini-chat-gpt chat --checkpoint {tuned}", markup=False, soft_wrap=True)
    return 0


def make_data(folder: Path, out: Console) -> None:
    """The sample data set, unless it is there."""
    if not (folder / "SOURCE.json").is_file():
        write_sample_folder(folder, out)
    out.print(f"Sample stories: {folder}", markup=False)


def run_stage(title: str, job: Callable[[Config], TrainResult], stage: str, config: Config, out: Console) -> bool:
    """Train one stage, or go on with it, or leave it when it is finished; returns whether it was interrupted."""
    folder = Path(getattr(config, stage).save_dir)
    out.rule(title)
    if is_finished(folder):
        out.print(f"Finished before: {folder}", markup=False)
        return False
    if steps_of(folder):
        resumed = getattr(config, stage).model_copy(update={"resume_from": str(folder)})
        config = config.model_copy(update={stage: resumed})
    return bool(job(config).stopped)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("quickstart", argv))


if __name__ == "__main__":
    exit_with(main)
