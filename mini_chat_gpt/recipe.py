"""`mini-chat-gpt recipe NAME`: fine-tune with a recipe, then compare the model with its base.

A recipe is a folder, for example recipes/polite_helper, and needs no code:

    config.yaml     settings, as for `mini-chat-gpt sft --config`; chat files in the folder can be given by name
    prompts.yaml    prompts for the comparison (see evaluation/prompt_suite.py)

The comparison is written to before_after.md in the run's folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mini_chat_gpt.checkpoints.find import newest_checkpoint, steps_of
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with, under_torchrun
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.common.output import flush_or_discard
from mini_chat_gpt.common.signals import after_interruption
from mini_chat_gpt.common.terminal import console, format_duration
from mini_chat_gpt.config import Config
from mini_chat_gpt.data.chat_dataset import nearest_prompts
from mini_chat_gpt.data.chat_files import read_conversations
from mini_chat_gpt.evaluation.prompt_suite import Prompts, as_json, ask, read_prompts, show
from mini_chat_gpt.model import GPT
from mini_chat_gpt.reports.before_after import FILE_NAME, before_after
from mini_chat_gpt.sft_train import train
from mini_chat_gpt.tokenizer.chat_setup import set_chat_format
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.job import TrainResult
from mini_chat_gpt.training.sample_prompts import check_prompts
from mini_chat_gpt.training.stop import exit_code

CONFIG, PROMPTS = "config.yaml", "prompts.yaml"


def base_of(config: Config) -> Path:
    """The base model of the recipe. Raises UserError if there is none."""
    checkpoint = config.sft.pretrained_checkpoint
    path = Path(checkpoint) if checkpoint else newest_checkpoint(base=True)
    if path is None or not (path.exists() or path.name in ("best", "last") or hub_name(path, "model")):
        raise UserError(
            f"There is no base model {path or 'under runs/'}; `mini-chat-gpt quickstart` trains one in ten minutes, or name "
            "one: sft.pretrained_checkpoint=PATH."
        )
    return path


def run_recipe(folder: Path, config: Config, out: Console) -> str:
    """Train, generate replies with both models, compare. Returns why training stopped before its end, otherwise ""."""
    prompts, base = read_prompts(folder / PROMPTS), base_of(config)
    _require_replies(prompts, base, config, str(folder / PROMPTS))
    sft = config.sft.model_copy(update={"pretrained_checkpoint": str(base)})
    result = train(config.model_copy(update={"sft": sft}))
    how_to_resume = f"The same recipe command with sft.resume_from={result.folder} resumes from here."
    if result.stopped:
        if steps_of(result.folder):
            out.print(how_to_resume, markup=False, soft_wrap=True)
        return result.stopped
    with after_interruption(lambda: out.print(how_to_resume, markup=False, soft_wrap=True)):
        write_comparison(folder, base, prompts, config, result, out)
    return ""


def _require_replies(prompts: Prompts, base: Path, config: Config, file: str) -> None:
    """Raise UserError if one of the two models can't reply to a prompt: now, not after training."""
    model, tokenizer = load_checkpoint(base, "cpu")
    check_prompts(prompts.all, tokenizer, model.config.context_length, file)
    set_chat_format(tokenizer, config.sft.chat_format, config.data.system_message)
    check_prompts(prompts.all, tokenizer, model.config.context_length, file)


def write_comparison(
    folder: Path, base: Path, prompts: Prompts, config: Config, result: TrainResult, out: Console
) -> None:
    """Generate replies with both models, print them, and write before_after.md."""
    model, tokenizer = load_checkpoint(base, "cpu")
    before = ask("before", model, tokenizer, prompts)
    after = ask("after", *load_checkpoint(result.folder, "cpu"), prompts)
    file = result.folder / FILE_NAME
    facts = [base_fact(base, model, tokenizer), *facts_of(config, result, prompts)]
    models = [{"name": "before"}, {"name": "after"}]
    report = {"title": f"{folder.resolve().name}: before and after", "facts": facts, "models": models}
    atomic_write_text(file, before_after(report | {"own": as_json(prompts, before, after)}))
    show(prompts, [before, after], out)
    out.print(
        f"\nWith every reply: {file}\nChat with it: mini-chat-gpt chat --checkpoint {result.folder}",
        markup=False,
        soft_wrap=True,
    )


def base_fact(base: Path, model: GPT, tokenizer: ChatTokenizer) -> str:
    """Description of the base model for the head of the report."""
    kind = (
        "a chat model" if tokenizer.chat_format is not None else "a base model, which continues each prompt as a text"
    )
    return f"before: {base.name}, {model.n_parameters() / 1e6:.2f} M parameters, {kind}"


def facts_of(config: Config, result: TrainResult, prompts: Prompts) -> list[str]:
    """Description of the training for the head of the report."""
    how = f"adapters (LoRA) of rank {config.lora.rank}" if config.lora.enabled else "all weights"
    chats = list(read_conversations(config.chats.files, [] if config.chats.skip_bad else None, config.chats.keys))
    facts = [
        f"after: {how} trained on {len(chats):,} chats for {result.steps:,} steps in {format_duration(result.seconds)}, "
        f"learning rate {result.learning_rate:g}",
        "replies: greedy (temperature 0), at most 160 tokens",
    ]
    if chats:
        share, prompt, question = max(nearest_prompts(prompts.all, chats))
        facts.append(
            f"none of the prompts is in the data; the most similar pair shares {share:.0%} of its words: “{prompt}” and “{question}”"
            if share < 1
            else f"careful: “{prompt}” is in the data, as “{question}”"
        )
    return facts


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt recipe` with a parsed command line."""
    if under_torchrun():
        raise UserError(
            "recipe runs in one process; with torchrun, use `sft --config` with the recipe's config.yaml instead."
        )
    stopped = run_recipe(arguments.folder, arguments.settings, console(optional=True))
    flush_or_discard(sys.stdout)
    return exit_code(stopped)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("recipe", argv))


if __name__ == "__main__":
    exit_with(main)
