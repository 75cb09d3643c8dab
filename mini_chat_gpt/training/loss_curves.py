"""The losses of a run as a picture: `loss.png` in its folder, drawn from its metrics.jsonl.

On the left the loss that was trained on, as it came and smoothed, and the held-out loss; on the right, where there are
several kinds of tasks, the held-out loss of each. Readable without colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from mini_chat_gpt.training.monitor import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "loss.png"
Points = dict[int, float]  # step -> value

_LEAST = 1e-5  # what is shown of a loss that is nothing, which the logarithmic axis has no place for
_MARKERS = "osv^Dd<>pPX*hH"
_DASHES = ("-", "--", "-.", ":")


@dataclass
class Curves:
    """What metrics.jsonl says of a run's losses, by optimizer step; finite values only."""

    train: Points = field(default_factory=dict)
    held_out: Points = field(default_factory=dict)
    by_kind: dict[str, Points] = field(default_factory=dict)
    learning_rate: Points = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        return max([*self.train, *self.held_out], default=0)


def draw_losses(folder: Path) -> Path | None:
    """Draw `folder`/loss.png anew and return its path; None where the run has no losses yet.

    Broken lines are passed over. Raises OSError where the disk refuses, ImportError without matplotlib, or whatever
    matplotlib raises: a caller that trains should say so in a sentence and go on. An old picture stays until the new
    one is whole.
    """
    curves = read_curves(folder)
    if not curves.train and not curves.held_out:
        return None
    figure = draw_figure({folder.resolve().name: curves})
    draft = folder / f".{PICTURE}.tmp"
    try:
        figure.savefig(draft, format="png", dpi=150)
        draft.replace(folder / PICTURE)
    finally:
        draft.unlink(missing_ok=True)
    return folder / PICTURE


def draw_figure(runs: Mapping[str, Curves]) -> Figure:
    """Runs side by side under their titles: each its losses and, where there are any, its kinds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(title, draw_loss, curves) for title, curves in runs.items()]
    panels += [(f"{title}, by kind", draw_kinds, curves) for title, curves in runs.items() if curves.by_kind]
    figure = Figure(figsize=(1 + 5 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)  # draws into memory, whatever else in this process uses matplotlib for
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
    for axes, (title, draw, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, curves)
        axes.set_title(title, fontsize=11, pad=40)  # above the legend
    return figure


def read_curves(folder: Path) -> Curves:
    """The curves in a run's metrics.jsonl, whatever the part of its names before the slash ("sft/", "pretrain/")."""
    curves = Curves()
    singles = {"train_loss": curves.train, "val_loss": curves.held_out, "lr": curves.learning_rate}
    for row in read_metrics(folder):
        for name, value in row.items():
            _, _, name = name.partition("/")
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            name, _, kind = name.partition("/")
            if name == "val_loss" and kind:
                curves.by_kind.setdefault(kind, {})[int(row["step"])] = value
            elif name in singles:
                singles[name][int(row["step"])] = value
    return curves


def smoothed(points: Points) -> Points:
    """For each point the mean of those around it, a thirtieth of all to either side, without their upper and lower quarter.

    The mean that a run records lags behind, as it knows no later points: in a picture that would look like a worse loss.
    Without the quarters single high points leave no trace, and a jump, as where a lesson of the curriculum ends, stays steep.
    """
    values = list(points.values())
    reach = math.ceil(len(values) / 30)
    means = {}
    for place, step in enumerate(points):
        window = sorted(values[max(0, place - reach) : place + reach + 1])
        quarter = len(window) // 4
        means[step] = fmean(window[quarter : len(window) - quarter])
    return means


def draw_loss(axes: Axes, curves: Curves) -> None:
    """Training and held-out loss; the learning rate faintly behind them."""
    _line(axes, curves.train, color="0.7", linewidth=0.8, label="training")
    _line(axes, smoothed(curves.train), color="0.25", linewidth=1.8, label="smoothed")
    held_out = {"linestyle": "--", "marker": "o", "markersize": 6, "markerfacecolor": "white"}
    _line(axes, curves.held_out, color="black", label="held out", **held_out)
    _draw_learning_rate(axes, curves.learning_rate)
    _label(axes, "loss, nats a token", curves)
    axes.set_ylim(*_limits(curves))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9, frameon=False, borderaxespad=0.2)


