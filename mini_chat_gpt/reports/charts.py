"""Charts for report.html as inline SVG: bars with whiskers, loss curves, histograms.

Models differ in position, name and sign, not only in color, and the colors are safe for color-blind readers. Each bar is an SVG of
its own with coordinates in percent, so that the text next to it has the same size on a phone and on a desktop.
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
"""One sign for each model, in order."""
SPACE = "\u00a0"
_MAX_POINTS = 400  # of a line
_MAX_BINS = 16


# Numbers


def number(value: float) -> str:
    """The value with at least three digits and a typographic minus sign."""
    if not math.isfinite(value):
        return str(value)
    text = f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def format_value(value: float | None, share: bool) -> str:
    """The value as text, a share in percent, None as a dash."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}{SPACE}%".replace("-", "−") if share and math.isfinite(value) else number(value)


def format_interval(low: float | None, high: float | None, share: bool) -> str:
    """ "LOW to HIGH", shares without the percent sign. "" for no interval, and for one without width: all scores are equal."""
    if low is None or high is None or high - low < 1e-9:
        return ""
    return " to ".join(format_value(value, share).removesuffix(f"{SPACE}%") for value in (low, high))


def ticks(low: float, high: float, max_steps: int = 5) -> list[float]:
    """At most `max_steps` + 1 round numbers between low and high, in steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / max_steps))
    step = next(digit * power for digit in (1, 2, 5, 10, 20) if (high - low) / (digit * power) <= max_steps + 1e-9)
    multiples = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [float(f"{multiple * step:.10g}") for multiple in multiples]


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks for a logarithmic axis: 1, 2 and 5 times powers of ten, or evenly spaced numbers if these are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    candidates = (float(f"{digit * 10.0**power:.10g}") for power in powers for digit in (1, 2, 5))
    values = [value for value in candidates if low <= value <= high]
    if len(values) < 3:
        return [value for value in ticks(low, high) if value > 0]
    return values[:: -(-len(values) // 7)]


@dataclass(frozen=True)
class Scale:
    """The range of values of a group of bars."""

    low: float
    high: float
    share: bool

    @staticmethod
    def of(values: Sequence[float], share: bool) -> Scale:
        """0 to 1 for shares; otherwise from 0 to the next round number beyond the values."""
        low, high = min([0.0, *values]), max([0.0, *values])
        if share:
            return Scale(min(0.0, low), max(1.0, high), True)
        if low == high:
            return Scale(0.0, 1.0, False)
        marks = ticks(low, high, 4)
        step = marks[1] - marks[0] if len(marks) > 1 else high - low
        return Scale(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, False)

    def at(self, value: float) -> float:
        """The horizontal position of a value, in percent."""
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)

    def ticks(self) -> list[float]:
        return [0, 0.25, 0.5, 0.75, 1] if self.share and self.high == 1 else ticks(self.low, self.high, 4)


# Bars

_ROW = 34  # height of a bar's row


def _line(x: float, y1: float, y2: float, css_class: str) -> str:
    return f'<line class="{css_class}" x1="{x}%" x2="{x}%" y1="{y1}" y2="{y2}"/>'


def _whisker(scale: Scale, estimate: Mapping[str, Any], css_class: str) -> str:
    middle = _ROW / 2
    low, high = (scale.at(estimate[end]) for end in ("low", "high"))
    across = f'<line class="{css_class}" x1="{low}%" x2="{high}%" y1="{middle}" y2="{middle}"/>'
    return across + _line(low, middle - 4, middle + 4, css_class) + _line(high, middle - 4, middle + 4, css_class)


def bar(
    scale: Scale, estimate: Mapping[str, Any] | None, model: int, baseline: tuple[float, str] | None, tip: str
) -> str:
    """A model's bar with its interval. `estimate` has "value" and perhaps "low", "high"; `baseline` is (value, tooltip)."""
    parts = [_line(scale.at(tick), 0, _ROW, "grid") for tick in scale.ticks()]
    if estimate is not None:
        start, end = sorted(scale.at(value) for value in (0.0, estimate["value"]))
        parts.append(
            f'<rect class="m{model}" x="{start}%" y="{_ROW // 2 - 10}" width="{round(end - start, 2)}%" height="20"/>'
        )
        if format_interval(estimate.get("low"), estimate.get("high"), scale.share):
            parts += [_whisker(scale, estimate, "halo"), _whisker(scale, estimate, "whisker")]
    parts.append(_line(scale.at(0), 0, _ROW, "axis"))
    if baseline is not None:
        parts.append(_baseline(scale, *baseline))
    return f'<svg class="bar" height="{_ROW}" role="img" aria-label="{escaped(tip)}"><title>{escaped(tip)}</title>{"".join(parts)}</svg>'


