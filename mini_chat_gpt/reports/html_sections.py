"""The sections of report.html that are pictures: tasks as bars, plain text, losses, lengths."""

from __future__ import annotations

from statistics import median

from mini_chat_gpt.common.page import escaped
from mini_chat_gpt.evaluation.memorization import where
from mini_chat_gpt.evaluation.refusals import REFUSALS
from mini_chat_gpt.reports.charts import (
    SPACE,
    Scale,
    bar,
    bar_axis,
    bins,
    histogram,
    loss_curves,
    number,
    shares,
    shown,
    trivial_bar,
)
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

ABOUT_REFUSALS = (
    "requests to be declined (refused: of these), and harmless ones like them (answered, well or badly: of those)"
)


def tasks(about: Report) -> str:
    if not about.rows("kinds"):
        return ""
    legend = (
        "The bar is the measure, the whisker its 95 % interval. The dashed line is what the best trivial answer reaches, "
        "which understands nothing."
    )
    if about.rows("paired"):
        legend += " Differences are taken task by task; significant is what would come by chance less than once in twenty times."
    return f'<p class="dim">{legend}</p><div class="tasks">{"".join(_task(kind, about) for kind in about.rows("kinds"))}</div>'


def _task(kind: Row, about: Report) -> str:
    share = about.is_share(kind["label"])
    groups = [group for group in about.groups if group in kind["values"]]
    trivial = kind.get("baseline") or {}
    values = [trivial[group]["value"] for group in groups if trivial.get(group)]
    for group in groups:
        for one in kind["values"][group].values():
            values += [one[part] for part in ("value", "low", "high") if one and one.get(part) is not None]
    scale = Scale.of(values, share)
    figures = "".join(_figure(kind, group, scale, trivial.get(group), about) for group in groups)
    unit = kind["label"] + (", %" if share else "")
    head = f"<h3><b>{kind_name(kind['kind'])}</b><span>{escaped(unit)}</span></h3>"
    return f'<article class="task">{head}<div class="groups">{figures}</div></article>'


def _figure(kind: Row, group: str, scale: Scale, trivial: Row | None, about: Report) -> str:
    """The bars of a kind and group, and the differences."""
    by_name, share = kind["values"][group], scale.share
    line = None
    if trivial is not None:
        line = (trivial["value"], f"trivial: {trivial['rule']}, {shown(trivial['value'], share)}")
    rows = [_bar_row(place, name, by_name.get(name), scale, line, about) for place, name in enumerate(about.names)]
    if trivial is not None and line is not None:
        value = f"<b>{shown(trivial['value'], share)}</b>"
        rows.append(
            f'<span class="name dim">trivial</span>{trivial_bar(scale, *line)}<span class="val dim">{value}</span>'
        )
    rows.append(f"<span></span>{bar_axis(scale)}<span></span>")
    n = kind["n"].get(group)
    title = about.groups[group]
    words = [ABOUT_REFUSALS] if kind["kind"] == REFUSALS else []
    words += [f"<b>{escaped(group)}</b>" + (f": {escaped(title)}" if title else "")] if group else []
    words += [f"n = {n:,}"] if n is not None else []
    notes = [_further(row, about) for row in about.rows("measures") if row.get("main") and _is_of(row, kind, group)]
    notes += [_difference(row, about) for row in about.rows("paired") if _belongs(row, kind, group)]
    if trivial is not None:
        below = beats_trivial(kind, group, about.names[-1]) is False
        said = f" {escaped(about.names[-1])} is <b>no better than that</b>." if below else ""
        notes.append(f'<li class="dim">Trivial: {escaped(trivial["rule"])}.{said}</li>')
    return (
        f'<figure><figcaption>{", ".join(words)}</figcaption><div class="bars">{"".join(rows)}</div>'
        f'<ul class="notes">{"".join(notes)}</ul></figure>'
    )


def _bar_row(
    place: int, name: str, found: Row | None, scale: Scale, line: tuple[float, str] | None, about: Report
) -> str:
    """A model's name, bar and value."""
    value, interval = value_words(found, scale.share)
    tip = f"{name}: {value}" + (f" (95 % interval {interval})" if interval else "")
    return (
        f'<span class="name">{about.key(name)}</span>{bar(scale, found, place % 4, line, tip)}'
        f'<span class="val"><b>{value}</b> <small>{interval}</small></span>'
    )


def _belongs(row: Row, kind: Row, group: str) -> bool:
    return _is_of(row, kind, group) and bool(row["label"] == kind["label"])


def _is_of(row: Row, kind: Row, group: str) -> bool:
    return bool((row["kind"], row["group"]) == (kind["kind"], group))


def _further(row: Row, about: Report) -> str:
    """Another measure of the same replies, in a line."""
    share = about.is_share(row["label"])
    found = ((name, value_words(row["values"].get(name), share)[0]) for name in about.names)
    values = ", ".join(f"{about.key(name)} <b>{value}</b>" for name, value in found)
    return f"<li>{escaped(row['label'])}: {values}</li>"


def _difference(row: Row, about: Report) -> str:
    return _difference_line(row, about.is_share(row["label"]))


def _difference_line(row: Row, share: bool) -> str:
    value, interval, p = difference_words(row, share)
    sign = {HIGHER: "▲", LOWER: "▼", SAME: "≈"}[verdict(row)]
    return (
        f"<li>{escaped(row['before'])} → {escaped(row['after'])}: <b>{value}</b>{interval and f' ({interval})'}{p and f', {p}'}: "
        f"<b>{sign}{SPACE}{verdict(row)}</b></li>"
    )


