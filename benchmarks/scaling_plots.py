"""The plots of scaling.py: time and memory against the changed quantity, on logarithmic axes, with a linear guide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GUIDE = "#33415c", "#b8bfcc"
COLORS = ("#2a6f97", "#e07a3f")
UNITS = {"seconds": (1.0, "s"), "bytes": (2.0**30, "GiB")}
AXES = {  # labels of the x axis
    "batch": "tokens per step (examples of 250)",
    "length": "tokens per example (4,096 per step)",
    "size": "weights in the blocks",
    "trained": "share of supervised tokens",
    "ranks": "processes or threads",
    "files": "size of the data file",
}


def draw(name: str, title: str, points: list[dict[str, Any]], folder: Path) -> Path:
    """Write scaling-NAME.svg with time on the left and memory on the right."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "scaling",
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.edgecolor": INK,
        }
    )
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.1), layout="constrained")
    what = "until the first record is read" if name == "files" else "of a step"
    panel(left, name, points, "seconds", f"time {what}")
    panel(right, name, points, "bytes", "peak memory")
    series = [one for one in dict.fromkeys(point.get("series") for point in points) if one]
    if series:
        left.legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"scaling-{name}.svg"
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return path


def panel(axes: Axes, name: str, points: list[dict[str, Any]], key: str, title: str) -> None:
    """Plot one cost with a line for each series, and a guide for proportional growth (for the time of ranks: inverse)."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    unit = UNITS[key][0]
    all_series = list(dict.fromkeys(point.get("series", "") for point in points))
    for color, series in zip(COLORS, all_series, strict=False):
        series_points = [point for point in points if point.get("series", "") == series]
        ys = [point[key] / unit for point in series_points]
        axes.plot([point["x"] for point in series_points], ys, "o-", color=color, ms=4.5, lw=1.6, label=series or None)
    costs = [point[key] / unit for point in points]
    middle = (min(costs) * max(costs)) ** 0.5
    reach = max(max(costs) / middle * 1.3, 2.5)  # the axis spans at least a factor of six
    axes.set_ylim(middle / reach, middle * reach)
    guide(axes, name, [point for point in points if point.get("series", "") == all_series[0]], key)
    axes.set_title(title, loc="left", color=INK)
    axes.set_xlabel(AXES[name], color=INK)
    axes.grid(True, which="major", color="#eceff4", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    ticks(axes, name, sorted({point["x"] for point in points}), key)


def guide(axes: Axes, name: str, points: list[dict[str, Any]], key: str) -> None:
    """A dashed line of linear growth through the last point (for length and ranks: the first)."""
    last, first = points[-1], points[0]
    power, text, start = 1, "proportional", last
    if name == "length":  # every step has the same number of tokens: linear is flat
        power, text, start = 0, "linear in the tokens", first
    elif name == "ranks":
        power, text, start = (-1, "perfect", first) if key == "seconds" else (1, "proportional", first)

    def y(x: float) -> float:
        return float(start[key] / UNITS[key][0] * (x / start["x"]) ** power)

    axes.plot([first["x"], last["x"]], [y(first["x"]), y(last["x"])], "--", color=GUIDE, lw=1.2, zorder=0)
    x = (first["x"] * last["x"]) ** 0.5
    lowest, highest = axes.get_ylim()
    if y(x) < lowest:  # it becomes visible further right
        x = (x * last["x"]) ** 0.5
    offset = 12 if name == "ranks" and key == "bytes" else -12
    if 1.2 * lowest < y(x) < highest:
        axes.annotate(text, (x, y(x)), xytext=(4, offset), textcoords="offset points", color="#8a93a5", fontsize=8)


def ticks(axes: Axes, name: str, xs: list[float], key: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.xaxis.set_major_locator(FixedLocator(xs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: label_of(name, x)))
    axes.xaxis.set_minor_locator(NullLocator())
    lowest, highest = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if highest / lowest < 300 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} {UNITS[key][1]}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(colors=INK, labelsize=8)


def label_of(name: str, x: float) -> str:
    if name == "trained":
        return f"{x:.0%}"
    if name == "size":
        return f"{x / 1e6:.2g} M"
    if name == "files":
        return f"{x / 1e6:.0f} MB" if x < 1e9 else f"{x / 1e9:.0f} GB"
    return f"{x:,.0f}"