def _baseline(scale: Scale, value: float, tip: str) -> str:
    x = scale.at(value)
    return f"<g><title>{escaped(tip)}</title>{_line(x, 0, _ROW, 'hit')}{_line(x, 0, _ROW, 'baseline')}</g>"


def baseline_row(scale: Scale, value: float, tip: str) -> str:
    """The row that explains the dashed line."""
    return (
        f'<svg class="bar" height="{_ROW}" role="img" aria-label="{escaped(tip)}">{_baseline(scale, value, tip)}</svg>'
    )


def bar_axis(scale: Scale) -> str:
    """The numbers below the bars."""
    parts = []
    for tick in scale.ticks():
        x = scale.at(tick)
        label = f"{100 * tick:.0f}{'%' if tick == scale.ticks()[-1] else ''}" if scale.share else number(tick)
        parts.append(f'<text x="{x}%" y="12">{label}</text>')
    return f'<svg class="bar" height="16" aria-hidden="true">{"".join(parts)}</svg>'


# Loss curves

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 260, 46, 14, 16, 38

Points = Sequence[Sequence[float]]  # (step, loss)


@dataclass(frozen=True)
class _Plane:
    """Maps (step, loss) to pixels. The loss axis is logarithmic if the losses span more than a factor of 3."""

    first: float
    last: float
    low: float
    high: float

    @staticmethod
    def of(points: Points) -> _Plane:
        steps, losses = zip(*points, strict=True)
        return _Plane(*_widened(min(steps), max(steps)), *_widened(min(losses), max(losses)))

    @property
    def is_log(self) -> bool:
        return self.low > 0 and self.high / self.low > 3

    def at(self, step: float, loss: float) -> tuple[float, float]:
        up = (loss - self.low) / (self.high - self.low)
        if self.is_log:
            up = math.log(loss / self.low) / math.log(self.high / self.low)
        x = _LEFT + (step - self.first) / (self.last - self.first) * (_WIDTH - _LEFT - _RIGHT)
        return round(x, 1), round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1)

    def axes(self) -> list[str]:
        """Grid lines, axes and their labels."""
        parts, floor = [], _HEIGHT - _BOTTOM
        for tick in log_ticks(self.low, self.high) if self.is_log else ticks(self.low, self.high):
            y = self.at(self.first, tick)[1]
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{number(tick)}</text>')
        for tick in ticks(self.first, self.last):
            x = self.at(tick, self.low)[0]
            parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{floor}" y2="{floor + 4}"/>')
            parts.append(f'<text x="{x}" y="{floor + 17}">{number(tick)}</text>')
        parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{floor}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">step</text>')
        scale = ", log scale" if self.is_log else ""
        return [*parts, f'<text x="4" y="{_HEIGHT - 4}" text-anchor="start">loss{scale}</text>']


