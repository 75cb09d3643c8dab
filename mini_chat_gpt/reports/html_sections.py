"""Sections of report.html with charts (task scores, bits per byte, memorization, losses, lengths), and how values are written.

Every section is a function from the report to HTML; it returns "" if the report has no data for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mini_chat_gpt.common.page import escaped, without_folders
from mini_chat_gpt.evaluation.confidence import SIGNIFICANT
from mini_chat_gpt.evaluation.memorization import searched
from mini_chat_gpt.evaluation.refusals import REFUSALS
from mini_chat_gpt.reports.charts import (
    SIGNS,
    SPACE,
    Scale,
    bar,
    bar_axis,
    baseline_row,
    bins,
    format_interval,
    format_value,
    histogram,
    loss_curves,
    number,
    shares,
)

Row = Mapping[str, Any]

ABOUT_REFUSALS = "harmful requests (refused: share of these) and similar harmless ones (answered: share of those)"


@dataclass(frozen=True)
class ReportView:
    """The report with what all sections need of it."""

    data: Row  # as in report.json
    names: list[str]  # of the models
    groups: Mapping[str, str]  # group -> title

    @staticmethod
    def of(report: Row) -> ReportView:
        """Groups without a title come last."""
        groups = dict(report.get("groups") or {})
        for kind in report.get("kinds") or []:
            groups |= {group: "" for group in kind["values"] if group not in groups}
        return ReportView(report, [model["name"] for model in report["models"]], groups)

    def rows(self, part: str) -> Sequence[Any]:
        return self.data.get(part) or []

    def key(self, name: str) -> str:
        """A model's sign and name as HTML."""
        if name not in self.names:
            return escaped(name)
        place = self.names.index(name)
        return f'<i class="key k{place % 4}" aria-hidden="true">{SIGNS[place % 4]}</i>{SPACE}{escaped(name)}'

    def is_share(self, label: str) -> bool:
        """Whether all values of a measure are between 0 and 1."""
        by_names = [
            by_name for kind in self.rows("kinds") if kind["label"] == label for by_name in kind["values"].values()
        ]
        by_names += [row["values"] for row in self.rows("measures") if row["label"] == label]
        values = [one["value"] for by_name in by_names for one in by_name.values() if one and one["value"] is not None]
        return all(0 <= value <= 1 for value in values)

    def html(self, text: str) -> str:
        """The text as HTML, without the folders of absolute paths."""
        return escaped(self.shortened(text))

    def shortened(self, text: str) -> str:
        """The text with absolute paths of models and data reduced to their names."""
        paths = [str(model.get("checkpoint", "")) for model in self.data["models"]]
        return without_folders(text, [*paths, str((self.data.get("data") or {}).get("file", ""))])


# How values are written


def beats_baseline(kind: Row, group: str, name: str) -> bool | None:
    """Whether a model's main measure is higher than the best baseline's; None if either is missing."""
    baseline, estimate = (kind.get("baseline") or {}).get(group), kind["values"][group].get(name)
    if not baseline or not estimate or estimate["value"] is None:
        return None
    return bool(estimate["value"] > baseline["value"])


HIGHER, LOWER, SAME = "significantly higher", "significantly lower", "no significant difference"


def verdict(row: Row) -> str:
    """Whether a paired difference is significant, by its p, or by its interval if there is no p."""
    p = row.get("p")
    significant = p < SIGNIFICANT if p is not None else row["low"] > 0 or row["high"] < 0
    return SAME if not significant or not row["difference"] else HIGHER if row["difference"] > 0 else LOWER


def value_and_interval(estimate: Row | None, share: bool) -> tuple[str, str]:
    if not estimate or estimate.get("value") is None:
        return "–", ""
    interval = format_interval(estimate.get("low"), estimate.get("high"), share)
    return format_value(estimate["value"], share), interval


def difference_parts(row: Row, share: bool) -> tuple[str, str, str]:
    """(difference with its sign, interval, p)"""
    p = row.get("p")
    value = format_value(row["difference"], share).removesuffix(f"{SPACE}%")
    signed = ("+" if row["difference"] > 0 else "") + value + (f"{SPACE}points" if share else "")
    p_text = "" if p is None else f"p{SPACE}{'' if p <= LEAST_P else f'={SPACE}'}{format_p(p)}"
    return signed, format_interval(row["low"], row["high"], share), escaped(p_text)


LEAST_P = 0.00015  # the smallest p that the sign-flip test can estimate with random signs is 0.0001


def format_p(p: float) -> str:
    return f"≤{SPACE}0.0001" if p <= LEAST_P else number(p)


def kind_name(kind: str) -> str:
    return escaped(kind.replace("_", " "))


# Task scores


def tasks(report: ReportView) -> str:
    if not report.rows("kinds"):
        return ""
    legend = (
        "Bars show the main measure of each kind, whiskers its 95 % interval. The dashed line is the best baseline: a simple "
        "rule that does not understand the task."
    )
    if report.rows("paired"):
        legend += f" Differences are computed task by task; they are significant if p < {SIGNIFICANT} (sign-flip test)."
    cards = "".join(_task(kind, report) for kind in report.rows("kinds"))
    return f'<p class="dim">{legend}</p><div class="tasks">{cards}</div>'


