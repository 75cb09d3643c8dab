"""What a run tells the outside: metrics.jsonl always, wandb where wanted, and a line or bar in the terminal.

Metrics go to both places with the same names and values. wandb never asks a question: without an account or a network
the run is kept offline in the run folder (`wandb sync` sends it later).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, Literal, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mini_chat_gpt.config import WandbSection

METRICS = "metrics.jsonl"
WandbMode = Literal["online", "offline", "disabled"]


class Monitor:
    """Records metrics of one run and shows its progress. Use as a context manager."""

    def __init__(
        self, folder: Path, wandb: WandbSection, settings: dict[str, Any], console: Console | None = None
    ) -> None:
        self.console = console or Console(stderr=False, highlight=False)
        self.file = open(folder / METRICS, "a", encoding="utf-8")  # closed in __exit__
        self.run = start_wandb(wandb, folder, settings, self.console)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.file.close()
        if self.run is not None:
            self.run.finish(exit_code=0 if kind is None else 1)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics of an optimizer step (counted from 1)."""
        self.file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | metrics) + "\n")
        self.file.flush()
        if self.run is not None:
            self.run.log(metrics, step=step)

    def message(self, text: str) -> None:
        """A line above the progress bar. `text` is shown as it is, brackets and all."""
        self.console.print(text, markup=False)


def keep_metrics_until(folder: Path, step: int) -> None:
    """Before going on from `step`, drop the lines a killed run wrote after its last checkpoint."""
    path = folder / METRICS
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # a line cut off by the kill
    path.write_text("".join(kept), encoding="utf-8")


def start_wandb(section: WandbSection, folder: Path, settings: dict[str, Any], console: Console) -> Any:
    """A wandb run, or None when it is switched off or can't be had; never a question, never a failure of training."""
    mode = wandb_mode(section)
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    options: dict[str, Any] = {
        "project": section.project,
        "name": section.name or folder.name,
        "dir": str(folder),
        "config": settings,
        "settings": wandb.Settings(init_timeout=20, silent=True, console="off"),
    }
    try:
        return wandb.init(mode=mode, **options)
    except Exception as error:  # monitoring must not end a training run, whatever goes wrong inside it
        console.print(f"wandb: {mode} did not work ({type(error).__name__}); keeping metrics.jsonl only.", markup=False)
        return None


def wandb_mode(section: WandbSection) -> WandbMode:
    """ "online" only where an account and the network are there; WANDB_MODE of the environment wins."""
    if not section.enabled:
        return "disabled"
    if section.mode != "auto":
        return section.mode
    asked = os.environ.get("WANDB_MODE")
    if asked in ("online", "offline", "disabled"):
        return cast(WandbMode, asked)
    return (
        "online" if has_wandb_account() and can_reach(os.environ.get("WANDB_BASE_URL", "api.wandb.ai")) else "offline"
    )


def has_wandb_account() -> bool:
    """Whether an API key is set up, without importing wandb."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "wandb" in netrc.read_text(encoding="utf-8")
    except OSError:
        return False


def can_reach(address: str, seconds: float = 3.0) -> bool:
    host = address.split("://")[-1].split("/")[0]
    name, _, port = host.partition(":")
    try:
        with socket.create_connection((name, int(port or 443)), timeout=seconds):
            return True
    except (OSError, ValueError):
        return False


class StepProgress:
    """Progress over a known number of steps: a bar in a terminal, else a line every few seconds."""

    def __init__(self, console: Console, title: str, done: int, total: int, every_seconds: float = 10.0) -> None:
        self.console, self.title, self.total = console, title, total
        self.first, self.started, self.every = done, time.monotonic(), every_seconds
        self.last_line = self.started
        self.bar: Progress | None = None
        if console.is_terminal and sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[facts]}"))
            self.bar = Progress(*columns, console=console, transient=True)
            self.task = self.bar.add_task(title, total=total, completed=done, facts="")

    def __enter__(self) -> StepProgress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: int, facts: str, share: float | None = None) -> None:
        """`done` of `total` steps are finished; `facts` says how it goes.

        Where steps differ in size, `share` says how much of the work that is, from 0 to 1, for a better time left.
        """
        now = time.monotonic()
        part = share if share is not None else (done - self.first) / max(1, self.total - self.first)
        left = (now - self.started) * (1 - part) / part if part else 0.0
        text = f"{done}/{self.total}  {facts}  {clock(left)} left"
        if self.bar is not None:
            self.bar.update(self.task, completed=done, facts=text)
        elif now - self.last_line >= self.every or done == self.total:
            self.last_line = now
            self.console.print(f"{self.title} {text}", markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """3725 → "1:02:05", 65 → "1:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
