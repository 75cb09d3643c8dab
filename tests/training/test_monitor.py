"""What is recorded survives a kill, what is shown fits the place where it is shown."""

import contextlib
import io
import json
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.errors import LiveError
from rich.live import Live

from mini_chat_gpt.common import files
from mini_chat_gpt.config import WandbSection
from mini_chat_gpt.training.monitor import (
    METRICS,
    Monitor,
    Status,
    StepProgress,
    clock,
    keep_metrics_until,
    new_run_id,
    read_metrics,
    size,
)

OFF = WandbSection(enabled=False)
STATUS = Status(1.2345, 1.3, 0.8, 3e-4, 12345.6, 3456.7, 1_234_000_000)
FACTS = (
    "loss 1.234", "smoothed 1.300", "gradient norm 0.80", "learning rate 3.0e-04", "12,346 tokens/s", "3,457 trained/s",
    "memory 1.23 GB",
)  # fmt: skip


def log_steps(folder, *steps):
    with Monitor(folder, OFF, {}, Console(quiet=True)) as monitor:
        for step in steps:
            monitor.log(step, {"sft/train_loss": 1 / step})


def steps_in(folder):
    return [row["step"] for row in read_metrics(folder)]


# metrics.jsonl


def test_going_on_drops_the_lines_after_the_checkpoint_and_keeps_the_others_as_they_are(tmp_path):
    log_steps(tmp_path, 1, 2, 3, 4)
    before = (tmp_path / METRICS).read_text().splitlines()
    keep_metrics_until(tmp_path, 2)
    assert (tmp_path / METRICS).read_text().splitlines() == before[:2]


@given(cut=st.integers(0, 400))
def test_wherever_a_kill_cuts_the_file_whole_lines_stay_and_new_ones_stand_alone(tmp_path_factory, cut):
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


@pytest.mark.parametrize("line", ["", "12", "null", "[]", "{}", '{"step": "two"}', '{"step": 2', "\xff\x00\u2028"])
def test_lines_that_are_no_metrics_are_passed_over(tmp_path, line):
    log_steps(tmp_path, 1)
    with open(tmp_path / METRICS, "ab") as file:
        file.write(line.encode("latin-1", errors="replace") + b"\n")
    log_steps(tmp_path, 3)
    assert steps_in(tmp_path) == [1, 3]


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


def test_a_silent_monitor_writes_and_prints_nothing(tmp_path, capsys):
    with Monitor(tmp_path, WandbSection(mode="offline"), {}, Console(), new_run_id(), active=False) as monitor:
        monitor.log(1, {"sft/train_loss": 1.0})
        monitor.message("hello")
        monitor.console.print("hello")
        with StepProgress(monitor.console, "sft", 0, 1) as bar:
            bar.update(1, STATUS)
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_run_ids_are_new_each_time_whatever_the_seed():
    import random

    random.seed(0)
    first = new_run_id()
    random.seed(0)
    assert re.fullmatch("[a-z0-9]{8}", first)
    assert first != new_run_id()


# Without a terminal


def test_progress_without_a_terminal_is_plain_lines_with_the_time_left(capsys):
    with StepProgress(Console(force_terminal=False, width=80), "sft", 0, 10, every_seconds=0) as bar:
        bar.update(5, "loss 1.000")
        bar.update(10, "loss 0.500")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sft 5/10  loss 1.000  0:0")
    assert lines[1] == "sft 10/10  loss 0.500  0:00 left"


@pytest.mark.parametrize("width", [30, 80])
def test_a_plain_line_has_all_facts_and_no_control_characters_whatever_the_width(width, capsys):
    with StepProgress(Console(width=width), "sft", 0, 10, every_seconds=0) as bar:
        bar.update(5, STATUS)
    out = capsys.readouterr().out
    assert out.rstrip("\n") == "  ".join(["sft 5/10", *FACTS, "0:00 left"])
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)


def test_forced_colours_make_no_display_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    with StepProgress(Console(file=out, width=80), "sft", 0, 10, every_seconds=0) as bar:
        bar.update(5, STATUS)
    assert "\x1b" not in out.getvalue()
    assert "12,346 tokens/s" in out.getvalue()


