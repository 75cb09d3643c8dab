"""The picture shows what metrics.jsonl holds, also without colours, and an attempt at it costs nothing."""

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from mini_chat_gpt.training.loss_curves import Curves, _apart, draw_figure, draw_losses, read_curves, smoothed
from mini_chat_gpt.training.monitor import METRICS

KINDS = [f"kind_{number}" for number in range(12)]


def write_run(folder, steps=40, kinds=(), prefix="sft", evaluate_every=10):
    """Metrics of a run whose loss falls; returns its folder."""
    lines = []
    for step in range(1, steps + 1):
        loss = 4 * math.exp(-step / 20) + 0.1 * math.sin(step)
        lines.append({"step": step, f"{prefix}/train_loss": loss, f"{prefix}/lr": 1e-3 * (1 - (step - 1) / steps)})
        if step % evaluate_every == 0:
            by_kind = {f"{prefix}/val_loss/{kind}": loss / (1 + number) for number, kind in enumerate(kinds)}
            lines.append({"step": step, f"{prefix}/val_loss": loss + 0.2} | by_kind)
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("prefix", ["sft", "pretrain"])
def test_the_picture_lies_in_the_runs_folder(tmp_path, prefix):
    path = draw_losses(write_run(tmp_path, kinds=KINDS[:3], prefix=prefix))
    assert path == tmp_path / "loss.png"
    height, width, _ = imread(path).shape
    assert width > height > 400
    assert sorted(file.name for file in tmp_path.iterdir()) == ["loss.png", METRICS]


@pytest.mark.parametrize(
    "content", [None, "", "no json\n", '{"step": 3, "sft/lr": 0.1}\n', '{"step": 1, "sft/train_loss": NaN}\n']
)
def test_where_there_is_nothing_to_draw_there_is_no_picture(tmp_path, content):
    if content is not None:
        (tmp_path / METRICS).write_text(content)
    assert draw_losses(tmp_path) is None
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize(
    "content",
    [
        '{"step": 1, "sft/train_loss": 2.0}\n',
        '{"step": 1, "sft/val_loss": 2.0, "sft/val_loss/why": 0.0}\n',
        '{"step": 1, "sft/train_loss": 0.0, "sft/lr": 0.0}\n{"step": 2, "sft/train_loss": 0.0, "sft/lr": 0.0}\n',
        '{"step": 1, "sft/train_loss": -1.5}\n{"step": 2, "sft/train_loss": 1e30}\n{"step": 3, "sft/trai',
    ],
)
def test_little_or_strange_metrics_are_drawn_without_a_warning(tmp_path, content, recwarn):
    (tmp_path / METRICS).write_text(content)
    assert draw_losses(tmp_path) is not None
    assert not [str(warning.message) for warning in recwarn]


def test_curves_hold_the_metrics_by_step_and_pass_over_what_is_broken(tmp_path):
    write_run(tmp_path, steps=20, kinds=["why"])
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 21, "sft/train_loss": Infinity, "sft/val_loss": "x"}\n{"step": 22, "sft/train')
    curves = read_curves(tmp_path)
    assert list(curves.train) == list(curves.learning_rate) == list(range(1, 21))
    assert list(curves.held_out) == list(curves.by_kind["why"]) == [10, 20]
    assert curves.held_out[20] == pytest.approx(curves.train[20] + 0.2)


def test_smoothing_keeps_the_jump_between_two_lessons_and_drops_the_noise():
    points = {step: (1.0 if step <= 100 else 3.0) + 0.1 * (-1) ** step for step in range(1, 201)}
    smooth = smoothed(points)
    assert list(smooth) == list(points)
    assert abs(smooth[96] - 1) <= 0.11
    assert abs(smooth[105] - 3) <= 0.11
    assert max(abs(smooth[a] - smooth[b]) for a, b in pairwise(range(10, 90))) < 0.21


def test_kinds_have_a_panel_of_their_own_and_a_name_at_their_line(tmp_path):
    plain = draw_figure({"run": read_curves(write_run(tmp_path))})
    with_kinds = draw_figure({"run": read_curves(write_run(tmp_path, kinds=["main_character", "why"]))})
    assert len(panels(with_kinds)) == len(panels(plain)) + 1 == 2
    assert {text.get_text() for text in panels(with_kinds)[1].texts} == {"main character", "why"}


def test_axes_say_what_they_show(tmp_path):
    loss, kinds = panels(draw_figure({"run": read_curves(write_run(tmp_path, kinds=KINDS))}))
    assert loss.get_xlabel() == kinds.get_xlabel() == "optimizer step"
    assert "loss" in loss.get_ylabel()
    assert "loss" in kinds.get_ylabel()
    entries = [text.get_text() for text in loss.get_legend().get_texts()]
    assert entries == ["training", "smoothed", "held out", "learning rate (≤ 0.001)"]


def test_lines_can_be_told_apart_without_colours(tmp_path):
    loss, kinds = panels(draw_figure({"run": read_curves(write_run(tmp_path, kinds=KINDS))}))
    assert len({(line.get_linestyle(), line.get_marker()) for line in kinds.lines}) == len(KINDS)
    assert len({(line.get_linestyle(), line.get_linewidth()) for line in loss.lines}) == 3


def test_the_first_steep_fall_does_not_press_the_rest_flat():
    curves = Curves(train={1: 11.0, 2: 9.0} | dict.fromkeys(range(3, 201), 2.0), held_out={200: 2.5})
    low, high = panels(draw_figure({"run": curves}))[0].get_ylim()
    assert low <= 2.0
    assert 2.5 <= high < 3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_names_never_overlap_and_stay_in_order(heights):
    heights = sorted(heights, reverse=True)
    placed = _apart(heights, 0.05)
    assert all(above - below > 0.05 - 1e-9 for above, below in pairwise(placed))
    if all(above - below > 0.05 for above, below in pairwise(heights)):
        assert placed == pytest.approx(heights)


def test_an_old_picture_stays_when_a_new_one_fails(tmp_path, monkeypatch):
    before = draw_losses(write_run(tmp_path)).read_bytes()

    def full(figure, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        draw_losses(tmp_path)
    assert (tmp_path / "loss.png").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["loss.png", METRICS]


def panels(figure):
    """The axes with lines, left to right; the learning rate's lie behind them."""
    return [axes for axes in figure.axes if axes.get_xlabel()]
