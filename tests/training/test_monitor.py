"""metrics.jsonl survives a kill at any point; the status of a run can always be displayed."""

import errno
import io
import json
import math
import os
import re
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tiny_disk import enlarge, tiny_disk

from mini_chat_gpt.common import files
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.terminal import StepProgress
from mini_chat_gpt.config import WandbSection
from mini_chat_gpt.training.monitor import METRICS, MetricsFile, Monitor, Status, keep_metrics_until, read_metrics
from mini_chat_gpt.training.wandb_run import new_run_id

OFF = WandbSection(enabled=False)
STATUS = Status(1.2345, 1.3, 0.8, 3e-4, 12345.6, 3456.7, 1_234_000_000)


def log_steps(folder, *steps):
    with Monitor(folder, OFF, {}, Console(quiet=True)) as monitor:
        for step in steps:
            monitor.log(step, {"sft/train_loss": 1 / step})


def steps_in(folder):
    return [row["step"] for row in read_metrics(folder)]


# metrics.jsonl


def test_a_resume_drops_the_lines_after_the_checkpoint_and_keeps_the_others_unchanged(tmp_path):
    log_steps(tmp_path, 1, 2, 3, 4)
    before = (tmp_path / METRICS).read_text().splitlines()
    keep_metrics_until(tmp_path, 2)
    assert (tmp_path / METRICS).read_text().splitlines() == before[:2]


@given(cut=st.integers(0, 400))
def test_wherever_a_kill_truncates_the_file_complete_lines_stay_and_new_ones_are_separate(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("run")
    log_steps(folder, 1, 2, 3, 4, 5)
    path = folder / METRICS
    path.write_bytes(path.read_bytes()[:cut])
    whole = steps_in(folder)
    assert whole == [1, 2, 3, 4, 5][: len(whole)]
    log_steps(folder, 6)
    assert steps_in(folder) == [*whole, 6]
    keep_metrics_until(folder, 6)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*whole, 6]


@pytest.mark.parametrize(
    "line",
    ["", "12", "null", "[]", "{}", '{"step": "two"}', '{"step": 2', "\xff\x00\u2028", '{"step": [2]}', '{"step": 2.5}',
     '{"step": -2}', '{"step": true}', '{"step": 2, "sft/val_loss": null}', '{"step": 2, "sft/val_loss": {"a": 1}}',
     "[" * 100_000, '{"step": ' + "9" * 5000 + "}", '{"step": NaN}', '{"step": 1e999}', "\0" * 300_000,
     '{"step": 2, "text": "' + "x" * 300_000 + '"}'],
    ids=lambda line: line[:20],
)  # fmt: skip
def test_lines_without_metrics_are_skipped(tmp_path, line):
    log_steps(tmp_path, 1)
    with open(tmp_path / METRICS, "ab") as file:
        file.write(line.encode("latin-1", errors="replace") + b"\n")
    log_steps(tmp_path, 3)
    assert steps_in(tmp_path) == [1, 3]


def test_a_file_of_zeros_is_never_in_memory_as_a_whole(tmp_path):
    log_steps(tmp_path, 1)
    with open(tmp_path / METRICS, "r+b") as file:
        file.truncate(400 * 2**20)
    log_steps(tmp_path, 2)
    tracemalloc.start()
    assert steps_in(tmp_path) == [1, 2]
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_training_goes_on_without_metrics_with_one_line_until_they_can_be_written_again(tmp_path, monkeypatch, error):
    out = Console(record=True, file=io.StringIO(), width=200)
    with Monitor(tmp_path, OFF, {}, out) as monitor:
        monitor.log(1, {"sft/train_loss": 1.0})
        with monkeypatch.context() as patched:
            patched.setattr(MetricsFile, "_open", refuse(error))
            patched.setattr(MetricsFile, "_is_in_place", lambda _: False)
            monitor.log(2, {"sft/train_loss": 1.0})
            monitor.log(3, {"sft/train_loss": 1.0})
        monitor.log(4, {"sft/train_loss": 1.0})
    assert steps_in(tmp_path) == [1, 4]
    assert (
        out.export_text() == f"Writing metrics.jsonl failed ({os.strerror(error).lower()}); training is not affected.\n"
    )


def refuse(error: int):
    def call(*_args, **_kwargs):
        raise OSError(error, os.strerror(error))

    return call


