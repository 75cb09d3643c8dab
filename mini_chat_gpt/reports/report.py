"""What fine-tuning changed, as files: report.json with every number, before_after.md, and report.html to look at.

The evaluations themselves come from `evaluation/capabilities.py`; here they are put beside each other, with the losses of the runs,
how long the replies are, replies to the same prompts, and what a user's own prompts were answered (`evaluation/prompt_suite.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_chat_gpt.common.files import atomic_write_text, write_json
from mini_chat_gpt.evaluation.bits_per_byte import BitsPerByte
from mini_chat_gpt.evaluation.capabilities import Evaluation, Item, differences
from mini_chat_gpt.evaluation.confidence import paired
from mini_chat_gpt.evaluation.held_out import GROUPS
from mini_chat_gpt.evaluation.memorization import in_words
from mini_chat_gpt.evaluation.prompt_suite import Answers, Prompts, changes, checks, table_row
from mini_chat_gpt.model import GPT
from mini_chat_gpt.reports.html_report import page
from mini_chat_gpt.reports.reply_diff import marked
from mini_chat_gpt.reports.report_words import p_words
from mini_chat_gpt.reports.results_table import LAST, MEASURES, called
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.loss_curves import read_curves

JSON, MARKDOWN, HTML = "report.json", "before_after.md", "report.html"
SIDE_BY_SIDE = 6
"""Tasks of each kind and group whose replies are shown."""


@dataclass(frozen=True)
class Subject:
    """A model that was evaluated, in the order before → after."""

    name: str
    checkpoint: Path
    model: GPT
    tokenizer: ChatTokenizer
    evaluation: Evaluation
    own: Answers | None = None  # replies to the user's own prompts
    plain_text: BitsPerByte | None = None


def build(
    subjects: Sequence[Subject],
    data: Mapping[str, Any],
    prompts: Prompts | None = None,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report as plain values, as report.json has it and `report_page.page` shows it.

    `data` says what was asked: file, why, n, seed, seconds; `known` is what `recited` found. All subjects have been put the
    same tasks.
    """
    first, last = subjects[0], subjects[-1]
    title = last.name if first is last else f"{last.name} against {', '.join(s.name for s in subjects[:-1])}"
    groups = dict.fromkeys(group for kind in first.evaluation.results for group in _groups_of(kind, first))
    return {
        "title": title,
        "models": [
            {
                "name": s.name,
                "checkpoint": str(s.checkpoint),
                "parameters": s.model.n_parameters(),
                "kind": "chat" if s.tokenizer.chat_format is not None else "base",
            }
            for s in subjects
        ],
        "data": dict(data),
        "groups": {group: GROUPS.get(group, group) for group in groups},
        "kinds": [_kind(kind, subjects) for kind in first.evaluation.results],
        "measures": [row for kind in first.evaluation.results for row in _measures(kind, subjects)],
        "paired": list(_paired(subjects)),
        "losses": {s.name: curves for s in subjects if (curves := _losses(s.checkpoint))},
        "lengths": [_lengths(kind, subjects) for kind in first.evaluation.results if kind in ("words", "summary")],
        "side_by_side": list(_side_by_side(subjects)),
        "own": _own(subjects, prompts) if prompts is not None else None,
        "plain_text": {s.name: s.plain_text.as_json() for s in subjects if s.plain_text is not None},
        "paired_text": list(_paired_text(subjects)),
        "recited": dict(known) if known else None,
    }


def write(folder: Path, report: Mapping[str, Any]) -> list[Path]:
    """The three files, in a folder that is made for them."""
    files = [folder / name for name in (JSON, MARKDOWN, HTML)]
    write_json(files[0], report)
    atomic_write_text(files[1], markdown(report))
    atomic_write_text(files[2], page(dict(report)))
    return files


# The numbers


def _results(subject: Subject, group: str) -> Mapping[str, Any]:
    return subject.evaluation.groups[group] if group else subject.evaluation.results


def _groups_of(kind: str, subject: Subject) -> list[str]:
    """The groups that have tasks of a kind; [""] where it belongs to none."""
    return [group for group, results in subject.evaluation.groups.items() if kind in results] or [""]


def _value(values: Mapping[str, Any], measure: str) -> dict[str, float]:
    low, high = values.get("interval", {}).get(measure, (values[measure], values[measure]))
    return {"value": values[measure], "low": low, "high": high}


