"""The pictures of report.html, as SVG within the page: bars with whiskers, loss curves, histograms.

Models are told apart by place, name and sign, and only then by colour (which the colour-blind can tell too). A bar is a picture of
its own, measured in percent of the room there is, so that the words beside it are as large on a phone as on a desk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mini_chat_gpt.common.page import escaped
from mini_chat_gpt.training.loss_curves import smoothed

SIGNS = "●■▲◆"
"""One for each model, in order."""
SPACE = "\u00a0"
_MOST_POINTS = 400  # of a thin line
_MOST_BINS = 16


# Numbers


def number(value: float) -> str:
    """Three digits or more, with a true minus."""
    if not math.isfinite(value):
        return str(value)
    written = f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"
    return written.replace("-", "−")


def shown(value: float | None, share: bool) -> str:
    """A share in percent; nothing as a dash."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}{SPACE}%".replace("-", "−") if share and math.isfinite(value) else number(value)


def span(low: float | None, high: float | None, share: bool) -> str:
    """An interval in words; a share without its sign. "" for none, and for one without width: of items all alike it says nothing."""
    if low is None or high is None or high - low < 1e-9:
        return ""
    return " to ".join(shown(value, share).removesuffix(f"{SPACE}%") for value in (low, high))


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between low and high, at most as many as that and one, in steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(digit * power for digit in (1, 2, 5, 10, 20) if (high - low) / (digit * power) <= most + 1e-9)
    places = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [float(f"{place * step:.10g}") for place in places]


def log_ticks(low: float, high: float) -> list[float]:
    """The same for an axis of logarithms: 1, 2 and 5 times powers of ten, or evenly spaced ones if those are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    found = [float(f"{value:.10g}") for value in found if low <= value <= high]
    if len(found) < 3:
        return [value for value in ticks(low, high) if value > 0]
    return found[:: -(-len(found) // 7)]


@dataclass(frozen=True)
class Scale:
    """What a row of bars spans."""

    low: float
    high: float
    share: bool

    @staticmethod
    def of(values: Sequence[float], share: bool) -> Scale:
        """From nothing to one for shares, else to the next round number beyond the values."""
        low, high = min([0.0, *values]), max([0.0, *values])
        if share:
            return Scale(min(0.0, low), max(1.0, high), True)
        if low == high:
            return Scale(0.0, 1.0, False)
        marks = ticks(low, high, 4)
        step = marks[1] - marks[0] if len(marks) > 1 else high - low
        return Scale(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, False)

    def at(self, value: float) -> float:
        """How far to the right, in percent."""
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)

    def ticks(self) -> list[float]:
        return [0, 0.25, 0.5, 0.75, 1] if self.share and self.high == 1 else ticks(self.low, self.high, 4)


# Bars

_ROW = 34  # its height


def _line(x: float, y1: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x}%" x2="{x}%" y1="{y1}" y2="{y2}"/>'


def _whisker(scale: Scale, found: Mapping[str, Any], kind: str) -> str:
    middle = _ROW / 2
    low, high = (scale.at(found[end]) for end in ("low", "high"))
    across = f'<line class="{kind}" x1="{low}%" x2="{high}%" y1="{middle}" y2="{middle}"/>'
    return across + _line(low, middle - 4, middle + 4, kind) + _line(high, middle - 4, middle + 4, kind)


def bar(scale: Scale, found: Mapping[str, Any] | None, model: int, trivial: tuple[float, str] | None, tip: str) -> str:
    """A model's bar with its interval; `trivial` is a value and what a line is to say of it."""
    parts = [_line(scale.at(tick), 0, _ROW, "grid") for tick in scale.ticks()]
    if found is not None:
        start, end = sorted(scale.at(value) for value in (0.0, found["value"]))
        parts.append(
            f'<rect class="m{model}" x="{start}%" y="{_ROW // 2 - 10}" width="{round(end - start, 2)}%" height="20"/>'
        )
        if span(found.get("low"), found.get("high"), scale.share):
            parts += [_whisker(scale, found, "halo"), _whisker(scale, found, "whisker")]
    parts.append(_line(scale.at(0), 0, _ROW, "axis"))
    if trivial is not None:
        parts.append(_trivial(scale, *trivial))
    return f'<svg class="bar" height="{_ROW}" role="img" aria-label="{escaped(tip)}"><title>{escaped(tip)}</title>{"".join(parts)}</svg>'


def _trivial(scale: Scale, value: float, tip: str) -> str:
    x = scale.at(value)
    return f"<g><title>{escaped(tip)}</title>{_line(x, 0, _ROW, 'hit')}{_line(x, 0, _ROW, 'trivial')}</g>"


def trivial_bar(scale: Scale, value: float, tip: str) -> str:
    """The row that names the line."""
    return (
        f'<svg class="bar" height="{_ROW}" role="img" aria-label="{escaped(tip)}">{_trivial(scale, value, tip)}</svg>'
    )


def bar_axis(scale: Scale) -> str:
    """The numbers below the bars."""
    parts = []
    for tick in scale.ticks():
        x = scale.at(tick)
        words = f"{100 * tick:.0f}{'%' if tick == scale.ticks()[-1] else ''}" if scale.share else number(tick)
        parts.append(f'<text x="{x}%" y="12">{words}</text>')
    return f'<svg class="bar" height="16" aria-hidden="true">{"".join(parts)}</svg>'


# Loss curves

_WIDE, _TALL, _LEFT, _RIGHT, _TOP, _BELOW = 460, 260, 46, 14, 16, 38


