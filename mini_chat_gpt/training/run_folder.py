"""The folder of a run: which one a run uses, and its lock.

This is the only module that decides between a new folder and an existing one. A folder that contains a run is never
overwritten. Processes that torchrun restarts find the folder that they started with.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mini_chat_gpt.checkpoints.find import find_checkpoint, is_checkpoint, read_state, steps_of
from mini_chat_gpt.checkpoints.hf_folder import is_hf_folder
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import lock_file, readable_disk_errors
from mini_chat_gpt.config import PretrainSection, SFTSection
from mini_chat_gpt.training.provenance import read_metadata

RESULT = "result.json"
LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, and the checkpoint in it to resume from (None for a new run)."""

    folder: Path
    checkpoint: Path | None = None


def run_to_resume(section: SFTSection | PretrainSection, launch: str | None = None) -> Path | None:
    """The run folder that `resume_from` names; None for a new run. `launch` identifies the torchrun call (`World.launch`)."""
    resume_from, runs = section.resume_from, _numbered_runs(section.save_dir)
    if resume_from == "auto":
        return next((folder for folder in runs if steps_of(folder) and not is_finished(folder)), None)
    if resume_from is not None:
        path = Path(resume_from)
        return path.parent if is_checkpoint(path) or path.name in ("best", "last") else path
    return next((folder for folder in runs if launch and _launched_by(folder, launch)), None)


def find_run_folder(section: SFTSection | PretrainSection, launch: str | None = None) -> RunFolder:
    """Resolve `resume_from` and `save_dir`. Raises UserError if there is no undamaged checkpoint to resume from."""
    resume_from, run = section.resume_from, run_to_resume(section, launch)
    if run is None:
        return RunFolder(free_run_folder(section.save_dir))
    if resume_from in (None, "auto") and not steps_of(run):
        return RunFolder(run)
    checkpoint = find_checkpoint(run if resume_from in (None, "auto") else resume_from, prefer="last", recheck=True)
    read_state(checkpoint)  # raises UserError if the checkpoint has no training state
    return RunFolder(checkpoint.parent, checkpoint)


def _numbered_runs(save_dir: str) -> Iterator[Path]:
    """The existing folders among `save_dir`, `save_dir`-2, `save_dir`-3, …, newest first."""
    first = Path(save_dir)
    folders = {1: first} if os.path.isdir(first) else {}
    try:
        names = os.listdir(first.parent)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise UserError(
            f"{first.parent} can't be read ({(error.strerror or str(error)).lower()}); check the path."
        ) from None
    for name in names:
        if match := re.fullmatch(re.escape(first.name) + r"-([1-9][0-9]{0,8})", name):
            folders[int(match[1])] = first.with_name(name)
    yield from (folders[number] for number in sorted(folders, reverse=True))


def _launched_by(folder: Path, launch: str) -> bool:
    return read_metadata(folder).get("launch") == launch and not is_finished(folder)


def contains_run(folder: Path) -> bool:
    """Whether the folder contains a model, trained here or elsewhere. A run that stopped before its first checkpoint does not count."""
    return is_checkpoint(folder) or is_hf_folder(folder) or is_finished(folder) or bool(steps_of(folder))


def is_finished(folder: Path) -> bool:
    """Whether the run in this folder has finished."""
    return os.path.isfile(folder / RESULT)


def free_run_folder(save_dir: Path | str, skip_files: bool = False) -> Path:
    """`save_dir`, or the first of `save_dir`-2, `save_dir`-3, … without a run: a run is never overwritten.

    With `skip_files`, neither one that is a file.
    """
    first = Path(save_dir) if Path(save_dir).name else Path(save_dir).resolve()  # "." has no name
    if not first.name:
        raise UserError(f"A run can't be saved in {first}; name a folder in it with save_dir.")
    number, folder = 1, first
    while (skip_files and _is_no_folder(folder)) or contains_run(folder) or is_locked(folder):
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


def _is_no_folder(path: Path) -> bool:
    return os.path.lexists(path) and not os.path.isdir(path)


# The lock


class RunLock:
    """The lock of a run folder, held by this process. Raises UserError if another one has it, or if it can't be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = _open_locked(folder)

    def is_in_place(self) -> bool:
        """Whether the folder still has this lock: it may have been deleted, and made again by another process."""
        try:
            return os.path.samestat(os.stat(self.folder / LOCK), os.fstat(self._file.fileno()))
        except (OSError, ValueError):
            return False

    def move(self, folder: Path) -> None:
        """Lock this folder instead, which is made if necessary."""
        file = _open_locked(folder)
        self._file.close()
        self.folder, self._file = folder, file

    def release(self) -> None:
        self._file.close()


def _open_locked(folder: Path) -> TextIO:
    with readable_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with readable_disk_errors(folder / LOCK):
        file = open(folder / LOCK, "a", encoding="utf-8")
    try:
        if not lock_file(file):
            file.close()
            raise UserError(f"Another process is training in {folder}; wait for it, or stop it first.")
    except OSError as error:  # some network file systems have no locks
        reason = (error.strerror or str(error)).lower()
        warnings.warn(
            f"{folder} can't be locked ({reason}), so nothing prevents a second process from training in it.",
            stacklevel=3,
        )
    return file


@contextmanager
def locked(folder: Path) -> Iterator[RunLock]:
    """Lock a run folder within the block; it is made if necessary. Raises the errors of `RunLock`."""
    lock = RunLock(folder)
    try:
        yield lock
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether another process is training in this folder."""
    try:
        with open(folder / LOCK, "a", encoding="utf-8") as file:
            return not lock_file(file)
    except OSError:
        return False
