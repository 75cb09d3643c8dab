"""What a run reports: metrics.jsonl always, wandb if enabled, and messages in the terminal.

All of them get the same metrics with the same names. If several processes train, only the monitor of rank 0 is active.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import string
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from rich.console import Console

from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.common.terminal import StatusItem, format_size
from mini_chat_gpt.config import WandbSection

METRICS = "metrics.jsonl"
MIN_WAIT_FRACTION = 0.02
"""Fraction of the time spent waiting for data from which on the display shows it."""

WandbMode = Literal["online", "offline", "disabled"]


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
        console: Console | None = None,
        run_id: str | None = None,
        active: bool = True,
    ) -> None:
        self.console = (console or Console(highlight=False)) if active else Console(quiet=True)
        self._wandb = start_wandb(wandb, folder, settings, self.console, run_id) if active else None
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
        """Print a line above the progress display. `text` is printed literally, brackets included."""
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)  # no line breaks in a log file


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

    Incomplete lines, which a killed process leaves, are skipped.
    """
    return (metrics for _, metrics in _complete_lines(folder / METRICS))


def keep_metrics_until(folder: Path, step: int) -> None:
    """Before a run resumes at `step`, drop the later lines, which a killed process wrote after its last checkpoint.

    The file is replaced atomically, so a kill loses nothing. Raises UserError if it cannot be written.
    """
    path = folder / METRICS
    if path.is_file():
        lines = [line for line, metrics in _complete_lines(path) if metrics["step"] <= step]
        atomic_write_text(path, "".join(f"{line}\n" for line in lines))


def _complete_lines(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Lines with the metrics of a step, as text and parsed."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                metrics = json.loads(line)
            except ValueError:
                continue
            if isinstance(metrics, dict) and isinstance(metrics.get("step"), int):
                yield line.rstrip("\n"), metrics


def _open_to_append(path: Path) -> TextIO:
    """Open a file for new lines. An incomplete line at its end, left by a killed process, is terminated first."""
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    return open(path, "a", encoding="utf-8")


# wandb


class WandbRun:
    """A started wandb run. Neither `log` nor `finish` ever raises: a failure of wandb must not end the training."""

    def __init__(self, run: Any, console: Console) -> None:
        self._run, self._console = run, console

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics at their optimizer step."""
        self._guarded(lambda: self._run.log(dict(metrics), step=step))

    def finish(self, failed: bool) -> None:
        """Finish the run; it can be resumed later."""
        self._guarded(lambda: self._run.finish(exit_code=1 if failed else 0))

    def _guarded(self, call: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            call()
        except Exception as error:  # wandb's own process was killed, its folder was deleted, …
            self._run = None
            self._console.print(
                f"wandb has failed ({type(error).__name__}); metrics are still written to {METRICS}.", markup=False
            )


def new_run_id() -> str:
    """A random id for a wandb run, in wandb's own format. It does not depend on any seed."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def start_wandb(
    section: WandbSection, folder: Path, settings: dict[str, Any], console: Console, run_id: str | None = None
) -> WandbRun | None:
    """Start or resume a wandb run; None if wandb is disabled or fails to start, in which case a message is printed.

    A resumed run keeps its id and logs by optimizer step, so its parts form one curve. wandb ignores steps that it has
    already: those that a killed process logged after its last checkpoint.
    """
    mode = wandb_mode(section)
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb  # here, because it takes a second

        run = wandb.init(
            mode=mode,
            project=section.project,
            name=section.name or folder.name,
            dir=str(folder),
            config=settings,
            allow_val_change=True,  # a resumed run may have other settings
            settings=wandb.Settings(init_timeout=20, silent=True, console="off"),
            id=run_id,
            resume="allow" if run_id else None,
        )
        return WandbRun(run, console)
    except Exception as error:  # whatever goes wrong in wandb, training must start
        console.print(f"wandb ({mode}) failed to start ({type(error).__name__}); using only {METRICS}.", markup=False)
        return None


def wandb_mode(section: WandbSection) -> WandbMode:
    """The mode to use: "auto" means online with an account and a network, otherwise offline. WANDB_MODE overrides "auto"."""
    if not section.enabled:
        return "disabled"
    if section.mode != "auto":
        return section.mode
    mode = os.environ.get("WANDB_MODE")
    if mode in ("online", "offline", "disabled"):
        return cast(WandbMode, mode)
    reachable = has_wandb_account() and can_connect(os.environ.get("WANDB_BASE_URL", "api.wandb.ai"))
    return "online" if reachable else "offline"


def has_wandb_account() -> bool:
    """Whether an API key is configured. Does not import wandb."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "wandb" in netrc.read_text(encoding="utf-8")
    except OSError:
        return False


def can_connect(address: str, seconds: float = 3.0) -> bool:
    """Whether a server answers at an address such as "api.wandb.ai" or "http://127.0.0.1:8080"."""
    host = address.split("://")[-1].split("/")[0]
    name, _, port = host.partition(":")
    try:
        with socket.create_connection((name, int(port or 443)), timeout=seconds):
            return True
    except (OSError, ValueError):
        return False
