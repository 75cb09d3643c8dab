"""Plot the losses of a run from its metrics.jsonl into `loss.png`.

Left: the training loss, raw and smoothed, and the held-out loss. Right, if there are several kinds of tasks: the held-out
loss of each kind. Line styles and markers make the plot readable without colors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from mini_chat_gpt.common.files import replacing
from mini_chat_gpt.training.monitor import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT = "loss.png"
Points = dict[int, float]  # step -> value

_MIN_LOSS = 1e-5  # a loss of zero has no place on a logarithmic axis
_MARKERS = "osv^Dd<>pPX*hH"
_DASHES = ("-", "--", "-.", ":")


@dataclass
class Curves:
    """The losses in metrics.jsonl by optimizer step; finite values only."""

    train: Points = field(default_factory=dict)
    held_out: Points = field(default_factory=dict)
    by_kind: dict[str, Points] = field(default_factory=dict)
    learning_rate: Points = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        return max([*self.train, *self.held_out], default=0)


def draw_losses(folder: Path) -> Path | None:
    """Draw `folder`/loss.png and return its path; None if the run has no losses yet. An old plot is replaced atomically.

    Raises OSError if the file cannot be written, and whatever matplotlib raises.
    """
    curves = read_curves(folder)
    if not curves.train and not curves.held_out:
        return None
    figure = draw_figure({folder.resolve().name: curves})
    with replacing(folder / PLOT) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return folder / PLOT


def read_curves(folder: Path) -> Curves:
    """The curves in a run's metrics.jsonl. The prefix of the names ("sft/", "pretrain/") is ignored."""
    curves = Curves()
    series = {"train_loss": curves.train, "val_loss": curves.held_out, "lr": curves.learning_rate}
    for metrics in read_metrics(folder):
        for name, value in metrics.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            name, _, kind = name.partition("/")[2].partition("/")
            if name == "val_loss" and kind:
                curves.by_kind.setdefault(kind, {})[int(metrics["step"])] = value
            elif name in series:
                series[name][int(metrics["step"])] = value
    return curves


def smoothed(points: Points) -> Points:
    """Centered moving average over a fifteenth of the points, without the upper and lower quarter of each window.

    Dropping the quarters removes single peaks and keeps jumps steep, for example between two stages of the curriculum.
    """
    values = list(points.values())
    reach = math.ceil(len(values) / 30)
    means = {}
    for index, step in enumerate(points):
        window = sorted(values[max(0, index - reach) : index + reach + 1])
        quarter = len(window) // 4
        means[step] = fmean(window[quarter : len(window) - quarter])
    return means


def draw_figure(runs: Mapping[str, Curves]) -> Figure:
    """Runs by title, side by side: a panel with the losses of each, and a panel with the kinds of each that has any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(title, _draw_loss, curves) for title, curves in runs.items()]
    panels += [(f"{title}, by kind", _draw_kinds, curves) for title, curves in runs.items() if curves.by_kind]
    figure = Figure(figsize=(1 + 5 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)  # does not change the global state of matplotlib
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
    for axes, (title, draw, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, curves)
        axes.set_title(title, fontsize=11, pad=40)  # above the legend
        axes.set(xlabel="optimizer step", xlim=(0, 1.02 * curves.last_step))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.88", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def _draw_loss(axes: Axes, curves: Curves) -> None:
    """Training and held-out loss, and the learning rate as a gray area behind them."""
    _plot(axes, curves.train, color="0.7", linewidth=0.8, label="training")
    _plot(axes, smoothed(curves.train), color="0.25", linewidth=1.8, label="smoothed")
    held_out = {"linestyle": "--", "marker": "o", "markersize": 6, "markerfacecolor": "white"}
    _plot(axes, curves.held_out, color="black", label="held out", **held_out)
    peak = max(curves.learning_rate.values(), default=0.0)
    if peak > 0 and len(curves.learning_rate) > 1:
        behind = axes.twinx()
        behind.fill_between(list(curves.learning_rate), list(curves.learning_rate.values()), color="0.93", linewidth=0)
        behind.set_ylim(0, 1.7 * peak)
        behind.set_axis_off()
        axes.fill_between([], [], color="0.9", linewidth=0, label=f"learning rate (≤ {peak:.2g})")
        axes.set_zorder(behind.get_zorder() + 1)
        axes.patch.set_visible(False)
    axes.set(ylabel="loss, nats per token", ylim=_loss_limits(curves))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9, frameon=False, borderaxespad=0.2)


def _loss_limits(curves: Curves) -> tuple[float, float]:
    """Limits of the y axis. The steep fall at the start is cut off, because it would flatten the rest."""
    late = [loss for step, loss in curves.train.items() if step > 0.03 * curves.last_step]
    shown = (late or list(curves.train.values())) + list(curves.held_out.values())
    low, high = min(shown), max(shown)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.35 * high else low - margin), high + margin


def _draw_kinds(axes: Axes, curves: Curves) -> None:
    """Held-out loss by kind. The legend next to the axes lists the kinds in the order of their last values."""
    import matplotlib
    from matplotlib.ticker import LogLocator, NullFormatter

    kinds = {
        kind: {step: max(loss, _MIN_LOSS) for step, loss in points.items()} for kind, points in curves.by_kind.items()
    }
    by_last_value = sorted(kinds.items(), key=lambda item: -list(item[1].values())[-1])
    colors = matplotlib.colormaps["viridis"]
    for number, (kind, points) in enumerate(by_last_value):
        _plot(
            axes,
            points,
            label=kind.replace("_", " "),
            color=colors(0.85 * number / max(1, len(kinds) - 1)),
            linestyle=_DASHES[number % len(_DASHES)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=1.3,
        )
    losses = [loss for points in kinds.values() for loss in points.values()]
    if max(losses) > 10 * min(losses):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("held-out loss by kind, nats per token")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9, frameon=False, handlelength=3)


def _plot(axes: Axes, points: Points, **style: object) -> None:
    """Plot a line; a single point gets a marker, because a line through it would be invisible."""
    if points:
        if len(points) == 1:
            style.setdefault("marker", ".")
        axes.plot(list(points), list(points.values()), **style)  # type: ignore[arg-type]