def _draw_learning_rate(axes: Axes, points: Points) -> None:
    """An area on an axis of its own, whose only mark is in the legend: how high it is at its highest."""
    peak = max(points.values(), default=0.0)
    if peak <= 0 or len(points) < 2:
        return
    behind = axes.twinx()
    behind.fill_between(list(points), list(points.values()), color="0.93", linewidth=0)
    behind.set_ylim(0, 1.7 * peak)
    behind.set_axis_off()
    axes.fill_between([], [], color="0.9", linewidth=0, label=f"learning rate (≤ {peak:.2g})")
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)


def _limits(curves: Curves) -> tuple[float, float]:
    """Of the y axis: all but the first steep fall, which would press the rest flat."""
    shown = [loss for step, loss in curves.train.items() if step > 0.03 * curves.last_step] or list(
        curves.train.values()
    )
    shown += curves.held_out.values()
    low, high = min(shown), max(shown)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.35 * high else low - margin), high + margin


def draw_kinds(axes: Axes, curves: Curves) -> None:
    """Held-out loss by kind, each with its name at the line's end."""
    import matplotlib
    from matplotlib.ticker import LogLocator, NullFormatter

    kinds = [
        (kind, {step: max(loss, _LEAST) for step, loss in points.items()}) for kind, points in curves.by_kind.items()
    ]
    kinds.sort(key=lambda item: -list(item[1].values())[-1])
    colours = matplotlib.colormaps["viridis"]
    for number, (_, points) in enumerate(kinds):
        _line(
            axes,
            points,
            color=colours(0.85 * number / max(1, len(kinds) - 1)),
            linestyle=_DASHES[number % len(_DASHES)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=1.3,
        )
    losses = [loss for _, points in kinds for loss in points.values()]
    if max(losses) > 10 * min(losses):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    _label(axes, "held-out loss by kind, nats a token", curves)
    ends = [(list(points.values())[-1], kind.replace("_", " "), max(points)) for kind, points in kinds]
    _name_ends(axes, ends)


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, int]]) -> None:
    """Write names at the lines' ends, moved apart where they would overlap."""
    heights = [axes.transLimits.transform(axes.transScale.transform((0, value)))[1] for value, _, _ in ends]
    for (value, name, step), height in zip(ends, _apart(heights, 0.055), strict=True):
        axes.annotate(
            name,
            xy=(step, value),
            xytext=(1.04, height),
            textcoords="axes fraction",
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5},
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights, given in falling order, moved as little as keeps neighbours a gap apart."""
    placed: list[list[float]] = []  # groups that touch: their heights as they should be
    for height in heights:
        placed.append([height])
        while len(placed) > 1 and _bottom(placed[-2], gap) - gap < _top(placed[-1], gap):
            placed[-2:] = [placed[-2] + placed[-1]]
    return [_top(group, gap) - gap * number for group in placed for number in range(len(group))]


def _top(group: list[float], gap: float) -> float:
    return sum(group) / len(group) + gap * (len(group) - 1) / 2


def _bottom(group: list[float], gap: float) -> float:
    return _top(group, gap) - gap * (len(group) - 1)


def _line(axes: Axes, points: Points, **style: object) -> None:
    """A line through the points; a point alone gets a mark, or it would not be seen."""
    if points:
        if len(points) == 1:
            style.setdefault("marker", ".")
        axes.plot(list(points), list(points.values()), **style)  # type: ignore[arg-type]


def _label(axes: Axes, what: str, curves: Curves) -> None:
    axes.set(xlabel="optimizer step", ylabel=what, xlim=(0, 1.02 * curves.last_step))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.88", linewidth=0.6)
    axes.set_axisbelow(True)
