"""Write the results of an evaluation as files: report.json with every number, before_after.md, and report.html.

`build` combines the evaluations of `evaluation/capabilities.py` with paired differences, the losses of the runs, the lengths of the
replies, replies to the same tasks, and replies to the user's own prompts (`evaluation/prompt_suite.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_chat_gpt.common.files import atomic_write_text, write_json
from mini_chat_gpt.common.page import shown_path
from mini_chat_gpt.evaluation.bits_per_byte import BitsPerByte
from mini_chat_gpt.evaluation.capabilities import Evaluation, Item, differences
from mini_chat_gpt.evaluation.chat_tasks import is_chats
from mini_chat_gpt.evaluation.confidence import paired
from mini_chat_gpt.evaluation.held_out import GROUPS
from mini_chat_gpt.evaluation.prompt_suite import Answers, Prompts, as_json
from mini_chat_gpt.evaluation.text_metrics import is_share
from mini_chat_gpt.model import GPT
from mini_chat_gpt.reports.before_after import FILE_NAME as MARKDOWN
from mini_chat_gpt.reports.before_after import before_after
from mini_chat_gpt.reports.html_report import page
from mini_chat_gpt.reports.reply_diff import diff_reply
from mini_chat_gpt.reports.results_table import LAST, MEASURES, measure_label
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.loss_curves import read_curves

JSON, HTML = "report.json", "report.html"
SIDE_BY_SIDE, CHATS_SIDE_BY_SIDE = 6, 20
"""Tasks of each kind and group whose replies are shown; of chats more, as each question is another one."""
STORIES = ("words", "summary")
"""Kinds whose replies can have any length."""


@dataclass(frozen=True)
class Subject:
    """A model that was evaluated. Subjects are ordered from before to after."""

    name: str
    checkpoint: Path
    model: GPT
    tokenizer: ChatTokenizer
    evaluation: Evaluation
    own: Answers | None = None  # replies to the user's own prompts
    bits_per_byte: BitsPerByte | None = None

    @property
    def kind(self) -> str:
        return "chat" if self.tokenizer.chat_format is not None else "base"


def build(
    subjects: Sequence[Subject],
    data: Mapping[str, Any],
    prompts: Prompts | None = None,
    memorization: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report as plain values: the content of report.json, and the input of `html_report.page` and `before_after`.

    `data` has the settings: file, why, n, seed, seconds. `memorization` is the result of the function of this name. All subjects
    must have been evaluated on the same tasks.
    """
    first, last = subjects[0], subjects[-1]
    title = last.name if first is last else f"{last.name} against {', '.join(s.name for s in subjects[:-1])}"
    groups = dict.fromkeys(group for kind in first.evaluation.results for group in _groups_of(kind, first))
    answers = [s.own for s in subjects if s.own is not None]
    return {
        "title": title,
        "facts": list(_facts(subjects, data)),
        "models": [
            {
                "name": s.name,
                "checkpoint": shown_path(s.checkpoint),
                "parameters": s.model.n_parameters(),
                "kind": s.kind,
            }
            for s in subjects
        ],
        "data": dict(data),
        "groups": {group: GROUPS.get(group, group) for group in groups},
        "kinds": [_kind(kind, subjects) for kind in first.evaluation.results],
        "measures": [row for kind in first.evaluation.results for row in _measures(kind, subjects)],
        "paired": list(_paired(subjects)),
        "losses": {s.name: curves for s in subjects if (curves := _losses(s.checkpoint))},
        "lengths": [_lengths(kind, subjects) for kind in first.evaluation.results if kind in STORIES or is_chats(kind)],
        "side_by_side": list(_side_by_side(subjects)),
        "own": as_json(prompts, *answers) if prompts is not None else None,
        "bits_per_byte": {s.name: s.bits_per_byte.as_json() for s in subjects if s.bits_per_byte is not None},
        "paired_bits_per_byte": list(_paired_bits_per_byte(subjects)),
        "memorization": dict(memorization) if memorization else None,
    }


def write(folder: Path, report: Mapping[str, Any]) -> list[Path]:
    """Write the three files and return their paths. The folder is created if necessary."""
    files = [folder / name for name in (JSON, MARKDOWN, HTML)]
    write_json(files[0], report)
    atomic_write_text(files[1], before_after(report))
    atomic_write_text(files[2], page(report))
    return files


