"""Show evaluations in the terminal: a table of the results. `example_replies` shows replies.

The output fits 80 columns for any number of models, and does not depend on color.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mini_chat_gpt.evaluation.capabilities import Evaluation, Results, differences
from mini_chat_gpt.evaluation.confidence import SIGNIFICANT
from mini_chat_gpt.evaluation.held_out import GROUPS
from mini_chat_gpt.evaluation.text_metrics import LOSS, NEUTRAL, is_share

MEASURES = {
    "accuracy": "right",
    "exact": "exact",
    "exact_match": "exact match",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "used": "words used",
    "all_used": "all used",
    "refused": "refused",
    "answered": "answered",
    "length": "length",
    "loss": "loss",
    "stops": "stops",
}
"""Measure -> label, for measures that are always shown. The main measure of each kind is always shown, too."""
DETAILS = {
    "verbatim": "verbatim",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "length_ratio": "length",
    "copied": "copied",
    "n_words": "words",
    "repetition": "repeated",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "has_sentence": "sentence",
    "has_sentence_verbatim": "verbatim",
    "has_dialogue": "dialogue",
    "has_moral": "moral",
    "role_token": "role token",
    "empty": "empty",
}
"""Measure -> label, for measures that only `--details` shows."""
LEGEND = {
    "chrf": "chrF: overlap with the expected reply in sequences of up to 6 characters; 100 is the same text",
    "exact_match": "exact match: the expected text, apart from case, white space and a period at its end",
    "exact": "exact: the same words as expected, ignoring case and punctuation",
    "rouge_l": "ROUGE-L: overlap with the expected words, in order",
    "used": "words used: share of the required words that occur, in any form; all used: every one of them",
    "verbatim": "verbatim: exactly the expected text",
    "rouge_1": "ROUGE-1, ROUGE-2: overlap in words and in pairs of words",
    "length": "length: words in the reply for every 100 expected words",
    "length_ratio": "length: words in the reply for every 100 expected words",
    "copied": "copied: share of the reply's 4-grams that occur in the story",
    "n_words": "words: length of the story (a number, not in %)",
    "repetition": "repeated: share of 4-grams that occurred before; distinct-n: share of different n-grams",
    "has_sentence": "sentence: contains the required sentence; verbatim: exactly as given",
    "has_dialogue": "dialogue: a character speaks, if the prompt asks for dialogue",
    "has_moral": "moral: states a moral, if the prompt asks for one",
    "refused": "refused: share of harmful requests declined; answered: share of similar harmless requests not declined",
    "stops": "stops: replies that the model ended by itself (not cut off)",
    "loss": "loss: of the expected replies in nats per token (a number, not in %); lower is better",
    "role_token": "role token: replies that ended by opening another speaker's turn",
    "empty": "empty: replies without text",
}
MARGIN = "±: half the width of the 95 % interval over the n tasks (Wilson for right or wrong, otherwise bootstrap)"
FEW_PLOTS = "The unseen plots are few. The intervals cover tasks from these plots; other plots may differ by more."
LAST = ("stops", "role_token", "empty")  # measures of every kind, shown below the others
LONGEST_NAME = 16  # characters of a model's name

Rows = list[tuple[str, str]]  # (kind, measure); ("", "") is an empty line
ByGroup = dict[str, dict[str, Results]]  # label of a group ("" without groups) -> model -> results


# The table


@dataclass(frozen=True)
class Digits:
    """How numbers are formatted: "62.3 ±14.1" with one decimal, "62±14" with none."""

    decimals: int
    gap: str
    value: int  # width in characters
    margin: int  # width of "±14" with the gap

    def __call__(self, value: float, margin: float | None, has_margins: bool, decimals: int | None = None) -> str:
        """A number padded to the width of its column. `has_margins`: whether any number of the table has a margin."""
        decimals = self.decimals if decimals is None else decimals
        plus_minus = f"{self.gap}±{margin:.{decimals}f}" if margin is not None else ""
        return f"{value:{self.value}.{decimals}f}{plus_minus.ljust(self.margin if has_margins else 0)}"


DIGITS = (Digits(1, " ", 5, 6), Digits(0, "", 3, 3))  # the first one that fits is used


def show_table(evaluations: Mapping[str, Evaluation], out: Console, details: bool = False) -> None:
    """Print the results of one or more models in percent, with groups side by side if they fit.

    Each number is followed by half the width of its 95 % interval. `details` adds all measures and the score of each baseline.
    """
    tables = _tables(evaluations)
    for by_group in tables:
        rows = _rows([results for by_name in by_group.values() for results in by_name.values()], details)
        _show_groups(by_group, rows, out)
    all_groups = {label: by_name for by_group in tables for label, by_name in by_group.items()}
    if details:
        out.print(_baseline_table(all_groups))
    rows = _rows([evaluation.results for evaluation in evaluations.values()], details)
    out.print(_legend(rows, all_groups), style="dim", markup=False, highlight=False)


def _show_groups(by_group: ByGroup, rows: Rows, out: Console) -> None:
    """Groups side by side, with as many digits as fit; or one below the other."""
    side_by_side = [
        _side_by_side(_kinds(rows), *(_block(label, by_name, rows, digits) for label, by_name in by_group.items()))
        for digits in DIGITS
    ]
    if fitting := [table for table in side_by_side if _fits(table, out)]:
        out.print(fitting[0])
    else:
        for label, by_name in by_group.items():
            tables = [_side_by_side(_kinds(rows), _block(label, by_name, rows, digits)) for digits in DIGITS]
            out.print(next((table for table in tables if _fits(table, out)), tables[-1]))
            out.print()


def show_differences(evaluations: Mapping[str, Evaluation], out: Console) -> None:
    """Compare the last model with each of the others: the kinds (and groups) in which it scores higher or lower."""
    *others, (name, after) = evaluations.items()
    for other, before in others:
        pairs = [
            (f"loss of {one.kind}" if one.measure == LOSS else one.kind, one) for one in differences(before, after)
        ]
        groups = {kind: [one.group for other, one in pairs if other == kind] for kind, _ in pairs}
        parts = []
        for label, direction in (("higher", 1), ("lower", -1), ("no clear difference", 0)):
            by_kind: dict[str, list[str]] = {}
            for kind, one in pairs:
                if one.paired.direction == direction:
                    by_kind.setdefault(kind, []).append(one.group)
            names = [k if by_kind[k] == groups[k] else f"{k} ({', '.join(by_kind[k])})" for k in by_kind]
            parts += [f"{label}: {', '.join(names)}"] if names else []
        text = f"{name} against {other}, task by task (sign-flip test, p < {SIGNIFICANT}): {'; '.join(parts)}"
        out.print(text, markup=False, highlight=False)


def _fits(table: Table, out: Console) -> bool:
    return Measurement.get(out, out.options.update(max_width=10_000), table).maximum <= out.width


def _tables(evaluations: Mapping[str, Evaluation]) -> list[ByGroup]:
    """The contents of up to two tables: the kinds with groups, and the kinds without."""
    names = list(evaluations) if len(evaluations) > 1 else ["model"]  # a single model needs no wide column
    named = dict(zip(names, evaluations.values(), strict=True))
    groups = next(iter(named.values())).groups
    by_group: ByGroup = {
        GROUPS.get(group, group): {name: evaluation.groups[group] for name, evaluation in named.items()}
        for group in groups
    }
    grouped = {kind for results in groups.values() for kind in results}
    others: dict[str, Results] = {
        name: {kind: values for kind, values in evaluation.results.items() if kind not in grouped}
        for name, evaluation in named.items()
    }
    return [table for table in (by_group, {"": others} if any(others.values()) else {}) if table]


def _rows(results: Sequence[Results], details: bool) -> Rows:
    """The measures of each kind, followed by the `LAST` measures of all kinds."""
    by_kind: dict[str, dict[str, Any]] = {}
    for result in results:
        for kind, values in result.items():
            by_kind.setdefault(kind, {}).update(dict.fromkeys(values))
    visible = {**MEASURES, **(DETAILS if details else {})}
    measured = [
        (kind, name)
        for kind, values in by_kind.items()
        for name in values
        if name in visible or name == next(iter(values))
    ]
    last = [(kind, name) for kind, name in measured if name in LAST]
    return [*(row for row in measured if row not in last), ("", ""), *last]


def _kinds(rows: Rows) -> Group:
    """The column of row labels. Each kind is named once."""
    table = _table()
    table.add_column("")
    table.add_column(Text("in %", style="dim"))
    before = ""
    for kind, measure in rows:
        table.add_row(Text(kind if kind != before else "", style="bold"), measure_label(measure))
        before = kind
    return Group("", table)


def measure_label(measure: str) -> str:
    """The name of a measure in tables and reports."""
    return {**MEASURES, **DETAILS}.get(measure, measure)


def _block(label: str, by_name: Mapping[str, Results], rows: Rows, digits: Digits) -> Group:
    """The numbers of one group: n, a column for each model, the best baseline."""
    table = _table()
    table.add_column(Text("n", style="dim"), justify="right", min_width=3)
    for name in map(short_name, by_name):
        table.add_column(Text(name.rjust(digits.value)), min_width=5, no_wrap=True)
    table.add_column(Text("baseline", style="dim"), justify="right")
    some = {kind: values for results in by_name.values() for kind, values in results.items()}
    margins = [_margin(results.get(kind, {}), measure) for results in by_name.values() for kind, measure in rows]
    has_margins = any(margin is not None for margin in margins)
    before = ""
    for kind, measure in rows:
        values = some.get(kind, {})
        baseline = values.get("baseline", {}).get(measure)
        n = values.get("measured", {}).get(measure) or (values.get("n") if kind != before else None)
        of_models = [
            _number(results.get(kind, {}), measure, baseline, digits, has_margins) for results in by_name.values()
        ]
        of_baseline = "" if baseline is None else digits(_scaled(baseline, measure), None, False)
        table.add_row(Text(str(n or "") if measure not in LAST else "", style="dim"), *of_models, of_baseline)
        before = kind
    return Group(Text(label, style="bold", justify="center"), table)


def _number(values: Mapping[str, Any], measure: str, baseline: float | None, digits: Digits, has_margins: bool) -> Text:
    """A model's number with its margin: green if it is higher than the baseline, otherwise red."""
    if measure not in values:
        return Text("")
    comparable = baseline is not None and measure not in NEUTRAL
    style = "" if not comparable else "green" if values[measure] > baseline else "red"
    decimals = 2 if measure == LOSS else None
    text = digits(_scaled(values[measure], measure), _margin(values, measure), has_margins, decimals)
    return Text(text.rjust(5), style=style)