# Plain text, losses, lengths


def plain_text(about: Report) -> str:
    plain = about.all.get("plain_text") or {}
    if not plain:
        return ""
    scale = Scale.of(
        [one[part] for one in plain.values() for part in ("bits_per_byte", "low", "high") if one.get(part) is not None],
        False,
    )
    rows = []
    for place, name in enumerate(about.names):
        found = plain[name] | {"value": plain[name]["bits_per_byte"]} if name in plain else None
        rows.append(_bar_row(place, name, found, scale, None, about))
    rows.append(f"<span></span>{bar_axis(scale)}<span></span>")
    words = "Bits that each byte of held-out stories takes: less is better. What a model forgets of its stories makes the bar longer."
    notes = "".join(_difference_line(row, False) for row in about.rows("paired_text"))
    return f'<p class="dim">{words}</p><article><div class="bars">{"".join(rows)}</div><ul class="notes">{notes}</ul></article>'


def recited(about: Report) -> str:
    """What stories share with the training stories, with what real ones share as the line to be compared with."""
    found = about.all.get("recited")
    if not found:
        return ""
    models = found["models"]
    groups = [one[part] for one in models.values() if one for part in ("told", "real") if one[part]]
    scale = Scale.of([one[part] for one in groups for part in ("value", "low", "high") if one[part] is not None], True)
    rows, notes = [], []
    for place, name in enumerate(about.names):
        one = models.get(name)
        told, real = (one["told"], one["real"]) if one else (None, None)
        line = None if not real or real["value"] is None else (real["value"], f"real: {shown(real['value'], True)}")
        rows.append(_bar_row(place, name, told if told and told["value"] is not None else None, scale, line, about))
        if one and one["difference"]:
            notes.append(_difference_line(one["difference"] | {"before": "real stories", "after": name}, True))
        notes.append(f'<li class="dim">{about.key(name)}: {_recited(one)}</li>')
    rows.append(f"<span></span>{bar_axis(scale)}<span></span>")
    words = (
        f"Share of the runs of {found['n']} words in each model's stories that also stand in its training stories. The dashed line "
        "is what real stories share that no model has seen, cut to the same length: a bar far beyond it tells by heart."
    )
    return f'<p class="dim">{words}</p><article><div class="bars">{"".join(rows)}</div><ul class="notes">{"".join(notes)}</ul></article>'


def _recited(one: Row | None) -> str:
    """Where was looked, and the longest passage."""
    if one is None:
        return "its training stories are not here."
    told, real = one["told"], one["real"]
    longest = f"longest shared run {told['longest']} words, on average {number(told['mean_longest'])}"
    longest += f"; of real stories {real['longest']} and {number(real['mean_longest'])}" if real else ""
    return f"{longest}.{_passage(one['passage'])} Looked through: {escaped(where(one))}."


def _passage(passage: Row | None) -> str:
    if passage is None:
        return ""
    text, source = escaped(passage["text"]), escaped(_beginning(passage["source"]))
    return f" The longest is “{text}”, in the training story that begins “{source} …”."


def _beginning(text: str) -> str:
    return " ".join(text.split()[:12])


def losses(about: Report) -> str:
    figures = []
    for place, name in enumerate(about.names):
        run = (about.all.get("losses") or {}).get(name) or {}
        train, held_out = run.get("train") or [], run.get("val") or []
        if not (picture := loss_curves(train, held_out, place % 4, name)):
            continue
        words = [f"training, last: {number(train[-1][1])} at step {number(train[-1][0])}"] if train else []
        if held_out:
            step, best = min(held_out, key=lambda point: point[1])
            words += [f"validation, last: {number(held_out[-1][1])}", f"lowest: {number(best)} at step {number(step)}"]
        figures.append(
            f"<figure><figcaption><b>{about.key(name)}</b></figcaption>{picture}<p class=dim>{'; '.join(words)}.</p></figure>"
        )
    if not figures:
        return ""
    legend = "Thin: the training loss as it came; thick: smoothed; ○ with dashes: validation. In nats a token; each run has its own axes."
    return f'<p class="dim">{legend}</p><div class="plots">{"".join(figures)}</div>'


def lengths(about: Report) -> str:
    parts = []
    for row in about.rows("lengths"):
        counts = {name: values for name, values in row["counts"].items() if values}
        models = [name for name in about.names if name in counts]
        if not models:
            continue
        edges = bins([value for values in counts.values() for value in values])
        reference = counts.get("reference", [])
        most = max(share for values in counts.values() for share in shares(values, edges))
        figures = []
        for name in models:
            facts = f"n = {len(counts[name]):,}" + (
                f"; median of the references {number(median(reference))}" if reference else ""
            )
            picture = histogram(
                counts[name], reference, edges, most, about.names.index(name) % 4, f"{row['unit']} in replies of {name}"
            )
            figures.append(
                f'<figure><figcaption><b>{about.key(name)}</b> <span class="dim">{facts}</span></figcaption>{picture}</figure>'
            )
        parts.append(
            f'<h3><b>{kind_name(row["kind"])}</b><span>{escaped(row["unit"])}</span></h3><div class="plots small">{"".join(figures)}</div>'
        )
    if not parts:
        return ""
    return (
        f'<p class="dim">Bars: replies; outline: the references. All of a kind have the same axes.</p>{"".join(parts)}'
    )
