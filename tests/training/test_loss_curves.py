"""The plot shows the losses in metrics.jsonl, is readable without colors, and a failure to draw it changes nothing."""

import json
import math
from itertools import pairwise

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from mini_chat_gpt.training.loss_curves import Curves, draw_figure, draw_losses, read_curves, smoothed
from mini_chat_gpt.training.monitor import METRICS

KINDS = [f"kind_{number}" for number in range(12)]


def write_run(folder, steps=40, kinds=(), prefix="sft", evaluate_every=10):
    """Write metrics of a run with a falling loss; returns its folder."""
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
def test_the_plot_is_written_to_the_run_folder(tmp_path, prefix):
    path = draw_losses(write_run(tmp_path, kinds=KINDS[:3], prefix=prefix))
    assert path == tmp_path / "loss.png"
    height, width, _ = imread(path).shape
    assert width > height > 400
    assert sorted(file.name for file in tmp_path.iterdir()) == ["loss.png", METRICS]


@pytest.mark.parametrize(
    "content", [None, "", "no json\n", '{"step": 3, "sft/lr": 0.1}\n', '{"step": 1, "sft/train_loss": NaN}\n']
)
def test_without_losses_there_is_no_plot(tmp_path, content):
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
def test_few_or_unusual_metrics_are_drawn_without_a_warning(tmp_path, content, recwarn):
    (tmp_path / METRICS).write_text(content)
    assert draw_losses(tmp_path) is not None
    assert not [str(warning.message) for warning in recwarn]


def test_curves_have_the_metrics_by_step_and_skip_invalid_values(tmp_path):
    write_run(tmp_path, steps=20, kinds=["why"])
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 21, "sft/train_loss": Infinity, "sft/val_loss": "x"}\n{"step": 22, "sft/train')
    curves = read_curves(tmp_path)
    assert list(curves.train) == list(curves.learning_rate) == list(range(1, 21))
    assert list(curves.held_out) == list(curves.by_kind["why"]) == [10, 20]
    assert curves.held_out[20] == pytest.approx(curves.train[20] + 0.2)


def test_smoothing_keeps_the_jump_between_two_curriculum_stages_and_removes_noise():
    points = {step: (1.0 if step <= 100 else 3.0) + 0.1 * (-1) ** step for step in range(1, 201)}
    smooth = smoothed(points)
    assert list(smooth) == list(points)
    assert abs(smooth[96] - 1) <= 0.11
    assert abs(smooth[105] - 3) <= 0.11
    assert max(abs(smooth[a] - smooth[b]) for a, b in pairwise(range(10, 90))) < 0.21


def test_kinds_have_their_own_panel_with_names_in_the_order_of_the_lines(tmp_path):
    plain = draw_figure({"run": read_curves(write_run(tmp_path))})
    with_kinds = draw_figure({"run": read_curves(write_run(tmp_path, kinds=["main_character", "why", "moral"]))})
    assert len(panels(with_kinds)) == len(panels(plain)) + 1 == 2
    names = [text.get_text() for text in panels(with_kinds)[1].get_legend().get_texts()]
    assert names == ["main character", "why", "moral"]


def test_axes_and_legend_are_labeled(tmp_path):
    loss, kinds = panels(draw_figure({"run": read_curves(write_run(tmp_path, kinds=KINDS))}))
    assert loss.get_xlabel() == kinds.get_xlabel() == "optimizer step"
    assert "loss" in loss.get_ylabel()
    assert "loss" in kinds.get_ylabel()
    entries = [text.get_text() for text in loss.get_legend().get_texts()]
    assert entries == ["training", "smoothed", "held out", "learning rate (≤ 0.001)"]


def test_lines_can_be_distinguished_without_colors(tmp_path):
    loss, kinds = panels(draw_figure({"run": read_curves(write_run(tmp_path, kinds=KINDS))}))
    assert len({(line.get_linestyle(), line.get_marker()) for line in kinds.lines}) == len(KINDS)
    assert len({(line.get_linestyle(), line.get_linewidth()) for line in loss.lines}) == 3


def test_the_steep_fall_at_the_start_is_cut_off():
    curves = Curves(train={1: 11.0, 2: 9.0} | dict.fromkeys(range(3, 201), 2.0), held_out={200: 2.5})
    low, high = panels(draw_figure({"run": curves}))[0].get_ylim()
    assert low <= 2.0
    assert 2.5 <= high < 3


def test_an_old_plot_stays_if_drawing_a_new_one_fails(tmp_path, monkeypatch):
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
    """The axes with curves, left to right, without those of the learning rate."""
    return [axes for axes in figure.axes if axes.get_xlabel()]
