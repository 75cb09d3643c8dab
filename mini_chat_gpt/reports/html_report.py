"""report.html: the content of report.json as a page. `charts` draws its charts, `html_sections` and `html_replies` its sections.

The page is readable without scripts (which only filter and sort), without color, on a phone, in dark mode and on paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mini_chat_gpt import assets
from mini_chat_gpt.common.page import document, escaped, tiles
from mini_chat_gpt.reports.charts import SPACE, format_value, number
from mini_chat_gpt.reports.html_replies import own_prompts, side_by_side
from mini_chat_gpt.reports.html_sections import (
    HIGHER,
    LOWER,
    SAME,
    ReportView,
    Row,
    beats_baseline,
    bits_per_byte,
    difference_parts,
    kind_name,
    lengths,
    losses,
    memorization,
    tasks,
    value_and_interval,
    verdict,
)


def page(report: Row) -> str:
    """The complete page."""
    view = ReportView.of(report)
    replies = side_by_side(view.rows("side_by_side"), view.names, view.groups, view.key)
    sections = [
        ("tasks", "Task scores", tasks(view)),
        ("text", "Bits per byte", bits_per_byte(view)),
        ("memorization", "Memorization", memorization(view)),
        ("own", "Your prompts", own_prompts(report.get("own"), view.names, view.key)),
        ("losses", "Losses", losses(view)),
        ("lengths", "Length of the replies", lengths(view)),
        ("replies", "Replies side by side", replies),
        ("numbers", "All numbers", _numbers(view)),
        ("method", "How this was measured", _method(view)),
    ]
    present = [(anchor, title, body) for anchor, title, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in present)
    title = view.html(report["title"])
    body = [f"<header><h1>{title}</h1>", _models(view), tiles(_summary(view)), f"<nav>{links}</nav></header>"]
    body += [f'<section id="{anchor}"><h2>{title}</h2>\n{text}</section>' for anchor, title, text in present]
    style, script = assets.text("report.css"), assets.text("report.js")
    return document(view.shortened(report["title"]), "\n".join(body), style, script)


# Header


def _models(view: ReportView) -> str:
    items = []
    for model in view.data["models"]:
        facts = [f"{model['kind']} model", f"{model['parameters']:,} parameters"]
        if model.get("checkpoint") not in (None, model["name"]):
            facts.append(str(model["checkpoint"]))
        items.append(
            f'<li><b>{view.key(model["name"])}</b> <span class="dim">{view.html(", ".join(facts))}</span></li>'
        )
    text = "Comparison on held-out tasks." if len(items) > 1 else "Evaluation on held-out tasks."
    return f'<p class="dim">{text}</p><ul class="models">{"".join(items)}</ul>'


def _summary(view: ReportView) -> Iterator[tuple[str, str]]:
    """The tiles: (number, description)."""
    by_pair: dict[tuple[str, str], list[str]] = {}
    for row in view.rows("paired"):
        by_pair.setdefault((row["before"], row["after"]), []).append(verdict(row))
    for (before, after), verdicts in by_pair.items():
        lower, same = verdicts.count(LOWER), verdicts.count(SAME)
        text = (
            f"comparisons in which {after} is significantly higher than {before}; {lower} lower, {same} not significant"
        )
        yield f"{verdicts.count(HIGHER)} of {len(verdicts)}", text
    if above := _above_baseline(view):
        better, n = above
        yield f"{better} of {n}", f"kinds and groups in which {view.names[-1]} is better than the best baseline"
    if n := sum(n for kind in view.rows("kinds") for n in kind["n"].values()):
        yield f"{n:,}", "held-out tasks" if n != 1 else "held-out task"
    bits = view.data.get("bits_per_byte") or {}
    bits_by_model = [number(bits[name]["bits_per_byte"]) for name in view.names if name in bits]
    stops = (_stops(view), "replies that the model ended by itself")
    for values, text in (stops, (bits_by_model, "bits per byte of held-out stories; lower is better")):
        if values:
            ends = values if len(values) < 3 else (values[0], values[-1])
            yield " → ".join(ends), text + (", first model to last" if len(values) > 1 else "")
    for name, run in (view.data.get("losses") or {}).items():
        if run.get("val") and name == view.names[-1]:
            yield number(run["val"][-1][1]), f"last validation loss of {name}"


def _above_baseline(view: ReportView) -> tuple[int, int] | None:
    """(main measures in which the last model beats the best baseline, number of comparable main measures)"""
    name = view.names[-1]
    beats = [beats_baseline(kind, group, name) for kind in view.rows("kinds") for group in kind["values"]]
    known = [better for better in beats if better is not None]
    return (sum(known), len(known)) if known else None


def _stops(view: ReportView) -> list[str]:
    """For each model, the share of its replies that it ended by itself."""
    texts = []
    for name in view.names:
        shares = [
            (kind["n"].get(group, 1), by_name[name]["stops"])
            for kind in view.rows("kinds")
            for group, by_name in kind["values"].items()
            if (by_name.get(name) or {}).get("stops") is not None
        ]
        if shares:
            mean = sum(n * share for n, share in shares) / (sum(n for n, _ in shares) or 1)
            texts.append(f"{100 * mean:.0f}{SPACE}%")
    return texts


# All numbers


def _numbers(view: ReportView) -> str:
    tables = [
        ("All measures", _measures(view)),
        ("Scores of the baselines", _baselines(view)),
        ("All differences", _differences(view)),
    ]
    return "".join(
        f'<details class="printed"><summary>{title}</summary>{table}</details>' for title, table in tables if table
    )


def _cell(text: str, value: float | None = None) -> str:
    """A table cell; `value` is what the column is sorted by."""
    sort = "" if value is None else f' data-v="{value}"'
    return f"<td{sort}>{text}</td>"


def _sortable(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    if not body:
        return ""
    table = f'<table class="sort"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def _measures(view: ReportView) -> str:
    """Every measure of every kind and group."""
    rows = []
    for kind, group, label, by_name, baseline, n in _all_measures(view):
        share = view.is_share(label)
        n_cell = _cell("" if n is None else f"{n:,}", n)
        cells = [_cell(kind_name(kind)), _cell(escaped(group)), _cell(escaped(label)), n_cell]
        for model in view.names:
            value, interval = value_and_interval(by_name.get(model), share)
            cells.append(_cell(f"{value} <small>{interval}</small>", (by_name.get(model) or {}).get("value")))
        least = baseline["value"] if baseline else None
        rows.append([*cells, _cell(format_value(least, share) if baseline else "", least)])
    return _sortable(["kind", "group", "measure", "n", *map(view.key, view.names), "baseline"], rows)


def _all_measures(view: ReportView) -> Iterator[tuple[str, str, str, Row, Row | None, int | None]]:
    """(kind, group, label, values by model, baseline, n): the main measure of each kind and group, then the others."""
    others: dict[tuple[str, str], list[Row]] = {}
    for row in view.rows("measures"):
        others.setdefault((row["kind"], row["group"]), []).append(row)
    for kind in view.rows("kinds"):
        for group, by_name in kind["values"].items():
            n, of_group = kind["n"].get(group), others.pop((kind["kind"], group), [])
            yield kind["kind"], group, kind["label"], by_name, (kind.get("baseline") or {}).get(group), n
            yield from (_other(row) for row in of_group)
            stops = {name: {"value": one["stops"]} for name, one in by_name.items() if one and "stops" in one}
            if stops and not any(row["measure"] == "stops" for row in of_group):
                yield kind["kind"], group, "stops", stops, None, n
    yield from (_other(row) for of_group in others.values() for row in of_group)


def _other(row: Row) -> tuple[str, str, str, Row, None, int | None]:
    return row["kind"], row["group"], row["label"], row["values"], None, row.get("n")


def _baselines(view: ReportView) -> str:
    """Each baseline by the main measure of its kind."""
    rows = []
    for kind in view.rows("kinds"):
        share = view.is_share(kind["label"])
        for group, by_baseline in (kind.get("baselines") or {}).items():
            for name, value in by_baseline.items():
                cells = [_cell(kind_name(kind["kind"])), _cell(escaped(group)), _cell(escaped(name))]
                rows.append([*cells, _cell(escaped(kind["label"])), _cell(format_value(value, share), value)])
    return _sortable(("kind", "group", "baseline", "measure", "value"), rows)


def _differences(view: ReportView) -> str:
    rows = []
    for row in view.rows("paired"):
        value, interval, p = difference_parts(row, view.is_share(row["label"]))
        models = f"{escaped(row['before'])} → {escaped(row['after'])}"
        rows.append([
            _cell(kind_name(row["kind"])), _cell(escaped(row["group"])), _cell(escaped(row["label"])), _cell(models),
            _cell(f"{value} <small>{interval}</small>", row["difference"]), _cell(p, row.get("p")), _cell(verdict(row)),
        ])  # fmt: skip
    return _sortable(("kind", "group", "measure", "models", "difference", "p", ""), rows)


# Footer


def _method(view: ReportView) -> str:
    data = dict(view.data.get("data") or {})
    facts: list[tuple[str, str]] = []
    if file := data.pop("file", None):
        why = data.pop("why", "")
        facts.append(("data", view.html(str(file)) + (f" ({view.html(why)})" if why else "")))
    names = {"n": "n, maximum per kind and group", "seconds": "duration in seconds"}
    facts += [
        (names.get(str(key), str(key)), view.html(number(value) if isinstance(value, float) else str(value)))
        for key, value in data.items()
        if value is not None
    ]
    for model in view.data["models"]:
        text = f"{model.get('checkpoint', '')}, {model['parameters']:,} parameters"
        facts.append((str(model["name"]), view.html(text)))
    items = "".join(f"<dt>{escaped(name)}</dt><dd>{value}</dd>" for name, value in facts)
    text = (
        "All models get the same tasks. The same data, seed and n select the same tasks again. Intervals are at the 95 % level. "
        "report.json next to this page has every number."
    )
    return f'<dl>{items}</dl><p class="dim">{text}</p>'