def test_plain_lines_come_every_ten_seconds_at_most_and_at_the_end(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("mini_chat_gpt.training.monitor.time.monotonic", lambda: now[0])
    with StepProgress(Console(width=80), "sft", 0, 100) as bar:
        for step in range(1, 101):
            now[0] += 0.3
            bar.update(step, "")
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["34/100", "68/100", "100/100"]


def test_where_steps_differ_in_size_the_time_left_follows_the_work(monkeypatch, capsys):
    seconds = iter([100.0, 110.0])
    monkeypatch.setattr("mini_chat_gpt.training.monitor.time.monotonic", lambda: next(seconds))
    StepProgress(Console(force_terminal=False, width=80), "sft", 0, 10, every_seconds=0).update(9, "", share=0.1)
    assert capsys.readouterr().out.rstrip().endswith("1:30 left")


@pytest.mark.parametrize(("share", "shown"), [(0.0, []), (0.02, []), (0.25, ["waiting for data 25%"])])
def test_waiting_for_data_is_shown_when_it_costs_something(share, shown):
    facts = [str(fact) for fact in replace(STATUS, data_wait_share=share).facts()]
    assert [fact for fact in facts if "waiting" in fact] == shown


def test_numbers_that_are_not_finite_can_be_shown():
    broken = Status(math.nan, math.nan, math.inf, 0.0, math.inf, math.nan, 0)
    assert [str(fact) for fact in broken.facts()] == [
        "loss nan",
        "smoothed nan",
        "gradient norm inf",
        "learning rate 0.0e+00",
        "? tokens/s",
        "? trained/s",
    ]


# In a terminal


def show_steps(argv: Sequence[str]) -> int:
    """A run of 60 steps, with a message in it, that ends when a line is typed."""
    console = Console(highlight=False)
    with StepProgress(console, "sft", 0, 60) as bar:
        for step in range(1, 61):
            bar.update(step, STATUS)
            if step == 30:
                console.print("[a message]", markup=False)
                time.sleep(0.6)  # the display is drawn four times a second
        input()
    print("after")
    return 0


@pytest.fixture
def terminal():
    """Start `show_steps` at a terminal so wide; gives the program."""
    terminals = pytest.importorskip("terminal", reason="pseudo-terminals are a matter of Unix")
    started = []

    def start(columns, **env):
        started.append(terminals.Program(show_steps, [], columns, env=env))
        return started[-1]

    yield start
    for program in started:
        program.close()


def printed(raw: str) -> str:
    """What was printed, without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw).replace("\r", "")


def last_screen(raw: str) -> list[str]:
    """The lines of the display as it was left."""
    drawn = printed(raw.split("\x1b[2K")[-1])
    return [line.rstrip() for line in drawn.split("\n") if line.strip() and line.rstrip() != "after"]


@pytest.mark.parametrize(("columns", "most_lines"), [(120, 3), (80, 3), (30, 8)])
def test_the_display_fits_the_terminal_and_stays_at_the_end(terminal, columns, most_lines):
    program = terminal(columns)
    program.wait("30/60")
    program.wait("60/60")
    program.type("\r")
    program.wait("after")
    assert program.end() == 0
    lines = last_screen(program.raw)
    assert re.fullmatch(r"sft ━+ 60/60  in 0:0\d", lines[0])
    assert max(map(len, lines)) <= columns
    assert len(lines) <= most_lines
    assert "  ".join(lines[1:]).split("  ") == list(FACTS)
    assert "[a message]" in printed(program.raw)


def test_in_a_terminal_too_narrow_for_anything_facts_are_cut(terminal):
    program = terminal(12)
    program.wait("30")
    program.type("\r")
    program.wait("after")
    assert max(map(len, last_screen(program.raw))) <= 12


def test_no_color_is_honoured(terminal):
    program = terminal(80, NO_COLOR="1")
    program.wait("60/60")
    assert not re.search(r"\x1b\[[0-9;]*[1-9][0-9;]*m", program.raw), "a colour or attribute"


def test_a_terminal_that_can_only_print_gets_plain_lines(terminal):
    program = terminal(80, TERM="dumb")
    out = program.wait("60/60") + program.wait("left")
    assert "\x1b" not in out
    assert "━" not in out
    assert all(fact in out for fact in FACTS)


@pytest.fixture
def console_at_terminal():
    """A console at a pseudo-terminal, and what it has shown by the time it is closed."""
    openpty = getattr(os, "openpty", None) or pytest.skip("pseudo-terminals are a matter of Unix")
    master, slave = openpty()
    out = open(slave, "w", encoding="utf-8")

    def read() -> str:
        """Everything: the terminal passes writes on in its own time, so only its end says that no more will come."""
        out.close()
        chunks = []
        with contextlib.suppress(OSError):  # the end, as Linux tells it
            while chunk := os.read(master, 1 << 16):
                chunks.append(chunk)
        return b"".join(chunks).decode()

    yield Console(file=out, width=80, force_terminal=True), read
    out.close()
    os.close(master)


def test_a_display_with_words_for_facts_vanishes_when_it_ends(console_at_terminal):
    console, read = console_at_terminal
    with StepProgress(console, "evaluating", 0, 4) as bar:
        bar.update(2, "3 replies/s")
    shown = read()
    assert "3 replies/s" in shown
    assert shown.rstrip().endswith("\x1b[2K")


def test_where_only_one_display_can_be_up_the_second_writes_lines(console_at_terminal, monkeypatch):
    monkeypatch.setattr(Live, "start", lambda *_: (_ for _ in ()).throw(LiveError))
    console, read = console_at_terminal
    with StepProgress(console, "evaluating", 0, 4) as bar:
        bar.update(4, "3 replies/s")
    assert read().split("\r\n")[0] == "evaluating 4/4  3 replies/s  0:00 left"


def test_times_are_written_as_on_a_clock():
    assert [clock(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


def test_sizes_are_written_in_round_numbers():
    assert [size(n) for n in (45_400_000, 1_234_000_000)] == ["45 MB", "1.23 GB"]
