"""The capability test at work, for one model or several side by side. `mini-chat-gpt evaluate --checkpoint A [--against B ...]`.

`sft_generate.py --test` is the same for one model.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mini_chat_gpt.checkpoints.load import load_checkpoint, require_finite
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import free_name, write_json
from mini_chat_gpt.common.terminal import StepProgress, console, format_duration
from mini_chat_gpt.evaluation.bits_per_byte import bits_per_byte
from mini_chat_gpt.evaluation.capabilities import GREEDY, MOST_ROWS, Evaluation, evaluate
from mini_chat_gpt.evaluation.held_out import find_held_out, held_out_tasks
from mini_chat_gpt.evaluation.memorization import in_words, recited, training_of
from mini_chat_gpt.evaluation.prompt_suite import Answers, Prompts, ask, check_prompts, read_prompts, show
from mini_chat_gpt.evaluation.refusals import REFUSALS
from mini_chat_gpt.generation.decode import Model, WeightsOption, for_inference
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.model import GPT
from mini_chat_gpt.reports.report import HTML, Subject, build, write
from mini_chat_gpt.reports.results_table import show_differences, show_examples, show_table
from mini_chat_gpt.sft_dataloader import stories
from mini_chat_gpt.tinystories.tasks import Task, check_kinds
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

PLAIN_BYTES = 100_000
"""Of held-out stories, of which a report has the bits per byte."""
LONGEST_FOLDER = 100
"""Characters of the name that a report's folder gets by itself."""


@dataclass(frozen=True)
class EvalOptions:
    """Which tasks are put to the models, and what is shown and written. Raises UserError for a value that makes no sense."""

    n: int = 100  # tasks of each kind and group
    kinds: tuple[str, ...] = ()  # none: every kind that the data support
    seed: int = 1337  # which tasks are taken
    examples: int = 1  # replies of each kind that are shown
    batch_size: int | None = None  # prompts at a time; None: as many as pays
    json: Path | None = None  # file for results and replies
    report: Path | None = None  # folder for report.html and its like
    prompts: Path | None = None  # YAML file with prompts of one's own
    training_mb: int = 50  # of training stories, in which a report looks for what the models recite
    details: bool | None = None  # show all measures, and what each trivial rule reaches

    def __post_init__(self) -> None:
        least = {"n": 1, "seed": 0, "examples": 0, "batch_size": 1, "training_mb": 0}
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise UserError(f"--{name.replace('_', '-')} is {given}; it must be {value} or more.")
        check_kinds(self.kinds, "--kinds", [REFUSALS])
        if self.json is not None and not _can_be_written(self.json):
            raise UserError(f"--json: {self.json} can't be written; name a file in a folder that you may write to.")
        if self.report is not None and not _can_be_written(self.report / HTML):
            raise UserError(
                f"--report: {self.report} can't be written to; name a folder that may be made or written to."
            )
        if self.report is not None and self.json is not None and self.json.absolute().parent == self.report.absolute():
            raise UserError(
                f"--json: {self.json} lies in the report's folder, which has a report.json; name another place."
            )


def _can_be_written(file: Path) -> bool:
    there = next(place for place in file.absolute().parents if place.exists())
    return not file.is_dir() and there.is_dir() and os.access(there, os.W_OK)


def options_of(arguments: argparse.Namespace) -> EvalOptions:
    """The options that were given, the defaults for the rest. Kinds may be parted by commas too."""
    given = {field.name: getattr(arguments, field.name) for field in fields(EvalOptions)}
    if given["kinds"] is not None:
        given["kinds"] = tuple(dict.fromkeys(kind for part in given["kinds"] for kind in part.split(",") if kind))
    return EvalOptions(**{name: value for name, value in given.items() if value is not None})


