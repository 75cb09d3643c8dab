"""Where a run lives, and where it goes on: the one place that decides between a new folder and an old one.

A folder with a run in it is never overwritten. Processes that torchrun starts again find the folder that they began.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mini_chat_gpt.checkpoints.find import find_checkpoint, is_checkpoint, read_state, steps_of
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import PretrainSection, SFTSection

FACTS = "run.json"
RESULT = "result.json"
LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, and the checkpoint in it to go on from (None: begin)."""

    folder: Path
    checkpoint: Path | None = None


def run_to_go_on(section: SFTSection | PretrainSection, launch: str | None = None) -> Path | None:
    """The run folder that `resume_from` means, None for a new run. `launch` names the call of torchrun (`World.launch`)."""
    asked, family = section.resume_from, _family(section.save_dir)
    if asked == "auto":
        return next((folder for folder in family if steps_of(folder) and not is_finished(folder)), None)
    if asked is not None:
        path = Path(asked)
        return path.parent if is_checkpoint(path) or path.name in ("best", "last") else path
    return next((folder for folder in family if launch and _began_by(folder, launch)), None)


def find_place(section: SFTSection | PretrainSection, launch: str | None = None) -> RunFolder:
    """What `resume_from` and `save_dir` come to. Raises UserError if there is nothing to go on from, or nothing whole."""
    asked, run = section.resume_from, run_to_go_on(section, launch)
    if run is None:
        return RunFolder(free_run(section.save_dir))
    if asked in (None, "auto") and not steps_of(run):
        return RunFolder(run)
    checkpoint = find_checkpoint(run if asked in (None, "auto") else asked, prefer="last")
    read_state(checkpoint)  # says so if it can't be continued
    return RunFolder(checkpoint.parent, checkpoint)


def _family(save_dir: str) -> Iterator[Path]:
    """`save_dir`-3, `save_dir`-2, `save_dir`: those that exist, newest first."""
    first = Path(save_dir)
    found = {1: first} if first.is_dir() else {}
    for folder in first.parent.glob(f"{first.name}-*"):
        if match := re.fullmatch(re.escape(first.name) + r"-(\d+)", folder.name):
            found[int(match[1])] = folder
    yield from (found[number] for number in sorted(found, reverse=True))


def _began_by(folder: Path, launch: str) -> bool:
    return read_facts(folder).get("launch") == launch and not is_finished(folder)


def read_facts(folder: Path) -> dict[str, Any]:
    """The run.json of a run folder; empty where there is none that can be read."""
    try:
        return json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def holds_run(folder: Path) -> bool:
    """Whether something was trained or imported here; a start that never reached a checkpoint doesn't count."""
    return is_checkpoint(folder) or is_finished(folder) or bool(steps_of(folder))


def is_finished(folder: Path) -> bool:
    """Whether the run in this folder came to its end."""
    return (folder / RESULT).is_file()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """While the block lasts no other process trains in this folder. Raises UserError if one does already."""
    with open(folder / LOCK, "a", encoding="utf-8") as file:
        if not _lock(file):
            raise UserError(f"Another process is training in {folder} at this moment; wait for it, or stop it first.")
        yield


def is_held(folder: Path) -> bool:
    """Whether another process is training in this folder."""
    try:
        with open(folder / LOCK, "a", encoding="utf-8") as file:
            return not _lock(file)
    except OSError:
        return False


def _lock(file: TextIO) -> bool:
    """Lock an open file until it is closed or its process is gone; False if somebody else has. (Not on Windows.)"""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by worker processes
    except OSError:
        return False
    return True


def free_run(save_dir: Path | str) -> Path:
    """`save_dir`, or with -2, -3, … the first that holds no run yet: a run is never overwritten."""
    first = Path(save_dir)
    number, folder = 1, first
    while holds_run(folder) or is_held(folder):
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder
