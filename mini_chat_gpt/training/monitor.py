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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.common.terminal import StatusItem, format_size
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
    data_wait_fraction: float = 0.0  # of the time, in which the step waits for its examples

    def items(self) -> list[StatusItem]:
        """The values to display, most important first."""
        items = [
            StatusItem("loss ", f"{self.loss:.3f}"),
            StatusItem("smoothed ", f"{self.smoothed_loss:.3f}"),
            StatusItem("gradient norm ", f"{self.grad_norm:.2f}" if self.grad_norm < 1000 else f"{self.grad_norm:.1e}"),
            StatusItem("learning rate ", f"{self.learning_rate:.1e}"),
            StatusItem("", _rate(self.tokens_per_second), " tokens/s"),
            StatusItem("", _rate(self.trained_per_second), " trained/s"),
        ]
        if self.memory:
            items.append(StatusItem("memory ", format_size(self.memory)))
        if self.data_wait_fraction > WORTH_SAYING:
            items.append(StatusItem("waiting for data ", f"{self.data_wait_fraction:.0%}"))
        return items


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if math.isfinite(per_second) else "?"