def compare(
    models: Sequence[Path],
    data: Path | str | None,
    options: EvalOptions,
    out: Console,
    sampling: Sampling = GREEDY,
    device: str = "auto",
    weights: WeightsOption = "auto",
) -> dict[str, Evaluation]:
    """Put the same tasks to every model; print replies and the table, write the files; returns evaluations by model.

    `models` come in the order before → after. The tasks fit every model's context, so that all see the same text. `data` as
    in `find_held_out`.
    """
    prompts = read_prompts(options.prompts) if options.prompts is not None else None
    started = time.monotonic()
    sampling = sampling if sampling.seed is not None else replace(sampling, seed=options.seed)
    loaded = _load(models, device)
    if prompts is not None:
        for those in loaded.values():
            check_prompts(prompts, *those, options.prompts)
    file, why = find_held_out(data, models)
    tasks = held_out_tasks(file, [*loaded.values()], options.n, options.seed, options.kinds)
    found = {task.kind for ours in tasks.values() for task in ours}
    out.print(f"Held-out tasks: {file}\n({why})", markup=False, soft_wrap=True)
    if missing := [kind for kind in options.kinds if kind not in found]:
        out.print(f"None of them there: {', '.join(missing)}", markup=False, soft_wrap=True)
    forms = {
        name: (for_inference(model, MOST_ROWS, weights=weights), tokenizer)
        for name, (model, tokenizer) in loaded.items()
    }
    evaluations = {
        name: _run(name, form, tokenizer, tasks, sampling, options.batch_size, out)
        for name, (form, tokenizer) in forms.items()
    }
    show_examples(evaluations, options.examples, out)
    out.rule(style="dim")
    show_table(evaluations, out, bool(options.details))
    show_differences(evaluations, out)
    _write_json(models, evaluations, file, options, sampling, out)
    own = _asked(prompts, loaded, out) if prompts is not None else {}
    if options.report is not None:
        texts = {name: bits_per_byte(*those, stories(file), PLAIN_BYTES) for name, those in loaded.items()}
        subjects = [
            Subject(name, path, *loaded[name], evaluations[name], own.get(name), texts[name])
            for path, name in zip(models, loaded, strict=True)
        ]
        known = _recited(evaluations, dict(zip(loaded, models, strict=True)), file, options.training_mb, out)
        about = {"file": file.name, "why": why, "n": options.n, "seed": options.seed}
        about |= {"sampling": _said(sampling), "weights": weights, "seconds": time.monotonic() - started}
        *_, page = write(options.report, build(subjects, about, prompts, known))
        out.print(f"Report: {page}", markup=False, soft_wrap=True)
    return evaluations


def _load(paths: Sequence[Path], device: str) -> dict[str, tuple[GPT, ChatTokenizer]]:
    """By short name."""
    if double := [str(path) for path in paths if paths.count(path) > 1]:
        raise UserError(f"{double[0]} is named twice; a model is compared with others.")
    loaded = dict(zip(short_names(paths), (load_checkpoint(path, device) for path in paths), strict=True))
    for path, (model, _) in zip(paths, loaded.values(), strict=True):
        require_finite(model, path)
    return loaded


def _asked(prompts: Prompts, models: Mapping[str, tuple[GPT, ChatTokenizer]], out: Console) -> dict[str, Answers]:
    """What each model says to the user's own prompts, which is shown."""
    own = {name: ask(name, *those, prompts) for name, those in models.items()}
    show(prompts, [*own.values()], out)
    return own


def _recited(
    evaluations: Mapping[str, Evaluation], models: Mapping[str, Path], file: Path, megabytes: int, out: Console
) -> dict[str, Any] | None:
    """What `recited` finds, and is said of it; a training file that can't be read ends no report."""
    training = {name: training_of(path, file) for name, path in models.items()}
    try:
        known = recited(evaluations, training, megabytes * 10**6, out)
    except UserError as error:
        out.print(f"Not looked for recited passages: {error}", markup=False, soft_wrap=True)
        return None
    if known is not None:
        out.print("\n".join(in_words(known)), markup=False, soft_wrap=True)
    return known


def _said(sampling: Sampling) -> str:
    """The settings that differ from the defaults, by which replies can be had again."""
    if sampling.temperature == 0 and sampling == replace(GREEDY, seed=sampling.seed):
        return "greedy: the likeliest token, always"
    usual, given = vars(Sampling()), vars(sampling)
    named = {"temperature", "seed", *(name for name in given if given[name] != usual[name])}
    return ", ".join(f"{name} {value}" for name, value in given.items() if name in named)