def loss_curves(train: Sequence[Sequence[float]], held_out: Sequence[Sequence[float]], model: int, name: str) -> str:
    """The losses of a run over its steps, each [step, loss]; "" if there are none. The axis is one of logarithms for a wide range."""
    train, held_out = ([(x, y) for x, y in points if math.isfinite(y)] for points in (train, held_out))
    if not train and not held_out:
        return ""
    smooth = list(smoothed({int(x): y for x, y in train}).items())
    steps, losses = [x for x, _ in [*train, *held_out]], [y for _, y in [*train, *held_out]]
    (first, last), (low, high) = (_widened(min(values), max(values)) for values in (steps, losses))
    by_log = low > 0 and high / low > 3

    def place(x: float, y: float) -> tuple[float, float]:
        up = math.log(y / low) / math.log(high / low) if by_log else (y - low) / (high - low)
        right = (x - first) / (last - first)
        return round(_LEFT + right * (_WIDE - _LEFT - _RIGHT), 1), round(
            _TALL - _BELOW - up * (_TALL - _TOP - _BELOW), 1
        )

    parts = []
    for tick in log_ticks(low, high) if by_log else ticks(low, high):
        y = place(first, tick)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{number(tick)}</text>')
    for tick in ticks(first, last):
        x = place(tick, low)[0]
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{_TALL - _BELOW}" y2="{_TALL - _BELOW + 4}"/>')
        parts.append(f'<text x="{x}" y="{_TALL - _BELOW + 17}">{number(tick)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{_TALL - _BELOW}H{_WIDE - _RIGHT}"/>')
    parts.append(f'<text x="{_WIDE - _RIGHT}" y="{_TALL - 4}" text-anchor="end">step</text>')
    parts.append(f'<text x="4" y="{_TALL - 4}" text-anchor="start">loss{", log scale" if by_log else ""}</text>')
    every = -(-len(train) // _MOST_POINTS) or 1
    parts.append(_path([place(*point) for point in train[::every]], f"thin m{model}"))
    parts.append(_path([place(*point) for point in smooth[::every]], f"thick m{model}"))
    parts.append(_path([place(*point) for point in held_out], "held"))
    for step, loss in held_out:
        x, y = place(step, loss)
        tip = f"<title>step {number(step)}: validation loss {number(loss)}</title>"
        parts.append(f'<circle class="held" cx="{x}" cy="{y}" r="4">{tip}</circle>')
    about = f"Losses of {name} over its steps"
    return f'<svg class="losses" viewBox="0 0 {_WIDE} {_TALL}" role="img" aria-label="{escaped(about)}">{"".join(parts)}</svg>'


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1))


def _path(points: Sequence[tuple[float, float]], kind: str) -> str:
    return f'<path class="{kind}" d="M{"L".join(f"{x} {y}" for x, y in points)}"/>' if len(points) > 1 else ""


# Histograms


def bins(values: Sequence[float]) -> list[float]:
    """The edges of bins of a round width that hold all the values."""
    low, high = min(values), max(values)
    widths = (digit * 10.0**power for power in range(16) for digit in (1, 2, 5))
    width = next(width for width in widths if high // width - low // width < _MOST_BINS)
    first = low // width * width
    return [first + n * width for n in range(int(high // width - low // width) + 2)]


def shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    """How many of the values are in each bin."""
    width, counts = edges[1] - edges[0], [0] * (len(edges) - 1)
    for value in values:
        counts[min(len(counts) - 1, int((value - edges[0]) // width))] += 1
    return [count / len(values) for count in counts]


def histogram(
    values: Sequence[float], reference: Sequence[float], edges: Sequence[float], most: float, model: int, about: str
) -> str:
    """How the lengths of a model's replies are spread, and as an outline those of the references; `most`: the tallest bar's share."""
    wide, floor, top, left = 330, 128, 14, 4
    width = (wide - 2 * left) / (len(edges) - 1)

    def height(share: float) -> float:
        return round((floor - top) * share / most, 1)

    parts, outline = [], [f"M{left} {floor}"]
    pairs = zip(shares(values, edges), shares(reference, edges) if reference else [], strict=False)
    for place, share in enumerate(shares(values, edges)):
        x, tall = left + place * width, height(share)
        tip = f"{number(edges[place])} to less than {number(edges[place + 1])}: {shown(share, True)}"
        parts.append(
            f'<rect class="m{model}" x="{x + 0.8:.1f}" y="{floor - tall}" width="{width - 1.6:.1f}" height="{tall}">'
            f"<title>{tip}</title></rect>"
        )
    for place, (_, share) in enumerate(pairs):
        outline.append(f"V{floor - height(share)}H{left + (place + 1) * width:.1f}")
    if reference:
        parts.append(f'<path class="outline" d="{"".join(outline)}V{floor}"/>')
    parts.append(f'<line class="axis" x1="{left}" x2="{wide - left}" y1="{floor}" y2="{floor}"/>')
    for tick in ticks(edges[0], edges[-1], 4):
        x = round(left + (tick - edges[0]) / (edges[1] - edges[0]) * width, 1)
        anchor = "start" if x < 20 else "end" if x > wide - 20 else "middle"
        parts.append(f'<text x="{x}" y="{floor + 16}" text-anchor="{anchor}">{number(tick)}</text>')
    parts.append(
        _middle(left + (median(values) - edges[0]) / (edges[1] - edges[0]) * width, floor, number(median(values)), wide)
    )
    return f'<svg class="plot" viewBox="0 0 {wide} {floor + 20}" role="img" aria-label="{escaped(about)}">{"".join(parts)}</svg>'


def _middle(x: float, floor: float, words: str, wide: float) -> str:
    """A mark at the median."""
    x = round(x, 1)
    side, at = ("end", x - 4) if x > wide / 2 else ("start", x + 4)
    return (
        f'<line class="median" x1="{x}" x2="{x}" y1="2" y2="{floor}"/>'
        f'<text class="median" x="{at}" y="10" text-anchor="{side}">median {words}</text>'
    )