def main_measure(values: Mapping[str, Any]) -> str:
    """The first one."""
    return next(iter(values))


def _kind(kind: str, subjects: Sequence[Subject]) -> dict[str, Any]:
    there = {group: _results(subjects[0], group)[kind] for group in _groups_of(kind, subjects[0])}
    measure = main_measure(next(iter(there.values())))
    return {
        "kind": kind,
        "measure": measure,
        "label": called(measure),
        "n": {group: values["n"] for group, values in there.items()},
        "values": {
            group: {
                s.name: _value(_results(s, group)[kind], measure) | {"stops": _results(s, group)[kind]["stops"]}
                for s in subjects
            }
            for group in there
        },
        "baselines": {
            group: {rule: scores[measure] for rule, scores in values["baselines"].items()}
            for group, values in there.items()
        },
        "baseline": {
            group: {"value": values["baseline"][measure], "rule": values["baseline"]["rules"][measure]}
            for group, values in there.items()
        },
    }


def _measures(kind: str, subjects: Sequence[Subject]) -> Iterator[dict[str, Any]]:
    """All measures but the first; those that a terminal shows too are "main"."""
    for group in _groups_of(kind, subjects[0]):
        found = _results(subjects[0], group)[kind]
        names = [name for name in found if isinstance(found[name], int | float) and name != "n"]
        for measure in names[1:]:
            yield {
                "kind": kind,
                "group": group,
                "measure": measure,
                "label": called(measure),
                "main": measure in MEASURES and measure not in LAST,
                "n": found["measured"].get(measure, found["n"]),
                "values": {s.name: _value(_results(s, group)[kind], measure) for s in subjects},
            }


def _paired(subjects: Sequence[Subject]) -> Iterator[dict[str, Any]]:
    """The last model against each of the others."""
    after = subjects[-1]
    for before in subjects[:-1]:
        for one in differences(before.evaluation, after.evaluation):
            names = {"label": called(one.measure), "before": before.name, "after": after.name}
            yield {"kind": one.kind, "group": one.group, **names, **one.found._asdict()}


def _paired_text(subjects: Sequence[Subject]) -> Iterator[dict[str, Any]]:
    """The same for bits per byte, text by text."""
    found = [(s.name, s.plain_text) for s in subjects if s.plain_text is not None]
    for name, before in found[:-1]:
        last, after = found[-1]
        yield {"before": name, "after": last, **paired(before.per_text, after.per_text)._asdict()}


def _losses(checkpoint: Path) -> dict[str, list[list[float]]]:
    """Of the run that a checkpoint belongs to; {} where it has none."""
    for folder in (checkpoint, checkpoint.parent):
        if (folder / "metrics.jsonl").is_file():
            curves = read_curves(folder)
            return {
                "train": [[step, loss] for step, loss in sorted(curves.train.items())],
                "val": [[step, loss] for step, loss in sorted(curves.held_out.items())],
            }
    return {}


def _lengths(kind: str, subjects: Sequence[Subject]) -> dict[str, Any]:
    """Words of references and replies."""
    of_kind = [item for item in subjects[0].evaluation.items if item.task.kind == kind]
    counts = {"reference": [len(item.task.target.split()) for item in of_kind]}
    for s in subjects:
        counts[s.name] = [len(item.reply.split()) for item in s.evaluation.items if item.task.kind == kind]
    return {"kind": kind, "unit": "words", "counts": counts}


# The replies


def _side_by_side(subjects: Sequence[Subject]) -> Iterator[dict[str, Any]]:
    """The first tasks of each kind and group with what every model replied."""
    taken: dict[tuple[str, str], int] = {}
    for items in zip(*(s.evaluation.items for s in subjects), strict=True):
        task, group = items[0].task, items[0].group
        if taken.get((task.kind, group), 0) >= SIDE_BY_SIDE:
            continue
        taken[task.kind, group] = taken.get((task.kind, group), 0) + 1
        yield {
            "kind": task.kind,
            "group": group,
            "prompt": task.prompt,
            "target": task.target,
            "required": list(task.required),
            "replies": {s.name: _reply(item) for s, item in zip(subjects, items, strict=True)},
        }


