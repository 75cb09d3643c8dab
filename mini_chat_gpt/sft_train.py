"""Supervised fine-tuning: from a base model to one that answers. `python mini_chat_gpt/sft_train.py [section.key=value ...]`.

The loss is computed on the assistant's replies only; the rest of each conversation is context. The path of the data is
`sft_dataloader` (records to examples), `data/batching` (examples to batches), `training/train_step` (batches to an update).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mini_chat_gpt.checkpoints import lora_setup
from mini_chat_gpt.checkpoints.find import newest_checkpoint, step_of, steps_of
from mini_chat_gpt.checkpoints.load import find_source, open_pair, require_match
from mini_chat_gpt.checkpoints.lora_setup import Base
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.text import clean
from mini_chat_gpt.config import Config
from mini_chat_gpt.evaluation.after_training import reply_to_held_out_chats
from mini_chat_gpt.evaluation.capabilities import evaluate
from mini_chat_gpt.evaluation.task_metrics import score
from mini_chat_gpt.generation.decode import Model
from mini_chat_gpt.generation.text import generate
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tokenizer.chat_setup import set_chat_format, set_thinking
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.job import Callback, Job, Metrics, Prepared, TrainResult, with_auto_steps
from mini_chat_gpt.training.run import RunContext, begin, execute, run_command
from mini_chat_gpt.training.run_folder import is_finished
from mini_chat_gpt.training.sample_prompts import can_reply, check_prompts
from mini_chat_gpt.training.sft_data import Shown, make_examples


def train(config: Config, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Fine-tune a model as the config says, and return its run folder and losses.

    `callbacks` are called on rank 0 with (trainer, step, metrics) whenever metrics are logged. One that raises an
    exception is reported and does not end training.
    """
    run = begin(config, config.sft)
    return execute(prepare(config, run), config, run, callbacks)


def prepare(config: Config, run: RunContext) -> Prepared:
    """Load the model and make the examples."""
    # Mistakes in the settings are reported before a model is loaded.
    lora_setup.check(config)
    base = None
    if run.checkpoint is not None:
        model, tokenizer = lora_setup.pair_of_run(run.checkpoint, config)
    else:
        base = load_base(config, run)
        model, tokenizer = base.model, base.tokenizer
    # Rank 0 of each machine goes first: the first use of a data file writes its index.
    with run.world.local_rank_zero_first():
        examples = make_examples(config, tokenizer, model.config.context_length, run.out)
    thinks = set_thinking(tokenizer, examples.chats is not None and examples.chats.trained.has_reasoning)
    for note in [*examples.notes, *([] if thinks is None else [thinks])]:
        run.out.print(note, markup=False, soft_wrap=True)
    if base is not None and config.lora.enabled:
        # Only now, because an adapter is written to the run folder, which a mistake in the data should not leave behind.
        lora_setup.adapt(base, config, run.folder, run.world, run.device, run.dry_run)
    context = model.config.context_length
    check_prompts(config.sft.prompts, tokenizer, context, "sft.prompts")
    shown = [one for one in examples.shown if can_reply(one.prompt, tokenizer, context)]
    tasks = [task for task in examples.eval_tasks if can_reply(task.prompt, tokenizer, context)]
    chats, seed = examples.chats, config.system.seed
    # Everything that differs from pretraining is in the job. The trainer is the same.
    job = Job(
        "sft",
        with_auto_steps(config.sft, of_chats=chats is not None),
        source=examples.source,
        validation=examples.validation,
        show=sample_replies(config.sft.prompts, shown, tokenizer),
        stages=examples.stages,
        files=examples.files,
        measure=eval_metrics(tasks, config.sft.best_metric, tokenizer),
        purpose=examples.purpose,
        summary=None if chats is None else reply_to_held_out_chats(chats, config.chats, model, tokenizer, seed),
    )
    return Prepared(job, model, tokenizer)