def _write_json(
    models: Sequence[Path],
    evaluations: Mapping[str, Evaluation],
    file: Path,
    options: EvalOptions,
    sampling: Sampling,
    out: Console,
) -> None:
    """All results and replies, where that was asked for."""
    if options.json is None:
        return
    by_name = {
        name: {"checkpoint": str(path), **evaluation.as_json()}
        for path, (name, evaluation) in zip(models, evaluations.items(), strict=True)
    }
    about = {"data": str(file), "n": options.n, "seed": options.seed, "sampling": _said(sampling)}
    write_json(options.json, about | {"models": by_name})
    out.print(f"Written: {options.json}", markup=False, soft_wrap=True)


def _run(
    name: str,
    model: Model,
    tokenizer: ChatTokenizer,
    tasks: Mapping[str, Sequence[Task]],
    sampling: Sampling,
    batch_size: int | None,
    out: Console,
) -> Evaluation:
    """Evaluate one model behind a progress bar."""
    ours = [task for group in tasks.values() for task in group]
    work = _work_done(ours)
    started = time.monotonic()
    with StepProgress(out, name, 0, len(ours)) as bar:

        def show(done: int) -> None:
            rate = done / max(time.monotonic() - started, 1e-9)
            bar.update(done, f"{rate:.3g} replies/s", fraction=work[done])

        evaluation = evaluate(model, tokenizer, tasks, sampling, batch_size, progress=show)
    seconds = time.monotonic() - started
    rate = len(ours) / max(seconds, 1e-9)
    text = f"{name}: {len(ours)} replies in {format_duration(seconds)} ({rate:.3g} a second)"
    text += "" if tokenizer.chat_format is not None else "; without a chat format it goes on from the prompt"
    out.print(text, markup=False, soft_wrap=True)
    return evaluation


def _work_done(tasks: Sequence[Task]) -> list[float]:
    """Share of the work after each number of tasks, kind after kind: a token written costs about four that are read."""
    costs = [0.0]
    for kind in dict.fromkeys(task.kind for task in tasks):
        of_kind = [len(task.prompt) + 4 * len(task.target) for task in tasks if task.kind == kind]
        costs += [sum(of_kind) / len(of_kind)] * len(of_kind)
    total = sum(costs)
    shares, done = [], 0.0
    for cost in costs:
        done += cost
        shares.append(done / total)
    return shares


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths where they tell the models apart, so that a table stays narrow; else more of them."""
    named = [path if path.name not in ("", "..") else path.resolve() for path in paths]
    named = [path.parent if path.name in ("best", "last") else path for path in named]
    for n in range(1, max(len(path.parts) for path in named) + 1):
        ends = [path.parts[-n:] for path in named]
        if len(set(ends)) == len(ends):
            # Of what all have in common only the last part is named: "one/…/sft" and "two/…/sft".
            return ["/".join(end if n < 3 or len(end) < n else (end[0], "…", end[-1])) for end in ends]
    return [str(path) for path in paths]


def _report_folder(names: Sequence[str]) -> Path:
    """A new one under runs/reports, named after the models, the last of which is the one in question."""
    plain = [name.replace("/", "-") for name in names]
    name = "-against-".join([plain[-1], *plain[:-1]])
    if len(name) > LONGEST_FOLDER:
        name = f"{plain[-1][:LONGEST_FOLDER]}-against-{len(plain) - 1}-models"
    return free_name(Path("runs/reports") / name)


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt evaluate` with a parsed command line."""
    models = [*map(Path, arguments.against), Path(arguments.checkpoint)]
    options = options_of(arguments)
    if options.report is None:
        options = replace(options, report=_report_folder(short_names(models)))
    compare(models, arguments.data, options, console(), device=arguments.device, weights=arguments.weights)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("evaluate", argv))


if __name__ == "__main__":
    exit_with(main)
