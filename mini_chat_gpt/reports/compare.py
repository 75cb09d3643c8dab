"""`mini-chat-gpt evaluate --checkpoint A [--against B ...]`: run the capability test on one or more models and report the results.

`sft_generate.py --test` is the same for one model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.cli import parse
from mini_chat_gpt.cli_options import MAX_NUMBER, check_range
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import free_name, write_json
from mini_chat_gpt.common.page import shown_path, without_folders
from mini_chat_gpt.common.terminal import StepProgress, console, format_duration
from mini_chat_gpt.common.writable import require_writable_file
from mini_chat_gpt.evaluation.bits_per_byte import BitsPerByte, bits_per_byte
from mini_chat_gpt.evaluation.capabilities import GREEDY, MAX_ROWS, Evaluation, evaluate
from mini_chat_gpt.evaluation.chat_tasks import CHATS, ChatTask, reply_losses
from mini_chat_gpt.evaluation.memorization import describe, find_training_files, memorization
from mini_chat_gpt.evaluation.plan import Plan, make_plan
from mini_chat_gpt.evaluation.prompt_suite import Answers, Prompts, ask, check_prompts, read_prompts, show
from mini_chat_gpt.evaluation.refusals import REFUSALS
from mini_chat_gpt.generation.decode import Model, WeightsOption, for_inference
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.settings import MAX_SEED
from mini_chat_gpt.model import GPT
from mini_chat_gpt.reports.example_replies import show_examples
from mini_chat_gpt.reports.report import HTML, Subject, build, write
from mini_chat_gpt.reports.results_table import show_differences, show_table
from mini_chat_gpt.reports.review import POINTS, REVIEW, JudgedReply, choose_replies, read_checklist, write_review
from mini_chat_gpt.sft_dataloader import stories
from mini_chat_gpt.tinystories.tasks import Task, check_kinds
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

BITS_PER_BYTE_TEXT, MIN_BITS_PER_BYTE_TEXT = 100_000, 20_000
"""Bytes of held-out stories on which a report measures bits per byte."""
BYTES_TIMES_PARAMETERS = 2 * 10**12
"""Bytes times parameters of the largest model, about a minute on a core: on a CPU a report measures fewer bytes of a large model."""
MAX_FOLDER_NAME = 100
"""Characters of the default name of a report's folder."""


@dataclass(frozen=True)
class EvalOptions:
    """Which tasks the models get, and what is shown and written. Raises UserError for an invalid value."""

    n: int = 100  # maximum number of tasks of each kind and group
    kinds: tuple[str, ...] = ()  # empty: every kind that the data supports
    seed: int = 1337  # selects the tasks
    examples: int = 1  # replies of each kind to show; of chats three times as many
    batch_size: int | None = None  # prompts per batch; None: chosen automatically
    json: Path | None = None  # file for results and replies
    report: Path | None = None  # folder for report.html, before_after.md and report.json
    prompts: Path | None = None  # YAML file with the user's own prompts
    review: Path | None = None  # page on which replies are judged; Path(): review.html in the report's folder
    checklist: Path | None = None  # YAML file with the points of that page
    training_mb: int = 50  # megabytes of training stories that a report searches for memorized text
    details: bool | None = None  # show all measures, and the score of each baseline

    def __post_init__(self) -> None:
        minimums = {"n": 1, "examples": 0, "batch_size": 1, "training_mb": 0}
        check_range(self, seed=(0, MAX_SEED), **{name: (least, MAX_NUMBER) for name, least in minimums.items()})
        check_kinds(self.kinds, "--kinds", [REFUSALS, CHATS])
        files = {"--json": self.json, "--report": self.report and self.report / HTML, "--review": self.review_file}
        for option, file in files.items():
            try:
                if file is not None:
                    require_writable_file(file)
            except UserError as error:
                raise UserError(f"{option}: {error}") from None
        if self.checklist is not None and self.review is None:
            raise UserError("--checklist has the points of a review page; add --review.")
        if self.report is not None and self.json is not None and self.json.absolute().parent == self.report.absolute():
            raise UserError(
                f"--json: {self.json} is in the report's folder, which has its own report.json; choose another place."
            )

    @property
    def review_file(self) -> Path | None:
        """Where the review page is written. Raises UserError if that is not known."""
        if self.review != Path():
            return self.review
        if self.report is None:
            raise UserError("--review: name the page to write, such as --review review.html.")
        return self.report / REVIEW