def load_base(config: Config, run: RunContext) -> Base:
    """Load the base model and add the control tokens that it lacks."""
    path = config.sft.pretrained_checkpoint or run.world.broadcast(lambda: newest_checkpoint(base=True))
    if path is None:
        raise UserError(
            "There is no base model under runs/ to fine-tune; make one with `mini-chat-gpt quickstart` or `mini-chat-gpt pretrain`, "
            "or name one: sft.pretrained_checkpoint=PATH."
        )
    # On the CPU: the trainer moves the model to its device, and with FSDP no device holds all of it.
    # The weights of an adapter's base are read by `lora_setup.adapt`, which converts each layer to `lora.frozen`.
    source = find_source(Path(path))
    stored, tokenizer = open_pair(source, dtype=None if config.lora.enabled else torch.float32)
    model = stored.skeleton() if config.lora.enabled else stored.load()
    require_match(model.config, tokenizer, "The base model")  # only control tokens may be new
    own_format, known = tokenizer.chat_format, set(tokenizer.control)
    # From here on the tokenizer is that of a chat model: its checkpoints are prompted in the chat format.
    set_chat_format(tokenizer, config.sft.chat_format, config.data.system_message)
    added = _add_rows(model, tokenizer, known)
    notes = [f"added control tokens {', '.join(added)}"] if added else []
    if (steps := steps_of(Path(path))) and not is_finished(Path(path)):
        notes.append(f"its run has stopped at step {step_of(steps[-1]):,}, before its end")
    run.out.print("; ".join([f"Base model: {path}", *notes]), markup=False, soft_wrap=True)
    return Base(source, stored, model.train(), tokenizer, added, own_format)


def add_chat_tokens(model: GPT, tokenizer: ChatTokenizer) -> list[str]:
    """Add the missing control tokens to a base model, with the mean embedding. Returns the names of the new tokens."""
    require_match(model.config, tokenizer, "The base model")  # only control tokens may be new
    known = set(tokenizer.control)
    tokenizer.add_control_tokens()
    return _add_rows(model, tokenizer, known)


def _add_rows(model: GPT, tokenizer: ChatTokenizer, known: set[str]) -> list[str]:
    """Set the rows of the control tokens that are not `known` to the mean embedding. Returns their names."""
    added = {name: token_id for name, token_id in tokenizer.control.items() if name not in known}
    model.resize_vocabulary(tokenizer.vocab_size)
    if added:  # a padded table has rows for them already, but these are untrained
        model.set_rows_to_mean(list(added.values()))
    return [*added]


# At each evaluation


def eval_metrics(
    tasks: Sequence[Task], best_metric: str, tokenizer: ChatTokenizer
) -> Callable[[Model], Metrics] | None:
    """A function that scores a model: {"eval/KIND/METRIC": score} with the main metric of each kind. None without tasks.

    Raises UserError if `best_metric`, the setting, is not one of the metrics of this run.
    """
    # `score` of an empty reply tells which metrics a task has. Some have none; the first one is the main metric.
    tasks = [task for task in tasks if score(task, "")]
    names = {task.kind: f"eval/{task.kind}/{next(iter(score(task, '')))}" for task in tasks}
    if best_metric not in ("val_loss", *names.values()):
        known = ", ".join(["val_loss", *names.values()])
        raise UserError(f"sft.best_metric is {best_metric!r}; here it can be {known}.")
    if not tasks:
        return None

    def measure(model: Model) -> Metrics:
        results = evaluate(model, tokenizer, tasks).results
        return {name: results[kind][name.rpartition("/")[2]] for kind, name in names.items()}

    return measure


def sample_replies(
    prompts: Sequence[str], shown: Sequence[Shown], tokenizer: ChatTokenizer
) -> Callable[[Model], str] | None:
    """A function that lists a model's replies to the user's own prompts and to held-out ones. None without prompts."""
    if not prompts and not shown:
        return None

    def show(model: Model) -> str:
        all_prompts = [*prompts, *(one.prompt for one in shown)]
        # Greedy, so that only training changes the replies from one evaluation to the next.
        replies = iter(generate(model, tokenizer, all_prompts, max_new_tokens=80, temperature=0.0))
        lines = [f"  {_short(prompt, 80)} → {_short(next(replies), 160)}" for prompt in prompts]
        lines += [
            f"  [{one.kind}] {_short(next(replies), 160)}   (expected: {_short(one.expected, 80)})" for one in shown
        ]
        return "\n".join(lines)

    return show


def _short(text: str, width: int) -> str:
    text = clean(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt sft` with a parsed command line."""
    return run_command(arguments, train, "sft")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("sft", argv))


if __name__ == "__main__":
    exit_with(main)
