"""What a run reports: metrics.jsonl always, wandb if enabled, and messages in the terminal.

All of them get the same metrics with the same names. If several processes train, only the monitor of rank 0 is active.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import Strict
from rich.console import Console

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text, readable_disk_errors
from mini_chat_gpt.common.json_files import DamagedJSON, parse_json
from mini_chat_gpt.common.terminal import StatusItem, console, format_size
from mini_chat_gpt.common.text import well_formed
from mini_chat_gpt.config import WandbSection
from mini_chat_gpt.training.wandb_run import start_wandb

T = TypeVar("T")

METRICS = "metrics.jsonl"
MIN_WAIT_FRACTION = 0.02
"""Fraction of the time spent waiting for data from which on the display shows it."""


class Monitor:
    """Records the metrics of one run. Use as a context manager.

    run_id    the run's id at wandb, from `new_run_id`; a resumed run passes the same id again
    active    False on all ranks but rank 0: nothing is written, printed or sent
    """

    def __init__(
        self,
        folder: Path,
        wandb: WandbSection,
        settings: dict[str, Any],
        out: Console | None = None,
        run_id: str | None = None,
        active: bool = True,
    ) -> None:
        self.console = (out or console(optional=True)) if active else Console(quiet=True)
        self._failures: dict[str, str] = {}
        self._wandb = start_wandb(wandb, folder, settings, self.console, run_id) if active else None
        self._file = MetricsFile(folder / METRICS) if active else None

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
            file, line = self._file, json.dumps({"step": step, "time": round(time.time(), 3)} | metrics) + "\n"
            self.attempt(f"Writing {METRICS}", lambda: file.append(line))
        if self._wandb is not None:
            self._wandb.log(step, metrics)

    def move(self, folder: Path) -> None:
        """Continue in another folder."""
        if self._file is not None:
            self._file.path = folder / METRICS

    def message(self, text: str) -> None:
        """Print a line above the progress display. `text` is printed literally, brackets included."""
        text = well_formed(text)
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)  # no line breaks in a log file

    def attempt(self, what: str, call: Callable[[], T]) -> T | None:
        """Do something that training does not need. A failure is one line, and the result None.

        `what` is a noun phrase, such as "Writing samples.txt". The same failure is printed once until it has succeeded again.
        """
        try:
            result = call()
        except Exception as error:
            reason = describe_error(error)
            if self._failures.get(what) != reason:
                self._failures[what] = reason
                self.message(f"{what} failed ({reason}); training is not affected.")
            return None
        self._failures.pop(what, None)
        return result


def describe_error(error: BaseException) -> str:
    """The reason of a failure in a few words: that of the disk, our own sentence, or the exception's first line."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    words = (str(error).strip() or "no message").splitlines()[0]
    return words.removesuffix(".") if isinstance(error, UserError) else f"{type(error).__name__}: {words[:200]}"


@dataclass(frozen=True)
class Status:
    """The state of training that the progress display shows."""

    loss: float  # the optimized loss over the last logging interval
    smoothed_loss: float
    grad_norm: float  # before clipping
    learning_rate: float
    tokens_per_second: float  # all tokens that the model reads
    trained_per_second: float  # supervised tokens
    memory: int  # bytes; 0 if unknown
    data_wait_fraction: float = 0.0  # of the time that steps wait for their examples

    def items(self) -> list[StatusItem]:
        """The values to display, most important first."""
        items = [
            StatusItem("loss ", f"{self.loss:.3f}"),
            StatusItem("smoothed ", f"{self.smoothed_loss:.3f}"),
            StatusItem("gradient norm ", f"{self.grad_norm:.2f}" if self.grad_norm < 1000 else f"{self.grad_norm:.1e}"),
            StatusItem("learning rate ", f"{self.learning_rate:.1e}"),
            StatusItem("", _rate(self.tokens_per_second), " tokens/s"),
            StatusItem("", _rate(self.trained_per_second), " supervised/s"),
        ]
        if self.memory:
            items.append(StatusItem("memory ", format_size(self.memory)))
        if self.data_wait_fraction > MIN_WAIT_FRACTION:
            items.append(StatusItem("waiting for data ", f"{self.data_wait_fraction:.0%}"))
        return items


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if math.isfinite(per_second) else "?"


# metrics.jsonl


def read_metrics(folder: Path) -> Iterator[dict[str, float]]:
    """The lines of a run's metrics.jsonl, {"step", "time", name: value, …}; none if there is no file.

    Damaged lines, and the incomplete one that a killed process leaves, are skipped.
    """
    return (metrics for _, metrics in _complete_lines(folder / METRICS))


def keep_metrics_until(folder: Path, step: int, evaluated: bool = True) -> None:
    """Before a run resumes at `step`, drop the later lines, which a killed process wrote after its last checkpoint.

    Without `evaluated` the resumed run begins with the evaluation of `step`, so a line of that evaluation is dropped as well.
    The file is replaced atomically, so a kill loses nothing. Raises UserError if it cannot be written.
    """
    path = folder / METRICS
    if path.is_file():
        lines = [
            line
            for line, metrics in _complete_lines(path)
            if metrics["step"] < step
            or (metrics["step"] == step and (evaluated or not any(name.endswith("/val_loss") for name in metrics)))
        ]
        atomic_write_text(path, "".join(f"{line}\n" for line in lines))


_Metrics = dict[str, Annotated[float, Strict()]]
MAX_LINE = 2**16
"""Bytes in a line; a step with 100 metrics has 5,000. A file without line ends, such as one of zeros, is never read as a whole."""


def _complete_lines(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Lines with the metrics of a step, as text and parsed."""
    if not path.is_file():
        return
    continued = False
    with readable_disk_errors(path), open(path, "rb") as file:
        while data := file.readline(MAX_LINE):
            begun, continued = continued, len(data) == MAX_LINE and not data.endswith(b"\n")
            if begun or continued:
                continue
            try:
                metrics = parse_json(data, cast(type[dict[str, float]], _Metrics), str(path), "the line is skipped")
            except DamagedJSON:
                continue
            if 0 <= (step := metrics.get("step", -1.0)) < 2**53 and step.is_integer():
                yield data.decode("utf-8").rstrip("\r\n"), metrics | {"step": int(step)}


class MetricsFile:
    """metrics.jsonl, open for new lines. The file is made again if it has been deleted. Raises UserError if it can't be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with readable_disk_errors(path):
            self._file = self._open()

    def append(self, line: str) -> None:
        """Write a line, in one piece. Raises OSError."""
        if self._file.closed or not self._is_in_place():
            self.close()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        try:
            written = self._file.write(line.encode("utf-8"))
            if written != len(line.encode("utf-8")):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self.close()  # opened again, it begins a new line
            raise

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def _open(self) -> FileIO:
        """An incomplete line at the end of the file, left by a killed process or a full disk, is terminated first."""
        file = FileIO(self.path, "a+")
        try:
            if size := file.seek(0, os.SEEK_END):
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")
        except OSError:
            file.close()
            raise
        return file
