"""before_after.md: scores and replies of models side by side, as Markdown. `evaluate`, `quickstart` and recipes write it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mini_chat_gpt.common.text import clean
from mini_chat_gpt.evaluation.chat_tasks import is_chats
from mini_chat_gpt.evaluation.memorization import describe
from mini_chat_gpt.reports.values import format_p

FILE_NAME = "before_after.md"


def before_after(report: Mapping[str, Any]) -> str:
    """The report as Markdown. It needs "title", "facts" and "models"; all other parts are optional (see `report.build`)."""
    names = [model["name"] for model in report["models"]]
    lines = [f"# {report['title']}", "", *(f"- {fact}" for fact in report["facts"])]
    lines += _scores(report, names)
    lines += _own_prompts(report["own"], names) if report.get("own") else []
    lines += _task_replies(report["side_by_side"], names) if report.get("side_by_side") else []
    return "\n".join(lines) + "\n"


def _scores(report: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    """The main measures, bits per byte and memorization."""
    if report.get("kinds"):
        yield from (
            "",
            "In % (a loss in nats per token), with 95 % intervals. The difference is that of the last model to the first, task by task.",
            "",
        )
        yield from markdown_table(
            ("kind", "group", "measure", "n", *names, "baseline", "difference", "p"), _main_measures(report, names)
        )
    if by_name := report.get("bits_per_byte"):
        values = (
            f"{name} {one['bits_per_byte']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
            for name, one in by_name.items()
        )
        yield from ("", f"Bits per byte of held-out stories: {', '.join(values)}.")
    if result := report.get("memorization"):
        heading, *lines = describe(result)
        yield from ("", heading, "", *(f"- {line.strip()}" for line in lines))


def _main_measures(report: Mapping[str, Any], names: Sequence[str]) -> Iterator[Sequence[Any]]:
    """The main measure of each kind; of chats, every measure that the terminal shows."""
    pairs = {(one["kind"], one["group"], one["label"]): one for one in report["paired"] if one["before"] == names[0]}
    for kind in report["kinds"]:
        for group, values in kind["values"].items():
            baseline = kind["baseline"][group]
            baseline_text = f"{100 * baseline['value']:.1f} ({baseline['rule']})"
            row = kind | {"group": group, "values": values, "n": kind["n"][group]}
            yield _measured(row, report, names, pairs, baseline_text)
        if is_chats(kind["kind"]):
            others = [
                row
                for row in report["measures"]
                if row["kind"] == kind["kind"] and (row["main"] or row["measure"] == "stops")
            ]
            yield from (_measured(row, report, names, pairs, "") for row in others)


def _measured(
    row: Mapping[str, Any], report: Mapping[str, Any], names: Sequence[str], pairs: Mapping[Any, Any], baseline: str
) -> Sequence[Any]:
    share = row.get("share", True)
    scores = [_number(row["values"][name], share) for name in names]
    difference = ("", "")
    if pair := pairs.get((row["kind"], row["group"], row["label"])):
        difference = _number({**pair, "value": pair["difference"]}, share, "+"), format_p(pair["p"])
    title = report["groups"][row["group"]]
    return row["kind"], title, row["label"], row["n"], *scores, baseline, *difference


def _number(estimate: Mapping[str, Any], share: bool, sign: str = "") -> str:
    """A value with its interval, in percent if it is a share."""
    scale, decimals, of_interval = (100, 1, 0) if share else (1, 3, 3)
    value, low, high = (estimate[part] for part in ("value", "low", "high"))
    interval = f" ({scale * low:{sign}.{of_interval}f} to {scale * high:{sign}.{of_interval}f})"
    return f"{scale * value:{sign}.{decimals}f}{interval if high - low > 1e-9 else ''}"


def _own_prompts(own: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    yield from ("", "## The same prompts", "")
    yield from markdown_table(
        ("shows", "prompt", *names), ((one["shows"], one["prompt"], *_replies(one, names)) for one in own["prompts"])
    )
    yield from ("", "## What changed" if len(names) > 1 else "## Counts", "")
    yield from markdown_table(("", *names), own["rows"])
    if own["polite_signs"]:
        yield from ("", f"A reply counts as polite if it begins with one of: {_quoted(own['polite_signs'])}.")
        yield f"A reply counts as a refusal if it contains one of: {_quoted(own['refusal_signs'])}."
    for key, title in (("refuse", "should be declined"), ("answer", "should be answered")):
        if own[key]:
            yield from ("", f"## More prompts that {title}", "")
            yield from markdown_table(("prompt", *names), ((one["prompt"], *_replies(one, names)) for one in own[key]))


def _replies(prompt: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    """The reply of each model, with a note if it was cut off."""
    for reply in (prompt["replies"][name] for name in names):
        yield f"{' '.join(reply['text'].split())}{'' if reply['finish'] == 'stop' else ' … (cut off)'}" or "(nothing)"


def _task_replies(examples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[str]:
    """One held-out task of each kind, and those of chats."""
    yield from ("", "## Replies", "")
    rows = []
    for kind in dict.fromkeys(example["kind"] for example in examples):
        of_kind = [example for example in examples if example["kind"] == kind]
        for one in of_kind if is_chats(kind) else of_kind[:1]:
            texts = ("".join(text for text, _ in one["replies"][name]["parts"]) for name in names)
            rows.append((kind, one["prompt"], one["target"], *texts))
    yield from markdown_table(("kind", "prompt", "expected", *names), rows)


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(f"“{text}”" for text in texts)


def markdown_table(heads: Sequence[str], rows: Iterator[Sequence[Any]] | Sequence[Sequence[Any]]) -> Iterator[str]:
    """The lines of a table."""
    yield _row(heads)
    yield "|---" * len(heads) + "|"
    yield from map(_row, rows)


def _row(cells: Sequence[Any]) -> str:
    """A row of a Markdown table. Escaping ensures that no cell can end the cell early or act as markup."""
    escaped = (re.sub(r"([\\|<>*_`\[\]])", r"\\\1", clean(str(cell))) for cell in cells)
    return f"| {' | '.join(escaped)} |"
