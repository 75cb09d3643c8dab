"""Present the results of a recipe's held-out parts: a short table in the terminal, sections of before_after.md, results.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from mini_chat_gpt.common.terminal import print_line, text_table
from mini_chat_gpt.recipe.score import ALL_CHECKS, INVALID
from mini_chat_gpt.reports.before_after import markdown_table
from mini_chat_gpt.reports.values import format_p, format_value

FILE_NAME = "results.json"
N_SHOWN = 5
"""Right and wrong replies of each part in before_after.md."""
Result = Mapping[str, Any]


def show_results(results: Sequence[Result], names: Sequence[str], out: Console) -> None:
    """Print a table with the shares of each part, and the baselines under it."""
    for result in results:
        print_line(out, f"Held-out: {result['shows']} ({result['file']})")
        heads = ["", "n", *names, *(["p"] if len(names) > 1 else [])]
        out.print(text_table([heads, *_cells(result, names)]))
        for text in _remarks(result):
            print_line(out, text)
        out.print()


def _cells(result: Result, names: Sequence[str]) -> Iterator[list[str]]:
    """Rows of (check, n, value of each model, p)."""
    for row in result["rows"]:
        check = f"{row['check']} ({row['group']})" if row["group"] else row["check"]
        p = [format_p(row["p"])] if len(names) > 1 else []
        yield [check, str(row["n"]), *(_with_interval(row["values"][name]) for name in names), *p]
    for row in result["overlap"]:
        empty = [""] if len(names) > 1 else []
        yield [row["measure"], str(row["n"]), *(_with_interval(row["values"][name]) for name in names), *empty]


def _with_interval(estimate: Mapping[str, float]) -> str:
    value, low, high = (100 * estimate[part] for part in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.0f} to {high:.0f})"


def _remarks(result: Result) -> Iterator[str]:
    for baseline in result.get("baselines", []):
        yield f"baseline {baseline['name']}: {_with_interval(baseline)}"
    for name, n in result.get("openings", {}).items():
        yield f"different polite openings, {name}: {n}"


def markdown(results: Sequence[Result], names: Sequence[str]) -> str:
    """The sections of before_after.md about held-out parts."""
    return "".join("\n".join(_section(result, names)) + "\n" for result in results)


def _section(result: Result, names: Sequence[str]) -> Iterator[str]:
    yield from ("", f"## Held-out: {result['shows']} ({result['n']} records of {result['file']})", "")
    p = ["p"] if len(names) > 1 else []
    yield from markdown_table(["check", "n", *names, *p], list(_cells(result, names)))
    remarks = list(_remarks(result))
    if remarks:
        yield from ("", *(f"- {remark}" for remark in remarks))
    if len(names) > 1:
        yield from (
            "",
            "Shares of replies that pass, with 95 % intervals (Wilson; of overlap: bootstrap). "
            "p is that of a paired test of the two models on the same prompts, for yes or no McNemar's test.",
        )
    for name, table in result.get("confusion", {}).items():
        replies = [label for label in next(iter(table.values())) if label != INVALID or _any_invalid(table)]
        rows = [[label, *(counts[reply] for reply in replies)] for label, counts in table.items()]
        yield from ("", f"Right label in rows, reply in columns, {name}:", "")
        yield from markdown_table(["", *replies], rows)
    yield from _examples(result, names)


def _any_invalid(table: Mapping[str, Mapping[str, int]]) -> bool:
    return any(counts[INVALID] for counts in table.values())


def _examples(result: Result, names: Sequence[str]) -> Iterator[str]:
    """The first replies of the last model that pass all checks, and the first that don't."""
    last = names[-1]
    right = [one for one in result["replies"] if all(one["replies"][last]["checks"].values())]
    wrong = [one for one in result["replies"] if not all(one["replies"][last]["checks"].values())]
    for title, group in (("pass all checks", right), ("fail a check", wrong)):
        if group and result["rows"]:
            yield from ("", f"Replies of {last} that {title} ({len(group)} of {result['n']}; the first {N_SHOWN}):", "")
            rows = [(one["prompt"], one["expected"] or "", *_replies(one, names), _failed(one, last)) for one in group]
            yield from markdown_table(["prompt", "expected", *names, "failed"], rows[:N_SHOWN])


def _replies(listed: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    for reply in (listed["replies"][name] for name in names):
        text = " ".join(reply["text"].split()) or "(nothing)"
        yield text if reply["finish"] == "stop" else f"{text} … (cut off)"


def _failed(listed: Mapping[str, Any], name: str) -> str:
    return ", ".join(check for check, passed in listed["replies"][name]["checks"].items() if not passed)


def headline(results: Sequence[Result], name: str) -> list[str]:
    """One line for each part, for the head of the report: the share of right replies of a model."""
    lines = []
    for result in results:
        whole = [row for row in result["rows"] if not row["group"]] or result["rows"]
        row = next((row for row in whole if row["check"] == ALL_CHECKS), whole[0] if whole else None)
        if row is not None:
            value = format_value(row["values"][name]["value"], share=True)
            lines.append(f"{result['shows']}: {value} ({row['check']}, {row['n']} held-out records)")
    return lines
