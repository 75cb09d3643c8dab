"""before_after.md: scores and replies of models side by side, as Markdown. `evaluate`, `quickstart` and recipes write it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mini_chat_gpt.common.text import clean
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
            "In %, with 95 % intervals. The difference is that of the last model to the first, task by task.",
            "",
        )
        yield from _table(
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
    pairs = {(pair["kind"], pair["group"]): pair for pair in report["paired"] if pair["before"] == names[0]}
    for kind in report["kinds"]:
        for group, values in kind["values"].items():
            scores = [_percent(*(values[name][part] for part in ("value", "low", "high"))) for name in names]
            baseline = kind["baseline"][group]
            difference = ("", "")
            if pair := pairs.get((kind["kind"], group)):
                difference = _percent(pair["difference"], pair["low"], pair["high"], "+"), format_p(pair["p"])
            title = report["groups"][group]
            baseline_text = f"{100 * baseline['value']:.1f} ({baseline['rule']})"
            yield kind["kind"], title, kind["label"], kind["n"][group], *scores, baseline_text, *difference


def _percent(value: float, low: float, high: float, sign: str = "") -> str:
    interval = f" ({100 * low:{sign}.0f} to {100 * high:{sign}.0f})" if high - low > 1e-9 else ""
    return f"{100 * value:{sign}.1f}{interval}"


def _own_prompts(own: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    yield from ("", "## The same prompts", "")
    yield from _table(
        ("shows", "prompt", *names), ((one["shows"], one["prompt"], *_replies(one, names)) for one in own["prompts"])
    )
    yield from ("", "## What changed" if len(names) > 1 else "## Counts", "")
    yield from _table(("", *names), own["rows"])
    yield from ("", f"A reply counts as polite if it begins with one of: {_quoted(own['polite_signs'])}.")
    yield f"A reply counts as a refusal if it contains one of: {_quoted(own['refusal_signs'])}."
    for key, title in (("refuse", "should be declined"), ("answer", "should be answered")):
        if own[key]:
            yield from ("", f"## More prompts that {title}", "")
            yield from _table(("prompt", *names), ((one["prompt"], *_replies(one, names)) for one in own[key]))


def _replies(prompt: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    """The reply of each model, with a note if it was cut off."""
    for reply in (prompt["replies"][name] for name in names):
        yield f"{' '.join(reply['text'].split())}{'' if reply['finish'] == 'stop' else ' … (cut off)'}" or "(nothing)"


def _task_replies(examples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[str]:
    """One held-out task of each kind."""
    yield from ("", "## Replies", "")
    first = {example["kind"]: example for example in reversed(examples)}
    rows = []
    for kind in dict.fromkeys(example["kind"] for example in examples):
        one = first[kind]
        texts = ("".join(text for text, _ in one["replies"][name]["parts"]) for name in names)
        rows.append((kind, one["prompt"], one["target"], *texts))
    yield from _table(("kind", "prompt", "expected", *names), rows)


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(f"“{text}”" for text in texts)


def _table(heads: Sequence[str], rows: Iterator[Sequence[Any]] | Sequence[Sequence[Any]]) -> Iterator[str]:
    yield _row(heads)
    yield "|---" * len(heads) + "|"
    yield from map(_row, rows)


def _row(cells: Sequence[Any]) -> str:
    """A row of a Markdown table. Escaping ensures that no cell can end the cell early or act as markup."""
    escaped = (re.sub(r"([\\|<>*_`\[\]])", r"\\\1", clean(str(cell))) for cell in cells)
    return f"| {' | '.join(escaped)} |"