def _task(kind: Row, report: ReportView) -> str:
    share = report.is_share(kind["label"])
    groups = [group for group in report.groups if group in kind["values"]]
    baselines = kind.get("baseline") or {}
    values = [baselines[group]["value"] for group in groups if baselines.get(group)]
    for group in groups:
        for one in kind["values"][group].values():
            values += [one[part] for part in ("value", "low", "high") if one and one.get(part) is not None]
    scale = Scale.of(values, share)
    figures = "".join(_figure(kind, group, scale, baselines.get(group), report) for group in groups)
    unit = kind["label"] + (", %" if share else "")
    head = f"<h3><b>{kind_name(kind['kind'])}</b><span>{escaped(unit)}</span></h3>"
    return f'<article class="task">{head}<div class="groups">{figures}</div></article>'


def _figure(kind: Row, group: str, scale: Scale, baseline: Row | None, report: ReportView) -> str:
    """The bars of a kind and group, and notes with further measures and differences."""
    by_name, share = kind["values"][group], scale.share
    line = None
    if baseline is not None:
        line = (baseline["value"], f"baseline: {baseline['rule']}, {format_value(baseline['value'], share)}")
    rows = [_bar_row(place, name, by_name.get(name), scale, line, report) for place, name in enumerate(report.names)]
    if baseline is not None and line is not None:
        value = f"<b>{format_value(baseline['value'], share)}</b>"
        rows.append(
            f'<span class="name dim">baseline</span>{baseline_row(scale, *line)}<span class="val dim">{value}</span>'
        )
    rows.append(f"<span></span>{bar_axis(scale)}<span></span>")
    n, title = kind["n"].get(group), report.groups[group]
    caption = [ABOUT_REFUSALS] if kind["kind"] == REFUSALS else []
    caption += [f"<b>{escaped(group)}</b>" + (f": {escaped(title)}" if title else "")] if group else []
    caption += [f"n = {n:,}"] if n is not None else []
    of_this = [row for row in report.rows("measures") if row.get("main") and _is_of(row, kind, group)]
    notes = [_further_measure(row, report) for row in of_this]
    pairs = [row for row in report.rows("paired") if _is_of(row, kind, group) and row["label"] == kind["label"]]
    notes += [_difference(row, report.is_share(row["label"])) for row in pairs]
    if baseline is not None:
        below = beats_baseline(kind, group, report.names[-1]) is False
        text = f" {escaped(report.names[-1])} is <b>not better</b> than the baseline." if below else ""
        notes.append(f'<li class="dim">Baseline: {escaped(baseline["rule"])}.{text}</li>')
    return (
        f'<figure><figcaption>{", ".join(caption)}</figcaption><div class="bars">{"".join(rows)}</div>'
        f'<ul class="notes">{"".join(notes)}</ul></figure>'
    )


def _bar_row(
    place: int, name: str, estimate: Row | None, scale: Scale, line: tuple[float, str] | None, report: ReportView
) -> str:
    """A model's name, bar and value."""
    value, interval = value_and_interval(estimate, scale.share)
    tip = f"{name}: {value}" + (f" (95 % interval {interval})" if interval else "")
    return (
        f'<span class="name">{report.key(name)}</span>{bar(scale, estimate, place % 4, line, tip)}'
        f'<span class="val"><b>{value}</b> <small>{interval}</small></span>'
    )


def _is_of(row: Row, kind: Row, group: str) -> bool:
    return bool((row["kind"], row["group"]) == (kind["kind"], group))


def _further_measure(row: Row, report: ReportView) -> str:
    """Another measure of the same replies, on one line."""
    share = report.is_share(row["label"])
    values = ((name, value_and_interval(row["values"].get(name), share)[0]) for name in report.names)
    text = ", ".join(f"{report.key(name)} <b>{value}</b>" for name, value in values)
    return f"<li>{escaped(row['label'])}: {text}</li>"


def _difference(row: Row, share: bool) -> str:
    """A paired difference with its verdict, on one line."""
    value, interval, p = difference_parts(row, share)
    sign = {HIGHER: "▲", LOWER: "▼", SAME: "≈"}[verdict(row)]
    return (
        f"<li>{escaped(row['before'])} → {escaped(row['after'])}: <b>{value}</b>{interval and f' ({interval})'}{p and f', {p}'}: "
        f"<b>{sign}{SPACE}{verdict(row)}</b></li>"
    )


# Bits per byte and memorization


def bits_per_byte(report: ReportView) -> str:
    by_name = report.data.get("bits_per_byte") or {}
    if not by_name:
        return ""
    parts = ("bits_per_byte", "low", "high")
    scale = Scale.of([one[part] for one in by_name.values() for part in parts if one.get(part) is not None], False)
    rows = []
    for place, name in enumerate(report.names):
        estimate = by_name[name] | {"value": by_name[name]["bits_per_byte"]} if name in by_name else None
        rows.append(_bar_row(place, name, estimate, scale, None, report))
    rows.append(f"<span></span>{bar_axis(scale)}<span></span>")
    legend = "Loss on held-out stories as plain text, in bits per byte. Lower is better. It rises if fine-tuning makes a model forget."
    notes = "".join(_difference(row, False) for row in report.rows("paired_bits_per_byte"))
    return f'<p class="dim">{legend}</p><article><div class="bars">{"".join(rows)}</div><ul class="notes">{notes}</ul></article>'


