"""Progress displays fit the terminal that they are shown in; times and sizes are written in one way."""

import contextlib
import io
import os
import re
import time
from collections.abc import Sequence

import pytest
from rich.console import Console
from rich.errors import LiveError
from rich.live import Live

from mini_chat_gpt.common.terminal import StatusItem, StepProgress, console, format_duration, format_size

ITEMS = [
    StatusItem("loss ", "1.234"), StatusItem("smoothed ", "1.300"), StatusItem("gradient norm ", "0.80"),
    StatusItem("learning rate ", "3.0e-04"), StatusItem("", "12,346", " tokens/s"), StatusItem("", "3,457", " supervised/s"),
    StatusItem("memory ", "1.23 GB"),
]  # fmt: skip
SHOWN = [str(item) for item in ITEMS]


# In a notebook


def test_in_a_notebook_a_console_prints_text_to_standard_output(monkeypatch, capsys):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)  # rich would display HTML
    console().print("a line")
    console(optional=True).print("another line")
    assert capsys.readouterr().out == "a line\nanother line\n"


# Without a terminal


def test_progress_without_a_terminal_is_plain_lines_with_the_time_left(capsys):
    with StepProgress(Console(force_terminal=False, width=80), "sft", 0, 10, every_seconds=0) as bar:
        bar.update(5, "loss 1.000")
        bar.update(10, "loss 0.500")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sft 5/10  loss 1.000  0:0")
    assert lines[1] == "sft 10/10  loss 0.500  0:00 left"


@pytest.mark.parametrize("width", [30, 80])
def test_a_plain_line_shows_all_items_without_control_characters_at_any_width(width, capsys):
    with StepProgress(Console(width=width), "sft", 0, 10, every_seconds=0) as bar:
        bar.update(5, ITEMS)
    out = capsys.readouterr().out
    assert out.rstrip("\n") == "  ".join(["sft 5/10", *SHOWN, "0:00 left"])
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)


def test_forced_colors_do_not_start_a_display_without_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    with StepProgress(Console(file=out, width=80), "sft", 0, 10, every_seconds=0) as bar:
        bar.update(5, ITEMS)
    assert "\x1b" not in out.getvalue()
    assert "12,346 tokens/s" in out.getvalue()


def test_plain_lines_are_printed_every_ten_seconds_at_most_and_at_the_end(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("mini_chat_gpt.common.terminal.time.monotonic", lambda: now[0])
    with StepProgress(Console(width=80), "sft", 0, 100) as bar:
        for step in range(1, 101):
            now[0] += 0.3
            bar.update(step, "")
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["34/100", "68/100", "100/100"]


def test_the_time_left_follows_the_fraction_of_the_work_if_steps_differ_in_size(monkeypatch, capsys):
    seconds = iter([100.0, 110.0])
    monkeypatch.setattr("mini_chat_gpt.common.terminal.time.monotonic", lambda: next(seconds))
    StepProgress(Console(force_terminal=False, width=80), "sft", 0, 10, every_seconds=0).update(9, "", fraction=0.1)
    assert capsys.readouterr().out.rstrip().endswith("1:30 left")


# In a terminal


def show_steps(argv: Sequence[str]) -> int:
    """60 steps with a message in between; waits for a line of input at the end."""
    console = Console(highlight=False)
    with StepProgress(console, "sft", 0, 60, keep=True) as bar:
        for step in range(1, 61):
            bar.update(step, ITEMS)
            if step == 30:
                console.print("[a message]", markup=False)
                time.sleep(0.6)  # the display is drawn four times a second
        input()
    print("after")
    return 0


@pytest.fixture
def terminal():
    """A function that starts `show_steps` in a terminal of a given width."""
    terminals = pytest.importorskip("terminal", reason="pseudo-terminals exist on Unix only")
    started = []

    def start(columns, **env):
        started.append(terminals.Program(show_steps, [], columns, env=env))
        return started[-1]

    yield start
    for program in started:
        program.close()


def printed(raw: str) -> str:
    """What was printed, without colors and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw).replace("\r", "")


def last_screen(raw: str) -> list[str]:
    """The lines of the display at its end."""
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
    assert "  ".join(lines[1:]).split("  ") == SHOWN
    assert "[a message]" in printed(program.raw)


def test_in_a_very_narrow_terminal_items_are_cut(terminal):
    program = terminal(12)
    program.wait("30")
    program.type("\r")
    program.wait("after")
    assert max(map(len, last_screen(program.raw))) <= 12


def test_no_color_is_respected(terminal):
    program = terminal(80, NO_COLOR="1")
    program.wait("60/60")
    assert not re.search(r"\x1b\[[0-9;]*[1-9][0-9;]*m", program.raw), "a color or attribute"


def test_a_dumb_terminal_gets_plain_lines(terminal):
    program = terminal(80, TERM="dumb")
    out = program.wait("60/60") + program.wait("left")
    assert "\x1b" not in out
    assert "━" not in out
    assert all(item in out for item in SHOWN)


@pytest.fixture
def console_at_terminal():
    """A console in a pseudo-terminal, and a function that closes it and returns all of its output."""
    openpty = getattr(os, "openpty", None) or pytest.skip("pseudo-terminals exist on Unix only")
    master, slave = openpty()
    out = open(slave, "w", encoding="utf-8")

    def read() -> str:
        """All output. The terminal forwards writes asynchronously, so only end-of-file tells that it is complete."""
        out.close()
        chunks = []
        with contextlib.suppress(OSError):  # end of file on Linux
            while chunk := os.read(master, 1 << 16):
                chunks.append(chunk)
        return b"".join(chunks).decode()

    yield Console(file=out, width=80, force_terminal=True), read
    out.close()
    os.close(master)


def test_a_display_disappears_when_it_ends_unless_it_is_kept(console_at_terminal):
    console, read = console_at_terminal
    with StepProgress(console, "evaluating", 0, 4) as bar:
        bar.update(2, "3 replies/s")
    shown = read()
    assert "3 replies/s" in shown
    assert shown.rstrip().endswith("\x1b[2K")


def test_a_second_display_prints_lines_if_rich_supports_only_one(console_at_terminal, monkeypatch):
    monkeypatch.setattr(Live, "start", lambda *_: (_ for _ in ()).throw(LiveError))
    console, read = console_at_terminal
    with StepProgress(console, "evaluating", 0, 4) as bar:
        bar.update(4, "3 replies/s")
    assert read().split("\r\n")[0] == "evaluating 4/4  3 replies/s  0:00 left"


def test_durations_are_written_in_hours_minutes_and_seconds():
    assert [format_duration(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (45_400_000, "45.4 MB"),
        (999_990_000, "1 GB"),
        (1_234_000_000, "1.23 GB"),
        (5e12, "5 TB"),
        (None, "unknown size"),
    ],
)
def test_sizes_are_written_with_units(size, text):
    assert format_size(size) == text
