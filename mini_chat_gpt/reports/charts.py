"""The charts of report.html as numbers: axes, bars with intervals, loss curves, histograms. The template charts.html draws them.

Bars have coordinates in percent, the other charts in pixels of a fixed size that the browser scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mini_chat_gpt.reports.values import format_value, number

MAX_POINTS = 400  # of a line
MAX_BINS = 16


# Axes


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


# Bars


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

    def ticks(self) -> list[tuple[float, str]]:
        """(position, label)"""
        values = [0, 0.25, 0.5, 0.75, 1] if self.share and self.high == 1 else ticks(self.low, self.high, 4)
        labels = [f"{100 * value:.0f}" if self.share else number(value) for value in values]
        labels[-1] += "%" if self.share else ""
        return [(self.at(value), label) for value, label in zip(values, labels, strict=True)]


# Loss curves

Points = Sequence[Sequence[float]]  # (step, loss)


@dataclass(frozen=True)
class Plane:
    """Maps (step, loss) to pixels. The loss axis is logarithmic if the losses span more than a factor of 3."""

    first: float
    last: float
    low: float
    high: float
    left, right, top, floor, width, height = 46, 446, 16, 222, 460, 260  # pixels: the axes, and the size of the chart

    @staticmethod
    def of(points: Points) -> Plane:
        steps, losses = zip(*points, strict=True)
        return Plane(*_widened(min(steps), max(steps)), *_widened(min(losses), max(losses)))

    @property
    def is_log(self) -> bool:
        return self.low > 0 and self.high / self.low > 3

    def at(self, step: float, loss: float) -> tuple[float, float]:
        """(x, y)"""
        up = (loss - self.low) / (self.high - self.low)
        if self.is_log:
            up = (math.log(loss) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        x = self.left + (step - self.first) / (self.last - self.first) * (self.right - self.left)
        return round(x, 1), round(self.floor - up * (self.floor - self.top), 1)

    def step_ticks(self) -> list[tuple[float, str]]:
        """(x, label)"""
        return [(self.at(tick, self.low)[0], number(tick)) for tick in ticks(self.first, self.last)]

    def loss_ticks(self) -> list[tuple[float, str]]:
        """(y, label)"""
        values = log_ticks(self.low, self.high) if self.is_log else ticks(self.low, self.high)
        return [(self.at(self.first, tick)[1], number(tick)) for tick in values]

    def path(self, points: Points) -> str:
        """A line as an SVG path; "" for fewer than two points. Of many points, only some are drawn."""
        places = [f"{x} {y}" for x, y in (self.at(*point) for point in points[:: len(points) // MAX_POINTS + 1])]
        return f"M{'L'.join(places)}" if len(places) > 1 else ""


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, made wider if it is a single point."""
    return (low, high) if high > low else (low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1))


# Histograms


def bins(values: Sequence[float]) -> list[float]:
    """Edges of at most 16 bins of a round width that cover all values."""
    low, high = min(values), max(values)
    widths = (digit * 10.0**power for power in range(16) for digit in (1, 2, 5))
    width = next(width for width in widths if high // width - low // width < MAX_BINS)
    first = low // width * width
    return [first + n * width for n in range(int(high // width - low // width) + 2)]


def shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    """The share of the values in each bin."""
    return [n / len(values) for n in np.histogram(values, edges)[0].tolist()] if len(values) else []


@dataclass(frozen=True)
class Histogram:
    """The distribution of values as bars, and that of reference values as an outline. A share of `max_share` has full height."""

    values: Sequence[float]
    reference: Sequence[float]
    edges: Sequence[float]
    max_share: float
    left, right, top, floor, width, height = 4, 326, 14, 128, 330, 148  # pixels: the bars, and the size of the chart

    def x(self, value: float) -> float:
        along = (value - self.edges[0]) / (self.edges[-1] - self.edges[0])
        return round(self.left + along * (self.right - self.left), 1)

    def y(self, share: float) -> float:
        return round(self.floor - (self.floor - self.top) * share / self.max_share, 1)

    def bars(self) -> list[tuple[float, float, float, str]]:
        """(left, right, top, tooltip)"""
        bins = zip(self.edges, self.edges[1:], shares(self.values, self.edges), strict=False)
        return [
            (
                self.x(low),
                self.x(high),
                self.y(share),
                f"{number(low)} to less than {number(high)}: {format_value(share, True)}",
            )
            for low, high, share in bins
        ]

    def outline(self) -> str:
        """An SVG path; "" without a reference."""
        bins = zip(self.edges[1:], shares(self.reference, self.edges), strict=False)
        steps = "".join(f"V{self.y(share)}H{self.x(high)}" for high, share in bins)
        return f"M{self.left} {self.floor}{steps}V{self.floor}" if steps else ""

    def ticks(self) -> list[tuple[float, str]]:
        """(x, label)"""
        return [(self.x(tick), number(tick)) for tick in ticks(self.edges[0], self.edges[-1], 4)]