def loss_curves(train: Points, val: Points, model: int, name: str) -> str:
    """Training and validation losses of a run, each point (step, loss). "" if there are none."""
    train, val = ([(x, y) for x, y in points if math.isfinite(y)] for points in (train, val))
    if not train and not val:
        return ""
    plane = _Plane.of([*train, *val])
    parts = plane.axes()
    smooth = list(smoothed({int(x): y for x, y in train}).items())
    every = -(-len(train) // _MAX_POINTS) or 1
    parts.append(_path([plane.at(*point) for point in train[::every]], f"thin m{model}"))
    parts.append(_path([plane.at(*point) for point in smooth[::every]], f"thick m{model}"))
    parts.append(_path([plane.at(*point) for point in val], "held"))
    for step, loss in val:
        x, y = plane.at(step, loss)
        tip = f"<title>step {number(step)}: validation loss {number(loss)}</title>"
        parts.append(f'<circle class="held" cx="{x}" cy="{y}" r="4">{tip}</circle>')
    tip = escaped(f"Losses of {name} by step")
    return f'<svg class="losses" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{tip}">{"".join(parts)}</svg>'


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, made wider if it is a single point."""
    return (low, high) if high > low else (low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1))


def _path(points: Sequence[tuple[float, float]], css_class: str) -> str:
    return f'<path class="{css_class}" d="M{"L".join(f"{x} {y}" for x, y in points)}"/>' if len(points) > 1 else ""


# Histograms


def bins(values: Sequence[float]) -> list[float]:
    """Edges of at most 16 bins of a round width that cover all values."""
    low, high = min(values), max(values)
    widths = (digit * 10.0**power for power in range(16) for digit in (1, 2, 5))
    width = next(width for width in widths if high // width - low // width < _MAX_BINS)
    first = low // width * width
    return [first + n * width for n in range(int(high // width - low // width) + 2)]


def shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    """The share of the values in each bin."""
    width, counts = edges[1] - edges[0], [0] * (len(edges) - 1)
    for value in values:
        counts[min(len(counts) - 1, int((value - edges[0]) // width))] += 1
    return [count / len(values) for count in counts]


def histogram(
    values: Sequence[float], reference: Sequence[float], edges: Sequence[float], max_share: float, model: int, tip: str
) -> str:
    """The distribution of `values` as bars and that of `reference` as an outline. A share of `max_share` has full height."""
    full_width, floor, top, left = 330, 128, 14, 4
    bin_width = (full_width - 2 * left) / (len(edges) - 1)

    def x_of(value: float) -> float:
        return left + (value - edges[0]) / (edges[1] - edges[0]) * bin_width

    def height(share: float) -> float:
        return round((floor - top) * share / max_share, 1)

    parts = []
    for place, share in enumerate(shares(values, edges)):
        x, tall = left + place * bin_width, height(share)
        bin_tip = f"{number(edges[place])} to less than {number(edges[place + 1])}: {format_value(share, True)}"
        parts.append(
            f'<rect class="m{model}" x="{x + 0.8:.1f}" y="{floor - tall}" width="{bin_width - 1.6:.1f}" height="{tall}">'
            f"<title>{bin_tip}</title></rect>"
        )
    if reference:
        heights = enumerate(shares(reference, edges), start=1)
        steps = "".join(f"V{floor - height(share)}H{left + place * bin_width:.1f}" for place, share in heights)
        parts.append(f'<path class="outline" d="M{left} {floor}{steps}V{floor}"/>')
    parts.append(f'<line class="axis" x1="{left}" x2="{full_width - left}" y1="{floor}" y2="{floor}"/>')
    for tick in ticks(edges[0], edges[-1], 4):
        x = round(x_of(tick), 1)
        anchor = "start" if x < 20 else "end" if x > full_width - 20 else "middle"
        parts.append(f'<text x="{x}" y="{floor + 16}" text-anchor="{anchor}">{number(tick)}</text>')
    parts.append(_median_mark(x_of(median(values)), floor, number(median(values)), full_width))
    return f'<svg class="plot" viewBox="0 0 {full_width} {floor + 20}" role="img" aria-label="{escaped(tip)}">{"".join(parts)}</svg>'


def _median_mark(x: float, floor: float, label: str, full_width: float) -> str:
    """A vertical line at the median with its label on the wider side."""
    x = round(x, 1)
    anchor, text_x = ("end", x - 4) if x > full_width / 2 else ("start", x + 4)
    return (
        f'<line class="median" x1="{x}" x2="{x}" y1="2" y2="{floor}"/>'
        f'<text class="median" x="{text_x}" y="10" text-anchor="{anchor}">median {label}</text>'
    )
