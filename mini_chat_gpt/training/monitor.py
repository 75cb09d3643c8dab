"""What a run tells the outside: metrics.jsonl always, wandb where wanted, and a display or lines in the terminal.

Metrics go to both places with the same names and values. Where several processes train, one of them speaks and the
others' monitors are silent.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import string
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.errors import LiveError
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.config import WandbSection
from mini_chat_gpt.training.wandb_run import start_wandb

METRICS = "metrics.jsonl"
WORTH_SAYING = 0.02
"""Share of the time spent in waiting for data above which the display tells it."""


class Monitor:
    """Records metrics of one run and shows its progress. Use as a context manager.

    run_id    the run's id at wandb; given again when the run is continued (`new_run_id` makes one)
    active    False for all processes but one: nothing is written, printed or sent
    """

    def __init__(
        self,
        folder: Path,
        wandb: WandbSection,
        settings: dict[str, Any],
        console: Console | None = None,
        run_id: str | None = None,
        active: bool = True,
    ) -> None:
        self.console = (console or Console(highlight=False)) if active else Console(quiet=True)
        self._wandb = (
            start_wandb(wandb, folder, settings, self.console, run_id, read_metrics(folder)) if active else None
        )
        self._file = _open_to_append(folder / METRICS) if active else None  # closed in __exit__

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish(failed=kind is not None)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics of an optimizer step (counted from 1)."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | metrics) + "\n")
            self._file.flush()
        if self._wandb is not None:
            self._wandb.log(step, metrics)

    def message(self, text: str) -> None:
        """A line above the progress display. `text` is shown as it is, brackets and all."""
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)  # in a file a line stays one


def new_run_id() -> str:
    """An id for a run that may be continued, of the form that wandb makes itself. No seed determines it."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


# metrics.jsonl


def read_metrics(folder: Path) -> Iterator[dict[str, float]]:
    """The lines of a run's metrics.jsonl, {"step", "time", name: value, …}; none where there is no file.

    A killed process leaves half a line, which is passed over.
    """
    return (row for _, row in _whole_lines(folder / METRICS))


def keep_metrics_until(folder: Path, step: int) -> None:
    """Before going on from `step`, drop the lines a killed run wrote after its last checkpoint.

    The file is replaced as a whole: a kill on the way leaves the old one. Raises UserError if the disk refuses.
    """
    path = folder / METRICS
    if path.is_file():
        atomic_write_text(path, "".join(f"{line}\n" for line, row in _whole_lines(path) if row["step"] <= step))


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Lines that hold metrics of a step, as text and as read."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield line.rstrip("\n"), row


def _open_to_append(path: Path) -> TextIO:
    """The file, ready for a new line: half a line that a killed process left gets its end."""
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    return open(path, "a", encoding="utf-8")


# The terminal


class Fact(NamedTuple):
    """A number on display, with the words around it."""

    before: str
    value: str
    after: str = ""

    def __str__(self) -> str:
        return self.before + self.value + self.after


@dataclass(frozen=True)
class Status:
    """How training goes."""

    loss: float  # the one that is optimised, over the last lines of metrics
    smoothed_loss: float
    grad_norm: float  # before clipping
    learning_rate: float
    tokens_per_second: float  # all tokens that the model reads
    trained_per_second: float  # those that are targets
    memory: int  # bytes; 0 where it isn't known
    data_wait_share: float = 0.0  # of the time, in which the step waits for its examples

    def facts(self) -> list[Fact]:
        """What there is to show, most important first."""
        facts = [
            Fact("loss ", f"{self.loss:.3f}"),
            Fact("smoothed ", f"{self.smoothed_loss:.3f}"),
            Fact("gradient norm ", f"{self.grad_norm:.2f}" if self.grad_norm < 1000 else f"{self.grad_norm:.1e}"),
            Fact("learning rate ", f"{self.learning_rate:.1e}"),
            Fact("", _rate(self.tokens_per_second), " tokens/s"),
            Fact("", _rate(self.trained_per_second), " trained/s"),
        ]
        if self.memory:
            facts.append(Fact("memory ", size(self.memory)))
        if self.data_wait_share > WORTH_SAYING:
            facts.append(Fact("waiting for data ", f"{self.data_wait_share:.0%}"))
        return facts


