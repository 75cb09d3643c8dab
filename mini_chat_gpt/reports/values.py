"""How report.html and before_after.md write numbers: shares in percent, intervals, p, and the verdict on a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mini_chat_gpt.evaluation.confidence import SIGNIFICANT

Row = Mapping[str, Any]

SPACE = "\u00a0"
HIGHER, LOWER, SAME = "significantly higher", "significantly lower", "no significant difference"
SIGNS = {HIGHER: "▲", LOWER: "▼", SAME: "≈"}
LEAST_P = 0.00015  # the smallest p that the sign-flip test can estimate with random signs is 0.0001


def number(value: float) -> str:
    """The value with at least three digits and a typographic minus sign."""
    if not math.isfinite(value):
        return str(value)
    text = f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def format_value(value: float, share: bool) -> str:
    """The value as text, a share in percent."""
    return f"{100 * value:.1f}{SPACE}%".replace("-", "−") if share and math.isfinite(value) else number(value)


def format_interval(low: float | None, high: float | None, share: bool) -> str:
    """ "LOW to HIGH", shares without the percent sign. "" for no interval, and for one without width: all scores are equal."""
    if low is None or high is None or high - low < 1e-9:
        return ""
    return " to ".join(format_value(value, share).removesuffix(f"{SPACE}%") for value in (low, high))


def value_and_interval(estimate: Row | None, share: bool) -> tuple[str, str]:
    """`estimate` has "value" and perhaps "low" and "high"."""
    if not estimate or estimate.get("value") is None:
        return "–", ""
    return format_value(estimate["value"], share), format_interval(estimate.get("low"), estimate.get("high"), share)


def format_p(p: float) -> str:
    return f"≤{SPACE}0.0001" if p <= LEAST_P else number(p)


def difference_parts(row: Row, share: bool) -> tuple[str, str, str]:
    """(difference with its sign, interval, p)"""
    p = row.get("p")
    value = format_value(row["difference"], share).removesuffix(f"{SPACE}%")
    signed = ("+" if row["difference"] > 0 else "") + value + (f"{SPACE}points" if share else "")
    p_text = "" if p is None else f"p{SPACE}{'' if p <= LEAST_P else f'={SPACE}'}{format_p(p)}"
    return signed, format_interval(row["low"], row["high"], share), p_text


def verdict(row: Row) -> str:
    """Whether a paired difference is significant, by its p, or by its interval if there is no p."""
    p = row.get("p")
    significant = p < SIGNIFICANT if p is not None else row["low"] > 0 or row["high"] < 0
    return SAME if not significant or not row["difference"] else HIGHER if row["difference"] > 0 else LOWER


def beats_baseline(kind: Row, group: str, name: str) -> bool | None:
    """Whether a model's main measure is higher than the best baseline's; None if either is missing."""
    baseline, estimate = (kind.get("baseline") or {}).get(group), kind["values"][group].get(name)
    if not baseline or not estimate or estimate["value"] is None:
        return None
    return bool(estimate["value"] > baseline["value"])