def options_of(arguments: argparse.Namespace) -> EvalOptions:
    """The options of the command line, with defaults for the others. Kinds may be separated by commas, too."""
    values = {field.name: getattr(arguments, field.name) for field in fields(EvalOptions)}
    if values["kinds"] is not None:
        values["kinds"] = tuple(dict.fromkeys(kind for part in values["kinds"] for kind in part.split(",") if kind))
    return EvalOptions(**{name: value for name, value in values.items() if value is not None})


Loaded = Mapping[str, tuple[GPT, ChatTokenizer]]
"""Short name -> (model, tokenizer)"""
Evaluations = dict[str, Evaluation]
"""Short name -> evaluation, from before to after"""


@dataclass(frozen=True)
class _Evaluator:
    """Evaluates all models on the same tasks, and shows replies and scores."""

    models: Loaded
    for_replies: Mapping[str, Model]
    options: EvalOptions
    sampling: Sampling
    out: Console

    def chats(self, tasks: Sequence[ChatTask]) -> Evaluations:
        losses = {name: self._losses(name, tasks) for name in self.models}
        evaluations = {
            name: evaluation.with_losses(losses[name]) for name, evaluation in self._replies({"": tasks}).items()
        }
        self._show(evaluations, 3 * self.options.examples)
        return evaluations

    def stories(self, tasks: Mapping[str, Sequence[Task]]) -> Evaluations:
        evaluations = self._replies(tasks)
        self._show(evaluations, self.options.examples)
        return evaluations

    def _replies(self, tasks: Mapping[str, Sequence[Task]]) -> Evaluations:
        return {name: self._run(name, tokenizer, tasks) for name, (_, tokenizer) in self.models.items()}

    def _show(self, evaluations: Evaluations, n_examples: int) -> None:
        show_examples(evaluations, n_examples, self.out)
        self.out.rule(style="dim")
        show_table(evaluations, self.out, bool(self.options.details))
        show_differences(evaluations, self.out)

    def _losses(self, name: str, tasks: Sequence[ChatTask]) -> np.ndarray:
        """The losses of the expected replies, with a progress bar."""
        with StepProgress(self.out, f"{name}: loss", 0, len(tasks)) as bar:
            return reply_losses(*self.models[name], tasks, bar.update)

    def _run(self, name: str, tokenizer: ChatTokenizer, tasks: Mapping[str, Sequence[Task]]) -> Evaluation:
        """The replies of one model, with a progress bar."""
        all_tasks = [task for of_group in tasks.values() for task in of_group]
        work = _work_done(all_tasks)
        start = time.monotonic()
        with StepProgress(self.out, name, 0, len(all_tasks)) as bar:

            def show(done: int) -> None:
                rate = done / max(time.monotonic() - start, 1e-9)
                bar.update(done, f"{rate:.3g} replies/s", fraction=work[done])

            model = self.for_replies[name]
            evaluation = evaluate(model, tokenizer, tasks, self.sampling, self.options.batch_size, progress=show)
        seconds = time.monotonic() - start
        rate = len(all_tasks) / max(seconds, 1e-9)
        text = f"{name}: {len(all_tasks)} replies in {format_duration(seconds)} ({rate:.3g} replies/s)"
        text += (
            "" if tokenizer.chat_format is not None else "; no chat format, so it continues each prompt as plain text"
        )
        self.out.print(text, markup=False, soft_wrap=True)
        return evaluation


