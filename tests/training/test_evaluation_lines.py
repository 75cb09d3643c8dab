"""An evaluation takes three lines of a terminal; a log and the run folder have everything."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from mini_chat_gpt.config import WandbSection
from mini_chat_gpt.training.evaluation_lines import show_evaluation
from mini_chat_gpt.training.job import Evaluation
from mini_chat_gpt.training.monitor import Monitor

KINDS = ("moral", "summary", "what_happened", "main_character", "quote", "words", "東京")
LOSSES = {"val_loss": 1.23456} | {f"val_loss/{kind}": 0.5 for kind in KINDS}
SCORES = {f"eval/{kind}/exact": 0.25 for kind in KINDS}
SAMPLES = "  Where is Tom? → Tom is [at] home. " + "He is happy. " * 20 + "\n  [moral] second   (expected: sample)"


def shown(evaluation: Evaluation, folder, width: int = 80, terminal: bool = True) -> list[str]:
    out = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    with Monitor(folder, WandbSection(enabled=False), {}, out) as monitor:
        show_evaluation(evaluation, 500, monitor, folder)
    return out.file.getvalue().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@settings(max_examples=40)
@given(width=st.integers(40, 300))
def test_an_evaluation_takes_three_lines_of_a_terminal(width, folder):
    lines = shown(Evaluation(LOSSES, SCORES, SAMPLES), folder, width)
    assert len(lines) == 3
    assert all(cell_len(line) <= width for line in lines)
    assert lines[0].startswith("step 500  validation loss 1.2346")
    assert lines[1].startswith("held-out tasks: moral/exact 0.25")
    assert lines[2].startswith("sample: Where is Tom?")
    numbers = [part.split()[-1] for part in lines[0].split("  ")[2:] if part != "…"]
    assert set(numbers) <= {"0.500"}  # no number is cut


def test_a_log_has_complete_lines_and_the_folder_every_sample(tmp_path):
    losses, scores, sample = shown(Evaluation(LOSSES, SCORES, SAMPLES), tmp_path, terminal=False)
    assert losses.endswith("東京 0.500")
    assert scores.endswith("東京/exact 0.25")
    assert sample.endswith("He is happy.")
    assert (tmp_path / "samples.txt").read_text(encoding="utf-8") == f"=== step 500\n{SAMPLES}\n"


def test_what_an_evaluation_lacks_has_no_line(tmp_path):
    assert shown(Evaluation({"val_loss": 2.0}), tmp_path) == ["step 500  validation loss 2.0000"]
    assert not (tmp_path / "samples.txt").exists()
