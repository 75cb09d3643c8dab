"""The folder of a run: which one a run uses, its lock, and its metadata in run.json.

This is the only module that decides between a new folder and an existing one. A folder that contains a run is never
overwritten. Processes that torchrun restarts find the folder that they started with.

run.json records the provenance of a run: versions, machine, code, command, data and tokenizer. The settings are in
config.yaml next to it. Collecting it takes milliseconds, whatever the size of the data; unknown values are left out.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import torch

from mini_chat_gpt import __version__
from mini_chat_gpt.checkpoints.find import find_checkpoint, is_checkpoint, read_state, steps_of
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import readable_disk_errors
from mini_chat_gpt.config import PretrainSection, SFTSection

METADATA = "run.json"
RESULT = "result.json"
LOCK = ".lock"
PIECE = 2**20
"""Bytes in each of the three pieces of a data file that are hashed."""

_PACKAGES = (
    "torch", "numpy", "tiktoken", "rustbpe", "safetensors", "pydantic", "pyyaml", "wandb", "rich",
)  # fmt: skip
_SOURCE = Path(__file__).parent.parent


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
    folders = {1: first} if first.is_dir() else {}
    for folder in first.parent.glob(f"{first.name}-*"):
        if match := re.fullmatch(re.escape(first.name) + r"-(\d+)", folder.name):
            folders[int(match[1])] = folder
    yield from (folders[number] for number in sorted(folders, reverse=True))


def _launched_by(folder: Path, launch: str) -> bool:
    return read_metadata(folder).get("launch") == launch and not is_finished(folder)


def contains_run(folder: Path) -> bool:
    """Whether the folder contains a trained or imported model. A run that stopped before its first checkpoint does not count."""
    return is_checkpoint(folder) or is_finished(folder) or bool(steps_of(folder))


def is_finished(folder: Path) -> bool:
    """Whether the run in this folder has finished."""
    return (folder / RESULT).is_file()


def free_run_folder(save_dir: Path | str) -> Path:
    """`save_dir`, or the first of `save_dir`-2, `save_dir`-3, … without a run: a run is never overwritten."""
    first = Path(save_dir)
    number, folder = 1, first
    while contains_run(folder) or is_locked(folder):
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


# The lock


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run folder within the block. Raises UserError if another process is training in it, or if it can't be written."""
    with readable_disk_errors(folder / LOCK):
        file = open(folder / LOCK, "a", encoding="utf-8")
    with file:
        try:
            locked_by_another = not _lock(file)
        except OSError as error:  # some network file systems have no locks
            reason = (error.strerror or str(error)).lower()
            warnings.warn(
                f"{folder} can't be locked ({reason}), so nothing prevents a second process from training in it.",
                stacklevel=3,
            )
            locked_by_another = False
        if locked_by_another:
            raise UserError(f"Another process is training in {folder}; wait for it, or stop it first.")
        yield


def is_locked(folder: Path) -> bool:
    """Whether another process is training in this folder."""
    try:
        with open(folder / LOCK, "a", encoding="utf-8") as file:
            return not _lock(file)
    except OSError:
        return False


def _lock(file: TextIO) -> bool:
    """Lock an open file until it is closed or the process ends; False if another process has locked it. No-op on Windows.

    Raises OSError if the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike a lock of flock, worker processes do not inherit it
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


# Metadata


def read_metadata(folder: Path) -> dict[str, Any]:
    """The run.json of a run folder; empty if it is missing or unreadable."""
    try:
        return json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def collect_provenance(data_files: Sequence[Path], tokenizer_fingerprint: str) -> dict[str, Any]:
    """Provenance of a run that starts now, as JSON values. Raises UserError if a data file cannot be read."""
    provenance: dict[str, Any] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "folder": os.getcwd(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": _versions(),
        "tokenizer": tokenizer_fingerprint,
        "data": [file_fingerprint(path) for path in data_files],
    }
    if torch.cuda.is_available():
        provenance["gpus"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        provenance["cuda"] = torch.version.cuda
    if git := git_state(_SOURCE):
        provenance["git"] = git
    return provenance


def provenance_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Sentences about changes that matter to a resumed run. Values that were not recorded are skipped.

    A moved file with the same content is not a change. Sentences begin with a lowercase letter, to follow other words.
    """
    changes = _data_changes(old.get("data"), new.get("data"))
    if _differ(old.get("tokenizer"), new.get("tokenizer")):
        changes.append("the tokenizer is different, so the same ids stand for other text.")
    old_torch, new_torch = ((provenance.get("packages") or {}).get("torch") for provenance in (old, new))
    if _differ(old_torch, new_torch):
        changes.append(f"PyTorch is {new_torch} instead of {old_torch}; numbers may differ in their last digits.")
    return changes


def _data_changes(old: Sequence[Mapping[str, Any]] | None, new: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if old is None or new is None:
        return []
    if len(old) != len(new):
        old_paths, new_paths = (", ".join(str(file.get("path")) for file in files) for files in (old, new))
        return [f"there are {len(new)} data files ({new_paths}) instead of {len(old)} ({old_paths})."]
    changes = []
    for old_file, new_file in zip(old, new, strict=True):
        name, sizes = f"the data file {new_file.get('path')}", (old_file.get("size"), new_file.get("size"))
        if _differ(*sizes):
            changes.append(f"{name} has {sizes[1]:,} bytes instead of {sizes[0]:,}.")
        elif _differ(old_file.get("sha256_of_pieces"), new_file.get("sha256_of_pieces")):
            changes.append(f"{name} has the same size but different content.")
    return changes


def _differ(old: object, new: object) -> bool:
    return old is not None and new is not None and old != new


def file_fingerprint(path: Path) -> dict[str, Any]:
    """Path, size, and the sha256 of three pieces of a file: its first, middle and last MiB.

    A file of up to three MiB is hashed as a whole. In a larger file, a change between the pieces that keeps the size is not
    noticed. Otherwise every start would read gigabytes. Raises UserError if the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= 3 * PIECE:
                digest.update(file.read())
            else:
                for start in (0, (size - PIECE) // 2, size - PIECE):
                    file.seek(start)
                    digest.update(file.read(PIECE))
    except OSError as error:
        raise UserError(f"The data file {path} can't be read ({(error.strerror or str(error)).lower()}).") from None
    return {"path": str(path.resolve()), "size": size, "sha256_of_pieces": digest.hexdigest()}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the git repository that contains `folder`, and the files of the folder that differ from it.

    None without git, outside a repository, and for a folder that is not tracked by the repository around it, such as a
    package installed within another project.
    """
    if not _git(folder, "ls-files", "."):
        return None
    status = _git(folder, "status", "--porcelain=v1", "--untracked-files=all", ".")
    commit = _git(folder, "rev-parse", "HEAD")
    if status is None or not commit:
        return None
    changed = [line[3:] for line in status.splitlines()]
    return {"commit": commit.strip(), "dirty": bool(changed), "changed": changed}


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of git, None if it fails. Optional locks are off, so that it does not disturb other git processes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # set within hooks
    try:
        completed = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout if completed.returncode == 0 else None


def _versions() -> dict[str, str]:
    """Versions of the installed packages that a run depends on."""
    # Not from the installed metadata: a clone runs without being installed, or has changed since.
    versions = {"mini-chat-gpt": __version__}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    return versions | {"torch": str(torch.__version__)}


def _processor() -> str:
    """Model name of the CPU, if the system reports it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