def compare(
    models: Sequence[Path],
    data: Path | str | None,
    options: EvalOptions,
    out: Console,
    sampling: Sampling = GREEDY,
    device: str = "auto",
    weights: WeightsOption = "auto",
) -> Evaluations:
    """Evaluate all models on the same tasks, print replies and tables, write the files; returns evaluations by short name.

    `models` are ordered from before to after. Held-out chats come first, then the user's own prompts, then tasks about stories;
    `make_plan` says which. Each task fits the context of every model, so that all see the same text.
    """
    start = time.monotonic()
    prompts = read_prompts(options.prompts) if options.prompts is not None else None
    points = read_checklist(options.checklist) if options.checklist is not None else POINTS
    sampling = sampling if sampling.seed is not None else replace(sampling, seed=options.seed)
    loaded = _load(models, device)
    if prompts is not None:
        for model, tokenizer in loaded.values():
            check_prompts(prompts, model, tokenizer, options.prompts)
    by_path = dict(zip(models, loaded.values(), strict=True))
    data = None if data is None else str(data)
    plan = make_plan(data, by_path, options.n, options.seed, options.kinds, prompts is not None, out)
    if missing := _missing_kinds(plan, options.kinds):
        out.print(f"The data has no tasks of these kinds: {', '.join(missing)}", markup=False, soft_wrap=True)
    for_replies = {name: for_inference(model, MAX_ROWS, weights=weights) for name, (model, _) in loaded.items()}
    evaluator = _Evaluator(loaded, for_replies, options, sampling, out)
    evaluations = {name: Evaluation({}, []) for name in loaded}
    if plan.about_chats is not None:
        _print_chats(plan, out)
        evaluations = _added(evaluations, evaluator.chats(plan.chats))
    answers = _ask(prompts, loaded, out) if prompts is not None else {}
    if plan.file is not None:
        out.print(f"Held-out tasks: {plan.file}\n({plan.why})", markup=False, soft_wrap=True)
        evaluations = _added(evaluations, evaluator.stories(plan.stories))
    if options.review_file is not None:
        _write_review(options.review_file, choose_replies(evaluations, answers, options.seed), points, out)
    _write_json(models, evaluations, plan, options, sampling, out)
    if options.report is not None:
        subjects = [
            Subject(name, path, *loaded[name], evaluations[name], answers.get(name))
            for path, name in zip(models, loaded, strict=True)
        ]
        settings = {"n": options.n, "seed": options.seed, "sampling": _describe(sampling), "weights": weights}
        _write_report(options, subjects, plan, settings, prompts, start, out)
    return evaluations


def _write_review(file: Path, replies: Sequence[JudgedReply], points: Sequence[str], out: Console) -> None:
    write_review(file, replies, points)
    text = f"Review of {len(replies)} replies: {file}\n(open it in a browser; it keeps the ticks and sums them)"
    out.print(text, markup=False, soft_wrap=True)


def _missing_kinds(plan: Plan, wanted: Sequence[str]) -> list[str]:
    kinds = {task.kind for of_group in plan.stories.values() for task in of_group}
    return [kind for kind in wanted if kind not in kinds and kind != CHATS]


def _print_chats(plan: Plan, out: Console) -> None:
    about = plan.about_chats
    assert about is not None
    several = any(len(task.messages) > 2 for task in plan.chats)
    text = f"Held-out chats: {', '.join(about.files)}\n({about.why}; one reply of each of {len(plan.chats)} chats"
    text += ", written from the turns before it in the file)" if several else ")"
    out.print("\n".join([text, *about.notes()]), markup=False, soft_wrap=True)


def _added(ones: Evaluations, others: Evaluations) -> Evaluations:
    return {name: one + others[name] for name, one in ones.items()}


def _load(paths: Sequence[Path], device: str) -> dict[str, tuple[GPT, ChatTokenizer]]:
    """The models by short name."""
    if repeated := [str(path) for path in paths if paths.count(path) > 1]:
        raise UserError(f"{repeated[0]} is named twice; compare a model with other models.")
    return dict(zip(short_names(paths), (load_checkpoint(path, device) for path in paths), strict=True))


def _ask(prompts: Prompts, models: Loaded, out: Console) -> dict[str, Answers]:
    """The replies of each model to the user's own prompts, which are also shown."""
    answers = {name: ask(name, model, tokenizer, prompts) for name, (model, tokenizer) in models.items()}
    show(prompts, [*answers.values()], out)
    return answers


def _write_report(
    options: EvalOptions,
    subjects: Sequence[Subject],
    plan: Plan,
    settings: Mapping[str, Any],
    prompts: Prompts | None,
    start: float,
    out: Console,
) -> None:
    """Measure bits per byte and memorization of stories, and write the report."""
    assert options.report is not None
    overlap = None
    if plan.file is not None:
        subjects = _with_bits_per_byte(subjects, plan.file, out)
        overlap = _memorization(subjects, plan.file, options.training_mb, out)
    paths = [str(s.checkpoint) for s in subjects]
    files = [Path(file).name for files, _ in plan.sources for file in files]
    data: dict[str, Any] = {
        "file": ", ".join(files) or None,
        "why": "; ".join(without_folders(why, paths) for _, why in plan.sources),
    }
    data |= {**settings, "seconds": time.monotonic() - start}
    *_, page = write(options.report, build(subjects, data, prompts, overlap))
    out.print(f"Report: {page}", markup=False, soft_wrap=True)


def _with_bits_per_byte(subjects: Sequence[Subject], file: Path, out: Console) -> list[Subject]:
    """The models with their bits per byte, all on the same stories."""
    n_bytes = BITS_PER_BYTE_TEXT
    if any(s.model.device.type == "cpu" for s in subjects):
        of_largest = BYTES_TIMES_PARAMETERS // max(s.model.n_parameters() for s in subjects)
        n_bytes = max(MIN_BITS_PER_BYTE_TEXT, min(n_bytes, of_largest))
    return [replace(s, bits_per_byte=_bits_per_byte(s, file, n_bytes, out)) for s in subjects]


