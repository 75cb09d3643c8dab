"""Supervised fine-tuning: from a base model to one that answers. `python mini_chat_gpt/sft_train.py [section.key=value ...]`.

Only what the assistant says is trained; the rest of each conversation is context.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints import lora_setup
from mini_chat_gpt.checkpoints.find import newest_checkpoint
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.checkpoints.lora_setup import Base
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import Config
from mini_chat_gpt.evaluation.capabilities import evaluate
from mini_chat_gpt.evaluation.task_metrics import score
from mini_chat_gpt.generation.text import generate
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.job import Callback, Job, Metrics, Prepared, TrainResult
from mini_chat_gpt.training.run import RunContext, begin, execute, run_command
from mini_chat_gpt.training.sft_data import Shown, make_examples


def train(config: Config, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Fine-tune as the config's `sft`, `data` and `training` sections say; returns where the run lies and its losses.

    `callbacks` are called on rank 0 with (trainer, step, metrics) whenever metrics are recorded.
    """
    run = begin(config, config.sft)
    return execute(prepare(config, run), config, run, callbacks)


def prepare(config: Config, run: RunContext) -> Prepared:
    """Base model, examples and sample prompts."""
    lora_setup.check(config)
    if checkpoint := run.checkpoint:
        base, model, tokenizer = None, lora_setup.model_of_run(checkpoint, config), ChatTokenizer.load(checkpoint)
    else:
        base = load_base(config, run)
        model, tokenizer = base.model, base.tokenizer
    with run.world.local_rank_zero_first():  # the first use of a file indexes it
        examples = make_examples(config, tokenizer, model.config.context_length)
    for note in examples.notes:
        run.out.print(note, markup=False, soft_wrap=True)
    if base is not None:
        if config.lora.enabled:  # which may write to the run's folder: only now that the data are known to be good
            lora_setup.adapt(base, config, run.folder, run.world, run.device, run.dry_run)
        tokenizer.chat_format = ChatFormat(default_system=config.data.system_message)
    prompts = [*config.sft.prompts, *(shown.prompt for shown in examples.shown)]

    def show(trained: GPT) -> str:
        replies = generate(trained, tokenizer, prompts, max_new_tokens=80, temperature=0.0)
        own = len(config.sft.prompts)
        lines = [
            f"  {_short(prompt, 80)} → {_short(reply, 160)}"
            for prompt, reply in zip(config.sft.prompts, replies, strict=False)
        ]
        return "\n".join(lines + [sample_line(*pair) for pair in zip(examples.shown, replies[own:], strict=True)])

    measure = eval_metrics_of(examples.eval_tasks, tokenizer, config)
    files = examples.files
    job = Job("sft", config.sft, examples.source, examples.validation, show, examples.stages, files, measure)
    return Prepared(job, model, tokenizer)


def eval_metrics_of(tasks: Sequence[Task], tokenizer: ChatTokenizer, config: Config) -> Callable[[GPT], Metrics] | None:
    """What scores a model by these tasks: {"eval/KIND/METRIC": score}, the main measure of each kind; None without any.

    Raises UserError where sft.best_metric names none of them.
    """
    tasks = [task for task in tasks if score(task, "")]
    names = {task.kind: f"eval/{task.kind}/{next(iter(score(task, '')))}" for task in tasks}
    if config.sft.best_metric not in ("val_loss", *names.values()):
        known = ", ".join(["val_loss", *names.values()])
        raise UserError(f"sft.best_metric is {config.sft.best_metric!r}; here it can be {known}.")
    if not tasks:
        return None

    def measure(model: GPT) -> Metrics:
        results = evaluate(model, tokenizer, tasks).results
        return {name: results[kind][name.rpartition("/")[2]] for kind, name in names.items()}

    return measure


def load_base(config: Config, run: RunContext) -> Base:
    """The base model, with all control tokens."""
    path = config.sft.pretrained_checkpoint or run.world.broadcast(lambda: newest_checkpoint(base=True))
    if path is None:
        raise UserError(
            "There is no base model under runs/ to fine-tune; make one with `mini-chat-gpt pretrain`, "
            "or name one: sft.pretrained_checkpoint=PATH."
        )
    model, tokenizer = load_checkpoint(path, "cpu")
    added = add_chat_tokens(model, tokenizer)
    run.out.print(f"Base model: {path}" + (f"; added control tokens {', '.join(added)}" if added else ""), markup=False)
    return Base(Path(path), model.train(), tokenizer, added)


def add_chat_tokens(model: GPT, tokenizer: ChatTokenizer) -> list[str]:
    """Give a base the control tokens it lacks, their rows at the mean embedding; returns their names."""
    known = set(tokenizer.control)
    new_ids = tokenizer.add_control_tokens()
    model.resize_vocabulary(tokenizer.vocab_size)
    if new_ids:  # a padded table has rows for them already, which hold nothing yet
        model.set_rows_to_mean(new_ids)
    return [name for name in tokenizer.control if name not in known]


def sample_line(shown: Shown, reply: str) -> str:
    """The reply to a held-out prompt, short enough to read in passing."""
    return f"  [{shown.kind}] {_short(reply, 160)}   (expected: {_short(shown.expected, 80)})"


def _short(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt sft` with a parsed command line."""
    return run_command(arguments, train, "sft")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("sft", argv))


if __name__ == "__main__":
    exit_with(main)
