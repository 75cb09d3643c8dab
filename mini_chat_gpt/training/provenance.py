"""run.json, the metadata of a run: versions, machine, code, command, data and tokenizer.

The settings are in config.yaml next to it. Collecting it takes milliseconds, whatever the size of the data; unknown values are
left out. It has no absolute path and no name of a user or a host, so a run folder can be given to others. Data files are found
again by a path relative to the run folder, or by their name, and by a hash, so a project can be moved or copied.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

import torch
from pydantic import ConfigDict, Field

from mini_chat_gpt import __version__
from mini_chat_gpt.checkpoints.find import ASIDE
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import free_name, readable_disk_errors
from mini_chat_gpt.common.json_files import DamagedJSON, JSONRecord, read_json

METADATA = "run.json"
PIECE = 2**20
"""Bytes in each of the three pieces of a data file that are hashed."""

_PACKAGES = (
    "torch", "numpy", "tiktoken", "rustbpe", "safetensors", "pydantic", "pyyaml", "wandb", "rich",
)  # fmt: skip
_SOURCE = Path(__file__).parent.parent


class DataFile(JSONRecord):
    """What a run recorded about one of its data files."""

    path: str | None = None
    """Relative to the run folder, if both are in the folder where the run was started. Absolute in runs of November 2026."""
    name: str | None = None
    size: int | None = None
    sha256_of_pieces: str | None = None


class Provenance(JSONRecord):
    """What `collect_provenance` has recorded, as far as it is read back."""

    model_config = ConfigDict(extra="allow")
    data: list[DataFile] | None = None
    tokenizer: str | None = None
    packages: dict[str, str] | None = None


class RunMetadata(JSONRecord):
    """The contents of run.json."""

    model_config = ConfigDict(extra="allow")
    launch: str | None = None
    wandb_id: str | None = None
    began: Provenance
    went_on: list[dict[str, Any]] = Field(default_factory=list)


def read_metadata(folder: Path) -> dict[str, Any]:
    """The run.json of a run folder; empty if it is missing or, with a warning, damaged."""
    try:
        return read_json(folder / METADATA, RunMetadata, "what it says about the run is not used").model_dump()
    except FileNotFoundError:
        return {}
    except DamagedJSON as error:
        warnings.warn(str(error), stacklevel=1)
        return {}


def keep_damaged_metadata(folder: Path) -> None:
    """Before a new run.json is written, keep one that can't be read under another name. Raises UserError."""
    file = folder / METADATA
    if file.exists() and not read_metadata(folder):
        with readable_disk_errors(file):
            file.rename(free_name(folder / f"{ASIDE}{METADATA}"))


def collect_provenance(data_files: Sequence[Path], tokenizer_fingerprint: str, run: Path) -> dict[str, Any]:
    """Provenance of a run that starts now in the folder `run`, as JSON values, without absolute paths and names of users or hosts.

    Raises UserError if a data file cannot be read.
    """
    provenance: dict[str, Any] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": portable_command(sys.orig_argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": _versions(),
        "tokenizer": tokenizer_fingerprint,
        "data": [file_fingerprint(path, run) for path in data_files],
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
        old_paths, new_paths = (", ".join(map(_name_of, files)) for files in (old, new))
        return [f"there are {len(new)} data files ({new_paths}) instead of {len(old)} ({old_paths})."]
    changes = []
    for old_file, new_file in zip(old, new, strict=True):
        name, sizes = f"the data file {_name_of(new_file)}", (old_file.get("size"), new_file.get("size"))
        if _differ(*sizes):
            changes.append(f"{name} has {sizes[1]:,} bytes instead of {sizes[0]:,}.")
        elif _differ(old_file.get("sha256_of_pieces"), new_file.get("sha256_of_pieces")):
            changes.append(f"{name} has the same size but different content.")
    return changes


def _name_of(file: Mapping[str, Any]) -> str:
    return str(file.get("name") or PurePath(file.get("path") or "?").name)


def _differ(old: object, new: object) -> bool:
    return old is not None and new is not None and old != new


def file_fingerprint(path: Path, run: Path) -> dict[str, Any]:
    """The fields of `DataFile`. The hash is the sha256 of three pieces of the file: its first, middle and last MiB.

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
    place, folder, here = (Path(os.path.abspath(each)) for each in (str(path), str(run), "."))
    together = place.is_relative_to(here) and folder.is_relative_to(
        here
    )  # otherwise the way would name folders outside
    relative = Path(os.path.relpath(str(place), str(folder))).as_posix() if together else None
    return {"path": relative, "name": place.name, "size": size, "sha256_of_pieces": digest.hexdigest()}


def find_data_file(record: Mapping[str, Any], run: Path, folders: Sequence[Path] = ()) -> Path | None:
    """The file that a run recorded, also if the project was moved or copied; None if it is gone or has changed.

    record: a `DataFile`. It is looked for where it was relative to the run folder, then by its name in `folders`.
    """
    name = _name_of(record)
    places = [run / record["path"]] if record.get("path") else []
    for place in [*places, *(folder / name for folder in folders)]:
        file = Path(os.path.normpath(os.path.abspath(place)))  # as it was computed, whatever is a link
        try:
            found = file_fingerprint(file, run) if file.stat().st_size == record.get("size") else {}
        except (OSError, UserError, ValueError):
            continue
        if found and not _differ(record.get("sha256_of_pieces"), found["sha256_of_pieces"]):
            return file
    return None


def portable_command(words: Sequence[str]) -> str:
    """The command line of a process as it can be typed elsewhere: without absolute paths, which name users and their folders."""
    program, *rest = words
    is_script = bool(rest) and not rest[0].startswith("-") and not rest[0].endswith(".py")  # an installed command
    shown = [PurePath(rest.pop(0) if is_script else program).name]
    for word in rest:
        key, equals, value = word.partition("=")
        if equals and os.path.isabs(value) and "," not in value:
            shown.append(f"{key}={_portable(value)}")
        elif os.path.isabs(word):
            shown.append(_portable(word))
        else:  # a path within a list, with commas or in brackets, or a mapping
            shown.append(re.sub(r"(?<![\w.:/~…-])/[^\s,\]}'\"]+", lambda match: _portable(match[0]), word))
    return shlex.join(shown)


def _portable(path: str) -> str:
    """A path relative to the working folder or to the home folder; of any other only its name."""
    folders = {"~": os.path.expanduser("~")}
    with suppress(OSError):  # the working folder has been deleted
        folders = {"": os.getcwd()} | folders
    for prefix, folder in folders.items():
        if os.path.isabs(folder) and folder != os.sep and PurePath(path).is_relative_to(folder):
            return str(PurePath(prefix, PurePath(path).relative_to(folder)))
    return f"…/{PurePath(path).name}"


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
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
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
