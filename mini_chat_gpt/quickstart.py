"""The whole pipeline in minutes: sample data, tokenizer, base model, fine-tuning, replies to held-out prompts.

Each stage is the ordinary command with the settings of assets/quickstart.yaml. With `--base MODEL` there is one stage, an adapter
for that model, with the settings of assets/quickstart_base.yaml. A finished stage is skipped, an interrupted one is resumed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.control import Control

from mini_chat_gpt.checkpoints.adapters import AdapterMetadata, find_base
from mini_chat_gpt.checkpoints.find import find_checkpoint, steps_of
from mini_chat_gpt.checkpoints.load import find_source, open_pair
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with, under_torchrun
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import free_name
from mini_chat_gpt.common.json_files import read_json
from mini_chat_gpt.common.output import flush_or_discard
from mini_chat_gpt.common.setting_types import seconds_in
from mini_chat_gpt.common.signals import after_interruption
from mini_chat_gpt.common.terminal import console, format_duration, text_table
from mini_chat_gpt.config import Config
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.evaluation.capabilities import Evaluation
from mini_chat_gpt.evaluation.refusals import REFUSALS
from mini_chat_gpt.prepare.prepare import write_sample_folder
from mini_chat_gpt.pretrain import pretrain
from mini_chat_gpt.reports.compare import EvalOptions, compare
from mini_chat_gpt.reports.report import HTML
from mini_chat_gpt.reports.results_table import measure_label
from mini_chat_gpt.sft_train import train
from mini_chat_gpt.training.job import TrainResult
from mini_chat_gpt.training.run import CONFIG
from mini_chat_gpt.training.run_folder import RESULT, is_finished
from mini_chat_gpt.training.stop import exit_code

HOW_TO_RESUME = "The same quickstart command resumes from here."
FEW_STEPS = 200
"""With fewer steps an adapter hardly learns the tasks; the settings suit about 360."""
NOT_SHOWN = ("what_happened", REFUSALS)
"""Kinds that only --details shows: the same answers as summaries, and what was not trained."""


class ProgressOnly(Console):
    """A console that shows progress displays, and nothing else that is printed."""

    def print(self, *objects: Any, **options: Any) -> None:
        if objects and self.is_terminal and all(isinstance(each, Control) for each in objects):
            super().print(*objects, **options)

    def rule(self, *_: Any, **__: Any) -> None:
        pass


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt quickstart` with a parsed command line."""
    config: Config = arguments.settings
    if under_torchrun():
        raise UserError("quickstart runs in one process; start it without torchrun.")
    if arguments.base is not None:
        check_base(config)
    out = console(optional=True)
    with after_interruption(lambda: out.print(HOW_TO_RESUME)):
        return run_stages(arguments, config, out)


def check_base(config: Config) -> None:
    """Raise UserError, before anything is written, if the base can't be fine-tuned or its run folder has a run of another one."""
    base, folder = Path(str(config.sft.pretrained_checkpoint)), Path(config.sft.save_dir)
    if (folder / CONFIG).is_file():
        other = load_config(folder / CONFIG, [], of_run=True).sft.pretrained_checkpoint
        if other is not None and Path(other) != base:
            raise UserError(f"{folder} has a run that began with {other}; name another folder: sft.save_dir=PATH")
    if not steps_of(folder):  # otherwise the run has the base or knows where it is
        open_pair(find_source(base), dtype=None)


def base_of(arguments: argparse.Namespace, config: Config) -> Path:
    """The model to compare with. One that has moved since is found by its hash, if the adapter needs it."""
    if arguments.base is None:
        return Path(config.pretrain.save_dir)
    try:
        find_source(base := Path(arguments.base))
    except UserError:
        checkpoint = find_checkpoint(config.sft.save_dir)
        if (metadata := AdapterMetadata.read(checkpoint)) is None:
            raise
        return find_base(checkpoint, metadata)
    return base


def run_stages(arguments: argparse.Namespace, config: Config, out: Console) -> int:
    """Run all stages that have not finished; returns the exit code."""
    started = time.monotonic()
    make_data(Path(config.sft.dataset_path), out)
    stages = [("Base model", pretrain, "pretrain"), ("Fine-tuning", train, "sft")]
    for title, job, stage in stages if arguments.base is None else stages[1:]:
        if stopped := run_stage(title, job, stage, config, out):
            out.print(HOW_TO_RESUME)
            return exit_code(stopped)
    base, tuned = base_of(arguments, config), Path(config.sft.save_dir)
    out.rule("Base and fine-tuned model on held-out prompts")
    page = free_name(Path("runs/reports") / ("quickstart" if arguments.base is None else tuned.name))
    out.print(f"Both models reply to {arguments.items} prompts of each kind …", markup=False)
    options = EvalOptions(n=arguments.items, seed=config.system.seed, report=page)
    evaluations = compare([base, tuned], None, options, out if arguments.details else ProgressOnly())
    if not arguments.details:
        out.print()
        out.print(text_table(rows_of(evaluations)))
        out.print(f"Report: {page / HTML} (--details prints it here)", markup=False, soft_wrap=True)
    out.print(f"Total time: {format_duration(time.monotonic() - started)}. Now chat with the model:", markup=False)
    out.print(f"  mini-chat-gpt chat --checkpoint {shlex.quote(str(tuned))}", markup=False, soft_wrap=True)
    if arguments.base is not None and config.training.time_budget and (steps := steps_in(tuned)) < FEW_STEPS:
        budget = budget_for(FEW_STEPS, steps, config.training.time_budget)
        out.print(
            f"Only {steps} steps fitted into {config.training.time_budget}. More give better replies: add "
            f"training.time_budget={budget} and sft.save_dir={tuned}-{budget} to the quickstart command.",
            markup=False,
        )
    flush_or_discard(sys.stdout)
    return 0


def budget_for(wanted: int, steps: int, budget: str) -> str:
    """The time for `wanted` steps on a machine that does `steps` in `budget`, in minutes: the next multiple of five."""
    minutes = seconds_in(budget) / 60 * wanted / max(1, steps)
    return f"{5 * (int(minutes // 5) + 1)}m"


def steps_in(run: Path) -> int:
    """The number of steps of a finished run."""
    return int(read_json(run / RESULT, dict[str, float | None], "train again").get("steps") or 0)


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
        text = f"Already finished, with {steps_in(folder):,} steps: {folder} (to train it again, delete or rename this folder)"
        out.print(text, markup=False, soft_wrap=True)
        return ""
    if steps_of(folder):
        resumed = getattr(config, stage).model_copy(update={"resume_from": str(folder)})
        config = config.model_copy(update={stage: resumed})
    return job(config).stopped


def rows_of(evaluations: Mapping[str, Evaluation]) -> list[list[str]]:
    """A short table: the main measure of each kind, in percent, for the base model and the tuned one."""
    before, after = evaluations.values()
    seen, unseen = after.groups.get("seen", after.results), after.groups.get("unseen", {})
    rows = [["in %, held-out stories", "", "base", "tuned", *(["tuned, new plots"] if unseen else [])]]
    for kind, results in after.results.items():
        measure = next(iter(results))
        values = [of_model.get(kind, {}).get(measure) for of_model in (before.results, seen, unseen)]
        if kind not in NOT_SHOWN:
            shown = ["" if value is None else f"{100 * value:.0f}" for value in values]
            rows.append([kind, measure_label(measure), *shown][: len(rows[0])])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("quickstart", argv))


if __name__ == "__main__":
    exit_with(main)