def _reply(item: Item) -> dict[str, Any]:
    measure, score = next(iter(item.scores.items()))
    found = marked(item.task, item.reply)
    return {
        "parts": [list(part) for part in found.parts],
        "missing": found.missing if item.task.required else [],
        "finish": item.finish_reason,
        "score": score,
        "label": f"{called(measure)} {score:.2g}",
    }


def _own(subjects: Sequence[Subject], prompts: Prompts) -> dict[str, Any]:
    """What the user's own prompts were answered, and what can be counted of it."""
    answers = {s.name: s.own for s in subjects if s.own is not None}
    return {
        "rows": [list(row) for row in changes(prompts, *answers.values())],
        "prompts": [
            {
                "shows": each.shows,
                "prompt": prompt,
                "replies": {
                    name: {
                        "text": given.replies[prompt].text,
                        "finish": given.replies[prompt].finish_reason,
                        "checks": [list(one) for one in checks(each, given.replies[prompt].text, prompts).items()],
                    }
                    for name, given in answers.items()
                },
            }
            for each in prompts.compare
            for prompt in each.prompts
        ],
    }


# As Markdown


def markdown(report: Mapping[str, Any]) -> str:
    """before_after.md: the numbers in a table, what the user's prompts were answered, and a task of each kind."""
    models, data = report["models"], report["data"]
    names = [model["name"] for model in models]
    lines = [f"# {report['title']}", ""]
    for model in models:
        chat = "" if model["kind"] == "chat" else ", without a chat format: it goes on from the prompt"
        lines.append(f"- {model['name']}: {model['checkpoint']}, {model['parameters'] / 1e6:.2f} M parameters{chat}")
    lines += [
        f"- at most {data['n']} held-out tasks of each kind and group from {data['file']} (seed {data['seed']})",
        "",
    ]
    lines += ["In %, with 95 % intervals. The difference is that of the last model to the first, task by task.", ""]
    lines += _table_of_kinds(report, names)
    if report["plain_text"]:
        texts = (
            f"{name} {found['bits_per_byte']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
            for name, found in report["plain_text"].items()
        )
        lines += ["", f"Bits per byte of plain text: {', '.join(texts)}."]
    if known := report["recited"]:
        head, *each = in_words(known)
        lines += ["", head, "", *(f"- {line.strip()}" for line in each)]
    if own := report["own"]:
        lines += ["", "## Your prompts", "", table_row("", *names), "|---" * (1 + len(names)) + "|"]
        lines += [table_row(*row) for row in own["rows"]]
        lines += ["", table_row("shows", "prompt", *names), "|---" * (2 + len(names)) + "|"]
        for one in own["prompts"]:
            lines.append(table_row(one["shows"], one["prompt"], *(one["replies"][name]["text"] for name in names)))
    lines += ["", "## Replies", "", table_row("kind", "prompt", "expected", *names), "|---" * (3 + len(names)) + "|"]
    seen: set[str] = set()
    for one in report["side_by_side"]:
        if one["kind"] not in seen:
            seen.add(one["kind"])
            texts = ("".join(text for text, _ in one["replies"][name]["parts"]) for name in names)
            lines.append(table_row(one["kind"], one["prompt"], one["target"], *texts))
    return "\n".join(lines) + "\n"


def _table_of_kinds(report: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The main measure of each kind and group."""
    pairs = {(pair["kind"], pair["group"]): pair for pair in report["paired"] if pair["before"] == names[0]}
    lines = [table_row("kind", "group", "measure", "n", *names, "trivial", "difference", "p")]
    lines.append("|---" * (7 + len(names)) + "|")
    for kind in report["kinds"]:
        for group, values in kind["values"].items():
            pair = pairs.get((kind["kind"], group))
            difference = (
                (_percent(pair["difference"], pair["low"], pair["high"], "+"), p_words(pair["p"])) if pair else ("", "")
            )
            cells = [_percent(*(values[name][part] for part in ("value", "low", "high"))) for name in names]
            trivial = f"{100 * kind['baseline'][group]['value']:.1f} ({kind['baseline'][group]['rule']})"
            label = report["groups"][group]
            lines.append(table_row(kind["kind"], label, kind["label"], kind["n"][group], *cells, trivial, *difference))
    return lines


def _percent(value: float, low: float, high: float, sign: str = "") -> str:
    interval = f" ({100 * low:{sign}.0f} to {100 * high:{sign}.0f})" if high - low > 1e-9 else ""
    return f"{100 * value:{sign}.1f}{interval}"