def _bits_per_byte(subject: Subject, file: Path, n_bytes: int, out: Console) -> BitsPerByte:
    """Of one model, with a progress bar."""
    with StepProgress(out, f"{subject.name}: bits per byte, percent", 0, 100) as bar:

        def show(done: int, of: int) -> None:
            bar.update(100 * done // of, fraction=done / of)

        return bits_per_byte(subject.model, subject.tokenizer, stories(file), n_bytes, show)


def _memorization(subjects: Sequence[Subject], file: Path, megabytes: int, out: Console) -> dict[str, Any] | None:
    """Measure and show memorization. A training file that can't be read doesn't prevent the report."""
    evaluations = {s.name: s.evaluation for s in subjects}
    training = {s.name: find_training_files(s.checkpoint, file) for s in subjects}
    try:
        result = memorization(evaluations, training, megabytes * 10**6, out)
    except UserError as error:
        out.print(f"Memorization was not measured: {error}", markup=False, soft_wrap=True)
        return None
    if result is not None:
        out.print("\n".join(describe(result)), markup=False, soft_wrap=True)
    return result


def _describe(sampling: Sampling) -> str:
    """The settings that are needed to reproduce the replies."""
    if sampling.temperature == 0 and sampling == replace(GREEDY, seed=sampling.seed):
        return "greedy"
    defaults, values = vars(Sampling()), vars(sampling)
    named = {"temperature", "seed", *(name for name in values if values[name] != defaults[name])}
    return ", ".join(f"{name} {value}" for name, value in values.items() if name in named)


def _write_json(
    models: Sequence[Path],
    evaluations: Evaluations,
    plan: Plan,
    options: EvalOptions,
    sampling: Sampling,
    out: Console,
) -> None:
    """Write all results and replies if `--json` is given."""
    if options.json is None:
        return
    by_name = {
        name: {"checkpoint": shown_path(path), **evaluation.as_json()}
        for path, (name, evaluation) in zip(models, evaluations.items(), strict=True)
    }
    data = ", ".join(shown_path(file) for files, _ in plan.sources for file in files)
    settings = {"data": data or None, "n": options.n, "seed": options.seed, "sampling": _describe(sampling)}
    write_json(options.json, settings | {"models": by_name})
    out.print(f"Written: {options.json}", markup=False, soft_wrap=True)


def _work_done(tasks: Sequence[Task]) -> list[float]:
    """The fraction of the work done after each number of tasks. A generated token costs about four times as much as a prompt token."""
    costs = [0.0]
    for kind in dict.fromkeys(task.kind for task in tasks):
        of_kind = [len(task.prompt) + 4 * len(task.target) for task in tasks if task.kind == kind]
        costs += [sum(of_kind) / len(of_kind)] * len(of_kind)
    total = sum(costs)
    return [done / total for done in accumulate(costs)]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Short distinct names for the models: the last components of their paths, as few as possible."""
    named = [path if path.name not in ("", "..") else path.resolve() for path in paths]
    named = [path.parent if path.name in ("best", "last") else path for path in named]
    for n in range(1, max(len(path.parts) for path in named) + 1):
        ends = [path.parts[-n:] for path in named]
        if len(set(ends)) == len(ends):
            # Only the first component differs. Keep it and the last one: "one/…/sft" and "two/…/sft".
            return ["/".join(end if n < 3 or len(end) < n else (end[0], "…", end[-1])) for end in ends]
    return [str(path) for path in paths]


def _report_folder(names: Sequence[str]) -> Path:
    """A new folder in runs/reports, named after the models. The last model comes first."""
    plain = [name.replace("/", "-") for name in names]
    name = "-against-".join([plain[-1], *plain[:-1]])
    if len(name) > MAX_FOLDER_NAME:
        name = f"{plain[-1][:MAX_FOLDER_NAME]}-against-{len(plain) - 1}-models"
    return free_name(Path("runs/reports") / name)


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt evaluate` with a parsed command line."""
    models = [*map(Path, arguments.against), Path(arguments.checkpoint)]
    if arguments.report is None:
        arguments.report = _report_folder(short_names(models))
    options = options_of(arguments)
    compare(models, arguments.data, options, console(), device=arguments.device, weights=arguments.weights)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("evaluate", argv))


if __name__ == "__main__":
    exit_with(main)