def test_a_line_that_a_full_disk_cuts_does_not_damage_the_next_one(tmp_path):
    with tiny_disk(tmp_path / "disk", 16) as disk, Monitor(disk, OFF, {}, Console(quiet=True)) as monitor:
        for step in range(1, 400):
            monitor.log(step, {"sft/train_loss": 1.0})
        written = steps_in(disk)
        assert 10 < len(written) < 399
        enlarge(disk, 64)
        monitor.log(400, {"sft/train_loss": 1.0})
        assert steps_in(disk) == [*written, 400]


@pytest.mark.parametrize("deletion", ["file", "folder"])
def test_a_deleted_metrics_file_is_made_anew(tmp_path, deletion):
    folder = tmp_path / "run"
    folder.mkdir()
    with Monitor(folder, OFF, {}, Console(quiet=True)) as monitor:
        monitor.log(1, {"sft/train_loss": 1.0})
        (folder / METRICS).unlink()
        if deletion == "folder":
            folder.rmdir()
        monitor.log(2, {"sft/train_loss": 1.0})
    assert steps_in(folder) == [2]


def test_a_metrics_file_that_cannot_be_opened_is_a_sentence_at_the_start(tmp_path):
    (tmp_path / METRICS).mkdir()
    with pytest.raises(UserError, match=r"Can't write .*metrics.jsonl: is a directory"):
        Monitor(tmp_path, OFF, {}, Console(quiet=True))


def test_a_failure_is_told_once_until_it_has_succeeded_again(tmp_path):
    out = Console(record=True, file=io.StringIO(), width=200)
    monitor = Monitor(tmp_path, OFF, {}, out)
    fails = refuse(errno.ENOSPC)
    for call in (fails, fails, lambda: 1, fails, lambda: {}["key"]):
        monitor.attempt("Drawing", call)
    full = "Drawing failed (no space left on device); training is not affected."
    assert out.export_text().splitlines() == [full, full, "Drawing failed (KeyError: 'key'); training is not affected."]
    for stop in (KeyboardInterrupt, SystemExit):
        with pytest.raises(stop):
            monitor.attempt("Drawing", lambda stop=stop: (_ for _ in ()).throw(stop()))


def test_a_message_with_lone_surrogates_is_printed(tmp_path, capsys):
    Monitor(tmp_path, OFF, {}).message("a\ud800b")
    assert capsys.readouterr().out == "a\ufffdb\n"


def test_a_kill_while_lines_are_dropped_loses_nothing(tmp_path, monkeypatch):
    log_steps(tmp_path, 1, 2, 3)

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    for last_act in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(files.os, last_act, kill)
            with pytest.raises(Killed):
                keep_metrics_until(tmp_path, 1)
        assert steps_in(tmp_path) == [1, 2, 3]


def test_without_metrics_there_is_nothing_to_drop_or_read(tmp_path):
    keep_metrics_until(tmp_path, 5)
    assert steps_in(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_an_inactive_monitor_writes_and_prints_nothing(tmp_path, capsys):
    with Monitor(tmp_path, WandbSection(mode="offline"), {}, Console(), new_run_id(), active=False) as monitor:
        monitor.log(1, {"sft/train_loss": 1.0})
        monitor.message("hello")
        monitor.console.print("hello")
        with StepProgress(monitor.console, "sft", 0, 1) as bar:
            bar.update(1, STATUS.items())
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_run_ids_do_not_depend_on_the_seed():
    import random

    random.seed(0)
    first = new_run_id()
    random.seed(0)
    assert re.fullmatch("[a-z0-9]{8}", first)
    assert first != new_run_id()


# The values on display


@pytest.mark.parametrize(("share", "shown"), [(0.0, []), (0.02, []), (0.25, ["waiting for data 25%"])])
def test_waiting_for_data_is_shown_if_it_takes_time(share, shown):
    items = [str(item) for item in replace(STATUS, data_wait_fraction=share).items()]
    assert [item for item in items if "waiting" in item] == shown


def test_non_finite_numbers_can_be_shown():
    broken = Status(math.nan, math.nan, math.inf, 0.0, math.inf, math.nan, 0)
    assert [str(item) for item in broken.items()] == [
        "loss nan",
        "smoothed nan",
        "gradient norm inf",
        "learning rate 0.0e+00",
        "? tokens/s",
        "? supervised/s",
    ]
