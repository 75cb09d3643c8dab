"""What the sections of report.html have in common: the report itself, and how its values are said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_chat_gpt.common.page import escaped, without_folders
from mini_chat_gpt.evaluation.confidence import SIGNIFICANT
from mini_chat_gpt.reports.charts import SIGNS, SPACE, number, shown, span

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """The report, and what all its sections ask of it."""

    all: Row
    names: list[str]  # of the models
    groups: Mapping[str, str]

    @staticmethod
    def of(report: Row) -> Report:
        """Groups that have no name yet come last."""
        groups = dict(report.get("groups") or {})
        for kind in report.get("kinds") or []:
            groups |= {group: "" for group in kind["values"] if group not in groups}
        return Report(report, [model["name"] for model in report["models"]], groups)

    def rows(self, part: str) -> Sequence[Any]:
        return self.all.get(part) or []

    def key(self, name: str) -> str:
        """A model's sign and name."""
        if name not in self.names:
            return escaped(name)
        place = self.names.index(name)
        return f'<i class="key k{place % 4}" aria-hidden="true">{SIGNS[place % 4]}</i>{SPACE}{escaped(name)}'

    def is_share(self, label: str) -> bool:
        """Whether all that is known by a measure lies between nothing and one."""
        found = [row for kind in self.rows("kinds") if kind["label"] == label for row in kind["values"].values()]
        found += [row["values"] for row in self.rows("measures") if row["label"] == label]
        values = [one["value"] for by_name in found for one in by_name.values() if one and one["value"] is not None]
        return all(0 <= value <= 1 for value in values)

    def said(self, text: str) -> str:
        """The same as HTML."""
        return escaped(self.by_name(text))

    def by_name(self, text: str) -> str:
        """A sentence of ours; a folder or file whose whole path was typed is called by its name."""
        paths = [str(model.get("checkpoint", "")) for model in self.all["models"]]
        return without_folders(text, [*paths, str((self.all.get("data") or {}).get("file", ""))])


def beats_trivial(kind: Row, group: str, name: str) -> bool | None:
    """Whether a model's main measure is higher than the best trivial answer's; None where either is missing."""
    trivial, found = (kind.get("baseline") or {}).get(group), kind["values"][group].get(name)
    return None if not trivial or not found or found["value"] is None else bool(found["value"] > trivial["value"])


HIGHER, LOWER, SAME = "significantly higher", "significantly lower", "no significant difference"


def verdict(row: Row) -> str:
    """Of a paired difference, in words: by its p where there is one, else by its interval."""
    p = row.get("p")
    clear = p < SIGNIFICANT if p is not None else row["low"] > 0 or row["high"] < 0
    return SAME if not clear or not row["difference"] else HIGHER if row["difference"] > 0 else LOWER


def value_words(found: Row | None, share: bool) -> tuple[str, str]:
    """The value and its interval, in words."""
    if not found or found.get("value") is None:
        return "–", ""
    return shown(found["value"], share), span(found.get("low"), found.get("high"), share)


def difference_words(row: Row, share: bool) -> tuple[str, str, str]:
    p = row.get("p")
    value = shown(row["difference"], share).removesuffix(f"{SPACE}%")
    signed = ("+" if row["difference"] > 0 else "") + value + (f"{SPACE}points" if share else "")
    chance = "" if p is None else f"p{SPACE}{'' if p <= LEAST_P else f'={SPACE}'}{p_words(p)}"
    return signed, span(row["low"], row["high"], share), escaped(chance)


LEAST_P = 0.00015  # the least that drawn signs can tell is 0.0001


def p_words(p: float) -> str:
    return f"≤{SPACE}0.0001" if p <= LEAST_P else number(p)


def kind_name(kind: str) -> str:
    return escaped(kind.replace("_", " "))