def _facts(subjects: Sequence[Subject], data: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about the models and the data."""
    for s in subjects:
        note = "" if s.kind == "chat" else ", without a chat format: it continues the prompt as plain text"
        yield f"{s.name}: {shown_path(s.checkpoint)}, {s.model.n_parameters() / 1e6:.2f} M parameters{note}"
    if data.get("file"):
        kinds = [*subjects[0].evaluation.results]
        words = {"chats": any(map(is_chats, kinds)), "tasks of each kind and group": not all(map(is_chats, kinds))}
        what = " and ".join(word for word, present in words.items() if present)
        yield f"at most {data['n']} held-out {what} from {data['file']} (seed {data['seed']})"


# Numbers


def _results(subject: Subject, group: str) -> Mapping[str, Any]:
    return subject.evaluation.groups[group] if group else subject.evaluation.results


def _groups_of(kind: str, subject: Subject) -> list[str]:
    """The groups that have tasks of a kind; [""] if its tasks belong to no group."""
    return [group for group, results in subject.evaluation.groups.items() if kind in results] or [""]


def _value(values: Mapping[str, Any], measure: str) -> dict[str, float]:
    low, high = values.get("interval", {}).get(measure, (values[measure], values[measure]))
    return {"value": values[measure], "low": low, "high": high}


def _kind(kind: str, subjects: Sequence[Subject]) -> dict[str, Any]:
    """The main measure of a kind, by group and model, with its baselines."""
    by_group = {group: _results(subjects[0], group)[kind] for group in _groups_of(kind, subjects[0])}
    measure = next(iter(next(iter(by_group.values()))))  # the main measure comes first
    return {
        "kind": kind,
        "measure": measure,
        "label": measure_label(measure),
        "share": is_share(measure),
        "n": {group: values["n"] for group, values in by_group.items()},
        "values": {
            group: {
                s.name: _value(_results(s, group)[kind], measure) | {"stops": _results(s, group)[kind]["stops"]}
                for s in subjects
            }
            for group in by_group
        },
        "baselines": {
            group: {name: scores[measure] for name, scores in values["baselines"].items()}
            for group, values in by_group.items()
        },
        "baseline": {
            group: {"value": values["baseline"][measure], "rule": values["baseline"]["rules"][measure]}
            for group, values in by_group.items()
        },
    }


def _measures(kind: str, subjects: Sequence[Subject]) -> Iterator[dict[str, Any]]:
    """All measures but the main one. "main" marks those that the terminal always shows."""
    for group in _groups_of(kind, subjects[0]):
        values = _results(subjects[0], group)[kind]
        names = [name for name in values if isinstance(values[name], int | float) and name != "n"]
        for measure in names[1:]:
            yield {
                "kind": kind,
                "group": group,
                "measure": measure,
                "label": measure_label(measure),
                "share": is_share(measure),
                "main": measure in MEASURES and measure not in LAST,
                "n": values["measured"].get(measure, values["n"]),
                "values": {s.name: _value(_results(s, group)[kind], measure) for s in subjects},
            }


def _paired(subjects: Sequence[Subject]) -> Iterator[dict[str, Any]]:
    """The last model against each of the others."""
    after = subjects[-1]
    for before in subjects[:-1]:
        for one in differences(before.evaluation, after.evaluation):
            names = {
                "label": measure_label(one.measure),
                "share": is_share(one.measure),
                "before": before.name,
                "after": after.name,
            }
            yield {"kind": one.kind, "group": one.group, **names, **one.paired._asdict()}


def _paired_bits_per_byte(subjects: Sequence[Subject]) -> Iterator[dict[str, Any]]:
    """Bits per byte of the last model against each of the others, text by text."""
    results = [(s.name, s.bits_per_byte) for s in subjects if s.bits_per_byte is not None]
    for name, before in results[:-1]:
        last, after = results[-1]
        yield {"before": name, "after": last, **paired(before.per_text, after.per_text)._asdict()}


def _losses(checkpoint: Path) -> dict[str, list[list[float]]]:
    """Losses of the run that a checkpoint belongs to; {} if it has none."""
    for folder in (checkpoint, checkpoint.parent):
        if (folder / "metrics.jsonl").is_file():
            curves = read_curves(folder)
            return {
                "train": [[step, loss] for step, loss in sorted(curves.train.items())],
                "val": [[step, loss] for step, loss in sorted(curves.held_out.items())],
            }
    return {}


def _lengths(kind: str, subjects: Sequence[Subject]) -> dict[str, Any]:
    """Lengths of references and replies in words."""
    of_kind = [item for item in subjects[0].evaluation.items if item.task.kind == kind]
    counts = {"reference": [len(item.task.target.split()) for item in of_kind]}
    for s in subjects:
        counts[s.name] = [len(item.reply.split()) for item in s.evaluation.items if item.task.kind == kind]
    return {"kind": kind, "unit": "words", "counts": counts}


# Replies


def _side_by_side(subjects: Sequence[Subject]) -> Iterator[dict[str, Any]]:
    """The first tasks of each kind and group with the reply of every model."""
    taken: dict[tuple[str, str], int] = {}
    for items in zip(*(s.evaluation.items for s in subjects), strict=True):
        task, group = items[0].task, items[0].group
        if taken.get((task.kind, group), 0) >= (CHATS_SIDE_BY_SIDE if is_chats(task.kind) else SIDE_BY_SIDE):
            continue
        taken[task.kind, group] = taken.get((task.kind, group), 0) + 1
        yield {
            "kind": task.kind,
            "group": group,
            "prompt": task.prompt,
            "story": list(task.story_span) if task.story_span else None,
            "target": task.target,
            "required": list(task.required),
            "replies": {s.name: _reply(item) for s, item in zip(subjects, items, strict=True)},
        }


def _reply(item: Item) -> dict[str, Any]:
    measure, score = next(iter(item.scores.items()))
    diff = diff_reply(item.task, item.reply)
    return {
        "parts": [list(part) for part in diff.parts],
        "missing": diff.missing if item.task.required else [],
        "finish": item.finish_reason,
        "score": score,
        "label": f"{measure_label(measure)} {score:.2g}",
    }
