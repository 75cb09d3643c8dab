"""report.html: what fine-tuning changed, to be looked at. Made from what report.json holds; its pictures are in report_charts.py.

It can be read without scripts (which only filter and sort), without colours, on a phone, in the dark and on paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mini_chat_gpt import assets
from mini_chat_gpt.common.page import document, escaped, tiles
from mini_chat_gpt.reports.charts import SPACE, number, shown
from mini_chat_gpt.reports.html_replies import own_prompts, side_by_side
from mini_chat_gpt.reports.html_sections import lengths, losses, plain_text, recited, tasks
from mini_chat_gpt.reports.report_words import (
    HIGHER,
    LOWER,
    SAME,
    Report,
    Row,
    beats_trivial,
    difference_words,
    kind_name,
    value_words,
    verdict,
)


def page(report: Row) -> str:
    """The whole page."""
    about = Report.of(report)
    sections = [
        ("tasks", "What they can do" if len(about.names) > 1 else "What it can do", tasks(about)),
        ("text", "Plain text", plain_text(about)),
        ("recited", "What it recites", recited(about)),
        ("own", "Your own prompts", own_prompts(report.get("own"), about.names, about.key)),
        ("losses", "Losses", losses(about)),
        ("lengths", "How long the replies are", lengths(about)),
        (
            "replies",
            "Replies, side by side",
            side_by_side(about.rows("side_by_side"), about.names, about.groups, about.key),
        ),
        ("numbers", "All numbers", _numbers(about)),
        ("again", "How this was measured", _again(about)),
    ]
    there = [(anchor, title, body) for anchor, title, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in there)
    title = about.said(report["title"])
    body = [f"<header><h1>{title}</h1>", _models(about), tiles(_summary(about)), f"<nav>{links}</nav></header>"]
    body += [f'<section id="{anchor}"><h2>{title}</h2>\n{text}</section>' for anchor, title, text in there]
    return document(
        about.by_name(report["title"]), "\n".join(body), assets.text("report.css"), assets.text("report.js")
    )


# The head


def _models(about: Report) -> str:
    items = []
    for model in about.all["models"]:
        facts = [f"{model['kind']} model", f"{model['parameters']:,} parameters"]
        if model.get("checkpoint") not in (None, model["name"]):
            facts.append(str(model["checkpoint"]))
        items.append(
            f'<li><b>{about.key(model["name"])}</b> <span class="dim">{about.said(", ".join(facts))}</span></li>'
        )
    what = (
        "What fine-tuning changed, on held-out tasks."
        if len(items) > 1
        else "What the model can do, on held-out tasks."
    )
    return f'<p class="dim">{what}</p><ul class="models">{"".join(items)}</ul>'


def _summary(about: Report) -> list[tuple[str, str]]:
    """The tiles."""
    found = []
    by_pair: dict[tuple[str, str], list[str]] = {}
    for row in about.rows("paired"):
        by_pair.setdefault((row["before"], row["after"]), []).append(verdict(row))
    for (before, after), verdicts in by_pair.items():
        lower, same = verdicts.count(LOWER), verdicts.count(SAME)
        words = (
            f"comparisons where {after} is significantly higher than {before}; {lower} lower, {same} not significant"
        )
        found.append((f"{verdicts.count(HIGHER)} of {len(verdicts)}", words))
    if told := _beyond_trivial(about):
        better, n = told
        found.append(
            (f"{better} of {n}", f"kinds and groups where {about.names[-1]} is better than the best trivial answer")
        )
    if n := sum(n for kind in about.rows("kinds") for n in kind["n"].values()):
        found.append((f"{n:,}", "held-out tasks" if n != 1 else "held-out task"))
    for values, what in (
        (_stops(about), "replies that end by themselves"),
        (_bits(about), "bits a byte of plain text; less is better"),
    ):
        if values:
            found.append(
                (" → ".join(values if len(values) < 3 else (values[0], values[-1])), what + _order(len(values)))
            )
    for name, run in (about.all.get("losses") or {}).items():
        if run.get("val") and name == about.names[-1]:
            found.append((number(run["val"][-1][1]), f"validation loss of {name} at its end"))
    return found


def _beyond_trivial(about: Report) -> tuple[int, int] | None:
    """(how many main measures of the last model are higher than the best trivial answer's, of how many)."""
    found = [beats_trivial(kind, group, about.names[-1]) for kind in about.rows("kinds") for group in kind["values"]]
    told = [better for better in found if better is not None]
    return (sum(told), len(told)) if told else None


def _order(n: int) -> str:
    return ", first model to last" if n > 1 else ""


def _stops(about: Report) -> list[str]:
    """By model, the share of all replies."""
    found = []
    for name in about.names:
        those = [
            (kind["n"].get(group, 1), by_name[name]["stops"])
            for kind in about.rows("kinds")
            for group, by_name in kind["values"].items()
            if (by_name.get(name) or {}).get("stops") is not None
        ]
        if those:
            found.append(f"{100 * sum(n * share for n, share in those) / (sum(n for n, _ in those) or 1):.0f}{SPACE}%")
    return found


def _bits(about: Report) -> list[str]:
    plain = about.all.get("plain_text") or {}
    return [number(plain[name]["bits_per_byte"]) for name in about.names if name in plain]


# All numbers


def _numbers(about: Report) -> str:
    folded = [
        ("All measures", _measures(about)),
        ("What trivial replies reach", _trivial(about)),
        ("All differences", _differences(about)),
    ]
    return "".join(
        f'<details class="printed"><summary>{title}</summary>{table}</details>' for title, table in folded if table
    )


def _cell(text: str, value: float | None = None) -> str:
    sort = "" if value is None else f' data-v="{value}"'
    return f"<td{sort}>{text}</td>"


def _sortable(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (
        f'<div class="wide"><table class="sort"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        if body
        else ""
    )


def _measures(about: Report) -> str:
    """Every measure of every kind and group, also how often replies end by themselves."""
    found: list[tuple[str, str, str, Row, Row | None, int | None]] = []
    further = [(row["kind"], row["group"], row["label"], row["values"], row.get("n")) for row in about.rows("measures")]
    ends = {(row["kind"], row["group"]) for row in about.rows("measures") if row["measure"] == "stops"}
    for kind in about.rows("kinds"):
        for group, by_name in kind["values"].items():
            n, key = kind["n"].get(group), (kind["kind"], group)
            found.append((*key, kind["label"], by_name, (kind.get("baseline") or {}).get(group), n))
            found += [(*key, label, values, None, n_of) for a, b, label, values, n_of in further if (a, b) == key]
            stops = {
                name: {"value": one["stops"]} for name, one in by_name.items() if one and one.get("stops") is not None
            }
            if stops and key not in ends:
                found.append((*key, "stops", stops, None, n))
    there = {(kind, group) for kind, group, *_ in found}
    found += [(*row[:4], None, row[4]) for row in further if row[:2] not in there]
    rows = []
    for name, group, label, by_name, trivial, n in found:
        share = about.is_share(label)
        cells = [
            _cell(kind_name(name)),
            _cell(escaped(group)),
            _cell(escaped(label)),
            _cell("" if n is None else f"{n:,}", n),
        ]
        for model in about.names:
            value, interval = value_words(by_name.get(model), share)
            cells.append(_cell(f"{value} <small>{interval}</small>", (by_name.get(model) or {}).get("value")))
        least = trivial["value"] if trivial else None
        rows.append([*cells, _cell(shown(least, share) if trivial else "", least)])
    heads = ["kind", "group", "measure", "n", *map(about.key, about.names), "trivial"]
    return _sortable(heads, rows)


def _trivial(about: Report) -> str:
    """Each rule by the main measure of its kind."""
    rows = []
    for kind in about.rows("kinds"):
        share = about.is_share(kind["label"])
        for group, by_rule in (kind.get("baselines") or {}).items():
            for rule, value in by_rule.items():
                cells = [_cell(kind_name(kind["kind"])), _cell(escaped(group)), _cell(escaped(rule))]
                rows.append([*cells, _cell(escaped(kind["label"])), _cell(shown(value, share), value)])
    return _sortable(("kind", "group", "reply", "measure", "value"), rows)


def _differences(about: Report) -> str:
    rows = []
    for row in about.rows("paired"):
        value, interval, p = difference_words(row, about.is_share(row["label"]))
        rows.append([
            _cell(kind_name(row["kind"])), _cell(escaped(row["group"])), _cell(escaped(row["label"])),
            _cell(f"{escaped(row['before'])} → {escaped(row['after'])}"), _cell(f"{value} <small>{interval}</small>", row["difference"]),
            _cell(p, row.get("p")), _cell(verdict(row)),
        ])  # fmt: skip
    return _sortable(("kind", "group", "measure", "models", "difference", "p", ""), rows)


# The foot


def _again(about: Report) -> str:
    data = dict(about.all.get("data") or {})
    facts: list[tuple[str, str]] = []
    if file := data.pop("file", None):
        why = data.pop("why", "")
        facts.append(("data", about.said(str(file)) + (f" ({about.said(why)})" if why else "")))
    names = {"n": "n, at most of each kind and group", "seconds": "seconds taken"}
    facts += [
        (names.get(str(key), str(key)), about.said(number(value) if isinstance(value, float) else str(value)))
        for key, value in data.items()
        if value is not None
    ]
    for model in about.all["models"]:
        facts.append(
            (str(model["name"]), about.said(f"{model.get('checkpoint', '')}, {model['parameters']:,} parameters"))
        )
    items = "".join(f"<dt>{escaped(name)}</dt><dd>{value}</dd>" for name, value in facts)
    words = "All models were given the same tasks; the same data, seed and n give them again. Intervals hold 95 %."
    return f'<dl>{items}</dl><p class="dim">{words} report.json beside this page has every number.</p>'