def memorization(report: ReportView) -> str:
    """The share of n-grams that occur in the training stories, with that of real stories as the baseline."""
    result = report.data.get("memorization")
    if not result:
        return ""
    models = result["models"]
    estimates = [one[part] for one in models.values() if one for part in ("generated", "reference") if one[part]]
    scale = Scale.of(
        [one[part] for one in estimates for part in ("value", "low", "high") if one[part] is not None], True
    )
    rows, notes = [], []
    for place, name in enumerate(report.names):
        one = models.get(name)
        generated, reference = (one["generated"], one["reference"]) if one else (None, None)
        line = None
        if reference and reference["value"] is not None:
            line = (reference["value"], f"real stories: {format_value(reference['value'], True)}")
        estimate = generated if generated and generated["value"] is not None else None
        rows.append(_bar_row(place, name, estimate, scale, line, report))
        if one and one["difference"]:
            notes.append(_difference(one["difference"] | {"before": "real stories", "after": name}, True))
        notes.append(f'<li class="dim">{report.key(name)}: {_longest_run(one)}</li>')
    rows.append(f"<span></span>{bar_axis(scale)}<span></span>")
    legend = (
        f"Share of the {result['n']}-grams (runs of {result['n']} words) in each model's stories that also occur in its training "
        "stories. The dashed line is the share in real held-out stories, cut to the same length. A bar far beyond the line "
        "indicates memorization."
    )
    return f'<p class="dim">{legend}</p><article><div class="bars">{"".join(rows)}</div><ul class="notes">{"".join(notes)}</ul></article>'


def _longest_run(one: Row | None) -> str:
    """The longest shared run, and which training stories were searched."""
    if one is None:
        return "its training stories were not found on this machine."
    generated, reference = one["generated"], one["reference"]
    text = f"longest shared run {generated['longest']} words, mean {number(generated['mean_longest'])}"
    text += f"; in real stories {reference['longest']}, mean {number(reference['mean_longest'])}" if reference else ""
    passage = ""
    if one["passage"] is not None:
        source = " ".join(one["passage"]["source"].split()[:12])
        passage = (
            f" The longest run is “{escaped(one['passage']['text'])}”. The training story that contains it begins with "
            f"“{escaped(source)} …”."
        )
    return f"{text}.{passage} Searched: {escaped(searched(one))}."


# Losses and lengths


def losses(report: ReportView) -> str:
    figures = []
    for place, name in enumerate(report.names):
        run = (report.data.get("losses") or {}).get(name) or {}
        train, val = run.get("train") or [], run.get("val") or []
        if not (chart := loss_curves(train, val, place % 4, name)):
            continue
        facts = [f"training, last: {number(train[-1][1])} at step {number(train[-1][0])}"] if train else []
        if val:
            step, best = min(val, key=lambda point: point[1])
            facts += [f"validation, last: {number(val[-1][1])}", f"lowest: {number(best)} at step {number(step)}"]
        figures.append(
            f"<figure><figcaption><b>{report.key(name)}</b></figcaption>{chart}<p class=dim>{'; '.join(facts)}.</p></figure>"
        )
    if not figures:
        return ""
    legend = "Thin line: training loss; thick line: smoothed; ○ with dashes: validation loss. In nats per token. Axes differ by run."
    return f'<p class="dim">{legend}</p><div class="plots">{"".join(figures)}</div>'


def lengths(report: ReportView) -> str:
    """Histograms of the lengths of the replies."""
    parts = []
    for row in report.rows("lengths"):
        counts = {name: values for name, values in row["counts"].items() if values}
        models = [name for name in report.names if name in counts]
        if not models:
            continue
        edges = bins([value for values in counts.values() for value in values])
        max_share = max(share for values in counts.values() for share in shares(values, edges))
        reference = counts.get("reference", [])
        of_reference = f"; median of the references {number(median(reference))}" if reference else ""
        figures = []
        for name in models:
            tip = f"{row['unit']} in replies of {name}"
            chart = histogram(counts[name], reference, edges, max_share, report.names.index(name) % 4, tip)
            facts = f"n = {len(counts[name]):,}{of_reference}"
            figures.append(
                f'<figure><figcaption><b>{report.key(name)}</b> <span class="dim">{facts}</span></figcaption>{chart}</figure>'
            )
        head = f"<h3><b>{kind_name(row['kind'])}</b><span>{escaped(row['unit'])}</span></h3>"
        parts.append(f'{head}<div class="plots small">{"".join(figures)}</div>')
    if not parts:
        return ""
    return (
        f'<p class="dim">Bars: replies; outline: references. Charts of one kind share their axes.</p>{"".join(parts)}'
    )
