"""report.html: the content of report.json as a page, drawn by the template assets/report.html.

The template escapes every text that it inserts, so that the texts of data, models and users are only ever text. The page is
readable without scripts (which only filter and sort), without color, on a phone, in dark mode and on paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Any

from mini_chat_gpt import assets
from mini_chat_gpt.common.page import document, render, without_folders
from mini_chat_gpt.evaluation.memorization import searched
from mini_chat_gpt.evaluation.refusals import REFUSALS
from mini_chat_gpt.reports import values
from mini_chat_gpt.reports.charts import Histogram, Plane, Scale, bins, shares
from mini_chat_gpt.reports.first_screen import counts, sentence, spotlight, tiles
from mini_chat_gpt.reports.values import Row, number
from mini_chat_gpt.training.loss_curves import smoothed

_CUT_OFF = {"length": "cut off at the length limit", "context": "cut off at the end of the context"}


def page(report: Row) -> str:
    """The complete page."""
    view = ReportView.of(report)
    functions = {function.__name__: function for function in (cut_off, median, scale_of, searched, smoothed)}
    first_screen = {make.__name__: make(report) for make in (spotlight, sentence, counts, tiles)}
    body = render("report.html", vars(values) | functions, view=view, REFUSALS=REFUSALS, **first_screen)
    return document(view.title, body, assets.text("report.css"), assets.text("report.js"))


@dataclass(frozen=True)
class ReportView:
    """The report as the template needs it."""

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

    @property
    def title(self) -> str:
        return self.shortened(self.data["title"])

    def rows(self, part: str) -> Sequence[Any]:
        return self.data.get(part) or []

    def shortened(self, text: Any) -> str:
        """The text with absolute paths of models and data reduced to their names."""
        paths = [str(model.get("checkpoint", "")) for model in self.data["models"]]
        return without_folders(str(text), [*paths, str((self.data.get("data") or {}).get("file", ""))])

    # Task scores

    def is_share(self, label: str) -> bool:
        """Whether a measure is shown in percent."""
        return any(row["share"] for row in [*self.rows("kinds"), *self.rows("measures")] if row["label"] == label)

    def scale(self, kind: Row) -> Scale:
        """The scale of a kind's bars in all groups."""
        estimates = [one for by_name in kind["values"].values() for one in by_name.values()]
        return scale_of([*estimates, *(kind.get("baseline") or {}).values()], self.is_share(kind["label"]))

    def all_measures(self) -> Iterator[Row]:
        """The main measure of each kind and group, then its others."""
        for kind in self.rows("kinds"):
            for group, by_name in kind["values"].items():
                of_this = {"kind": kind["kind"], "group": group, "label": kind["label"], "values": by_name}
                yield of_this | {"n": kind["n"].get(group), "baseline": (kind.get("baseline") or {}).get(group)}
                yield from (
                    row for row in self.rows("measures") if (row["kind"], row["group"]) == (kind["kind"], group)
                )

    # The other charts

    def bits_per_byte(self) -> dict[str, Row]:
        return {name: {**one, "value": one["bits_per_byte"]} for name, one in self.data["bits_per_byte"].items()}

    def memorization(self) -> tuple[dict[str, Row], dict[str, Row]]:
        """The estimates of the models' stories, and of real stories, by model."""
        known = {name: one for name, one in self.data["memorization"]["models"].items() if one}
        generated = {name: one["generated"] for name, one in known.items()}
        reference = {
            name: one["reference"]
            for name, one in known.items()
            if one["reference"] and one["reference"]["value"] is not None
        }
        for name, one in reference.items():
            reference[name] = one | {"tip": f"real stories: {values.format_value(one['value'], True)}"}
        return generated, reference

    def losses(self) -> list[tuple[str, Plane, list[Any], list[Any], list[str]]]:
        """(model, plane, training losses, validation losses, facts) of each run with finite losses."""
        drawn = []
        for name in self.names:
            run = (self.data.get("losses") or {}).get(name) or {}
            train, val = ([point for point in run.get(part) or [] if isfinite(point[1])] for part in ("train", "val"))
            facts = [f"training, last: {number(train[-1][1])} at step {number(train[-1][0])}"] if train else []
            if val:
                step, best = min(val, key=lambda point: point[1])
                facts += [f"validation, last: {number(val[-1][1])}", f"lowest: {number(best)} at step {number(step)}"]
            if facts:
                drawn.append((name, Plane.of([*train, *val]), train, val, facts))
        return drawn

    def lengths(self) -> list[tuple[Row, list[tuple[str, Histogram]]]]:
        """(row of report.json, histogram of each model). The histograms of a row share their axes."""
        drawn = []
        for row in self.rows("lengths"):
            counts = {name: lengths for name, lengths in row["counts"].items() if lengths}
            if models := [name for name in self.names if name in counts]:
                edges = bins([length for lengths in counts.values() for length in lengths])
                tallest = max(share for lengths in counts.values() for share in shares(lengths, edges))
                reference = counts.get("reference", [])
                drawn.append((row, [(name, Histogram(counts[name], reference, edges, tallest)) for name in models]))
        return drawn

    def replied(self, prompts: Sequence[Row]) -> list[str]:
        """The models that replied to any of the user's prompts; all of them if there are no prompts."""
        return [name for name in self.names if any(name in each["replies"] for each in prompts)] or self.names


def scale_of(estimates: Iterable[Row | None], share: bool) -> Scale:
    """A scale on which these estimates and their intervals can be drawn."""
    parts = [one.get(part) for one in estimates if one for part in ("value", "low", "high")]
    return Scale.of([part for part in parts if part is not None], share)


def cut_off(reply: Row) -> list[str]:
    """Why a reply did not end by itself; [] if it did."""
    finish = reply.get("finish")
    return [] if finish in (None, "stop") else [_CUT_OFF.get(finish, f"ended by: {finish}")]