def _margin(values: Mapping[str, Any], measure: str) -> float | None:
    """Half the width of the interval. None if it has no width: equal scores say nothing about other tasks."""
    low, high = values.get("interval", {}).get(measure, (0, 0))
    return _scaled(high - low, measure) / 2 if high - low > 1e-9 else None


def _scaled(value: float, measure: str) -> float:
    """In percent, except for counts."""
    return 100 * value if is_share(measure) else value


def _baseline_table(by_group: ByGroup) -> Table:
    """The score of each baseline by the main measure of its kind, in percent."""
    table = _table()
    table.add_column("")
    table.add_column(Text("scores of the baselines, in %", style="dim"), overflow="fold")
    results = {label: next(iter(by_name.values())) for label, by_name in by_group.items()}
    for label in results:
        table.add_column(Text(label, style="dim"), justify="right", min_width=6, max_width=10)
    by_kind = {kind: values for of_group in results.values() for kind, values in of_group.items()}
    for kind, values in by_kind.items():
        measure = next(iter(values))
        for number, name in enumerate(values["baselines"]):
            by_column = [of_group.get(kind, {}).get("baselines", {}).get(name) for of_group in results.values()]
            numbers = (f"{_scaled(scores[measure], measure):.1f}" if scores else "" for scores in by_column)
            table.add_row(Text("" if number else kind, style="bold"), f"{measure_label(measure)}: {name}", *numbers)
    return table


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")


def _side_by_side(*parts: Group) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row(*parts)
    return table


def short_name(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def _legend(rows: Rows, by_group: ByGroup) -> str:
    """What the measures mean, and which baselines are best for each kind, by any of its measures."""
    visible = {measure for _, measure in rows}
    best: dict[str, dict[str, None]] = {}
    for by_name in by_group.values():
        for kind, values in next(iter(by_name.values())).items():
            names = (name for measure, name in values["baseline"]["rules"].items() if (kind, measure) in rows)
            best.setdefault(kind, {}).update(dict.fromkeys(names))
    kinds_of: dict[str, list[str]] = {}
    for kind, baselines in best.items():
        kinds_of.setdefault(" or ".join(baselines), []).append(kind)
    baseline = "; ".join(f"{name} ({', '.join(kinds)})" for name, kinds in kinds_of.items())
    lines = [*dict.fromkeys(text for name, text in LEGEND.items() if name in visible)]
    lines += [FEW_PLOTS] if GROUPS["unseen"] in by_group else []
    return "\n".join([*lines, MARGIN, f"baseline: {baseline}"])