class _Shown(NamedTuple):
    """What the display knows; replaced as a whole, because a thread of its own draws it."""

    done: int
    facts: list[Fact]
    left: float | None  # seconds
    at: float  # when that was so


class StepProgress:
    """Progress over a known number of steps: a live display in a terminal, else a line every few seconds.

    The display fits any width: beneath the bar stand the facts, in as many lines as they need. That of a training run
    (facts given as a `Status`) stays when it ends, other displays vanish.
    """

    def __init__(self, console: Console, title: str, done: int, total: int, every_seconds: float = 10.0) -> None:
        self.console, self.title, self.total = console, title, total
        self.first, self.started, self.every = done, time.monotonic(), every_seconds
        self.last_line = self.started
        self.ended = False
        self.shown = _Shown(done, [], None, self.started)
        self.live: Live | None = None
        if console.is_interactive and console.file.isatty() and not console.quiet:  # a dumb terminal isn't interactive
            self.live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    def __enter__(self) -> StepProgress:
        if self.live is not None:
            try:
                self.live.start()
            except LiveError:  # another display is up, and this version of rich has only one at a time
                self.live = None
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        if self.live is not None:
            self.live.stop()

    def update(self, done: int, facts: str | Status, share: float | None = None) -> None:
        """`done` of `total` steps are finished; `facts` say how it goes.

        Where steps differ in size, `share` says how much of the work that is, from 0 to 1, for a better time left.
        """
        now = time.monotonic()
        part = share if share is not None else (done - self.first) / max(1, self.total - self.first)
        left = (now - self.started) * (1 - part) / part if part else None
        listed = facts.facts() if isinstance(facts, Status) else [Fact("", facts)] if facts else []
        self.shown = _Shown(done, listed, left, now)
        if self.live is not None:
            self.live.transient = not isinstance(facts, Status)
        elif now - self.last_line >= self.every or done == self.total:
            self.last_line = now
            words = [f"{self.title} {done}/{self.total}", *map(str, listed)]
            words += [f"{clock(left)} left"] if left is not None else []
            self.console.print("  ".join(words), markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> RenderableType:
        """The display at the console's present width."""
        shown, width = self.shown, self.console.width
        count = f"{shown.done:,}/{self.total:,}"
        if self.ended:
            count += f"  in {clock(shown.at - self.started)}"
        elif shown.left is not None:
            count += f"  {clock(max(0.0, shown.left - (time.monotonic() - shown.at)))} left"
        room = width - cell_len(self.title) - len(count) - 2
        if room < 4:
            head: RenderableType = Text(f"{self.title} {count}", no_wrap=True, overflow="ellipsis")
        else:
            head = Table.grid(padding=(0, 1))
            head.add_row(Text(self.title), ProgressBar(max(1, self.total), shown.done, width=min(room, 60)), count)
        return Group(head, *_in_lines(shown.facts, width, "" if self.console.no_color else "dim"))


def _in_lines(facts: Sequence[Fact], width: int, style: str) -> list[Text]:
    """The facts in as few lines as hold them, of lengths as even as can be; a fact wider than a line is cut.

    `style` is that of the words around the numbers.
    """
    lengths = [cell_len(str(fact)) for fact in facts]
    numbers = _line_numbers(lengths, width)
    for narrower in range(width - 1, max(lengths, default=width), -1):
        if (tried := _line_numbers(lengths, narrower))[-1] > numbers[-1]:
            break
        numbers = tried
    lines = [Text(no_wrap=True, overflow="ellipsis") for _ in range(numbers[-1] + 1 if facts else 0)]
    for fact, number in zip(facts, numbers, strict=True):
        lines[number].append("  " if len(lines[number]) else "")
        lines[number].append(fact.before, style).append(fact.value).append(fact.after, style)
    return lines


def _line_numbers(lengths: Sequence[int], width: int) -> list[int]:
    """In which line each of the facts stands, of which each begins a new one where it would not fit."""
    numbers: list[int] = []
    used = number = 0
    for length in lengths:
        if used and used + 2 + length > width:
            used, number = 0, number + 1
        used += length + (2 if used else 0)
        numbers.append(number)
    return numbers


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if math.isfinite(per_second) else "?"


def size(n_bytes: float) -> str:
    """1230000000 → "1.23 GB", 45000000 → "45 MB"."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def clock(seconds: float) -> str:
    """3725 → "1:02:05", 65 → "1:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
