"""Scores of one or more models on held-out tasks, side by side. `mini-chat-gpt evaluate --checkpoint A [--against B ...]`."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mini_chat_gpt.capabilities import Evaluation, evaluate, table
from mini_chat_gpt.checkpoint import load_checkpoint
from mini_chat_gpt.entry import exit_with
from mini_chat_gpt.errors import UserError
from mini_chat_gpt.files import write_json
from mini_chat_gpt.monitor import StepProgress, clock
from mini_chat_gpt.runs import console
from mini_chat_gpt.sft_dataloader import InstructSource, Task, find_instruct_file
from mini_chat_gpt.story_tasks import TASK_KINDS
from mini_chat_gpt.tokenizer import ChatTokenizer


def held_out_tasks(
    file: Path, tokenizer: ChatTokenizer, context: int, n: int, seed: int, kinds: Sequence[str] | None = None
) -> list[Task]:
    """At most n tasks of each kind (default: of every kind the file supports), fitted to the context."""
    tokenizer.add_control_tokens()
    source = InstructSource(file, tokenizer, context, seed)
    return [task for kind in kinds or source.kinds for task in source.eval_tasks(kind, n)]


def compare(
    models: Sequence[Path],
    file: Path,
    n: int,
    out: Console,
    seed: int = 1337,
    kinds: Sequence[str] | None = None,
    examples: int = 1,
) -> dict[str, Evaluation]:
    """Let every model reply greedily to the same tasks; print the table and a few replies; returns evaluations by model.

    The tasks are fitted to the smallest context, so that all models see the same text.
    """
    loaded = [load_checkpoint(path) for path in models]
    context = min(model.config.context_length for model, _ in loaded)
    # A tokenizer of its own, so that a base stays one: fitting needs the control tokens that chatting will add.
    tasks = held_out_tasks(file, copy.deepcopy(loaded[0][1]), context, n, seed, kinds)
    evaluations = {}
    for name, (model, tokenizer) in zip(short_names(models), loaded, strict=True):
        started = time.monotonic()
        with StepProgress(out, f"{name}: replies", 0, len(tasks)) as bar:

            def show(done: int, bar: StepProgress = bar) -> None:
                bar.update(done, "")

            evaluations[name] = evaluate(model, tokenizer, tasks, progress=show)
        out.print(f"{name}: {len(tasks)} replies in {clock(time.monotonic() - started)}", markup=False)
    out.print(table(*(evaluation.results for evaluation in evaluations.values()), names=list(evaluations)))
    show_items(evaluations, examples, out)
    return evaluations


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths where they tell the models apart, so that a table stays narrow; else the paths."""
    names = [path.parent.name if path.name in ("best", "last") else path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def show_items(evaluations: dict[str, Evaluation], n: int, out: Console) -> None:
    """The first n prompts of each kind with what was expected and what each model replied."""
    per_model = {name: _by_kind(evaluation) for name, evaluation in evaluations.items()}
    for kind, items in next(iter(per_model.values())).items():
        for number, item in enumerate(items[:n]):
            out.rule(kind, style="dim")
            out.print(Text(item.task.prompt, style="dim"))
            out.print(Text(f"expected: {item.task.target}", style="green"))
            for name, by_kind in per_model.items():
                reply = by_kind[kind][number]
                scores = ", ".join(f"{measure} {value:.2f}" for measure, value in reply.scores.items())
                out.print(Text.assemble((f"{name} ({scores}): ", "bold"), reply.reply.strip()))


def _by_kind(evaluation: Evaluation) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for item in evaluation.items:
        found.setdefault(item.task.kind, []).append(item)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Score greedy replies to held-out tasks.")
    parser.add_argument("--checkpoint", required=True, help="checkpoint or run folder, llama2.c .bin, nanoGPT ckpt.pt")
    parser.add_argument("--against", nargs="+", default=[], help="other models to put beside it, for example its base")
    parser.add_argument("--data", default="./TinyStories", help="folder with Instruct files, or one (./TinyStories)")
    parser.add_argument("--n", type=int, default=100, help="tasks of each kind (100)")
    parser.add_argument("--kinds", nargs="+", help=f"only these of {', '.join(TASK_KINDS)}")
    parser.add_argument("--examples", type=int, default=1, help="replies of each kind to show (1)")
    parser.add_argument("--seed", type=int, default=1337, help="which tasks are taken (1337)")
    parser.add_argument("--json", type=Path, help="write results and every reply to this file")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.kinds or ()) - set(TASK_KINDS):
        raise UserError(f"--kinds: {', '.join(sorted(unknown))} is unknown; the kinds are {', '.join(TASK_KINDS)}.")
    file = find_instruct_file(arguments.data, "valid")
    models = [Path(arguments.checkpoint), *map(Path, arguments.against)]
    evaluations = compare(
        models, file, arguments.n, console(), arguments.seed, arguments.kinds, examples=arguments.examples
    )
    if arguments.json:
        write_json(arguments.json, {name: asdict(evaluation) for name, evaluation in evaluations.items()})
    return 0


if __name__ == "__main__":
    exit_with(main)
