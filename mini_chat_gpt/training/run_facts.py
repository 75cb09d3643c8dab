"""What a run was made with, so that it can be made again: versions, machine, code, command, data, tokenizer.

The settings stand beside it in the run's config.yaml. Everything is found in milliseconds, whatever the size of the data, and
what can't be found is left out.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from mini_chat_gpt.common.errors import UserError

PIECE = 2**20
"""Bytes of each of the three pieces by which a file is known."""

_PACKAGES = (
    "mini-chat-gpt", "torch", "numpy", "tiktoken", "rustbpe", "safetensors", "pydantic", "pyyaml", "wandb", "rich",
)  # fmt: skip
_SOURCE = Path(__file__).parent.parent


def collect(data_files: Sequence[Path], tokenizer_fingerprint: str) -> dict[str, Any]:
    """Facts about a run that begins now, of types that JSON has. Raises UserError for data that can't be read."""
    facts: dict[str, Any] = {
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
        "data": [file_facts(path) for path in data_files],
    }
    if torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        facts["cuda"] = torch.version.cuda
    if git := git_state(_SOURCE):
        facts["git"] = git
    return facts


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Sentences on what has changed in a way that matters to a run that goes on; what was not recorded is passed over.

    A file that has moved and is the same is no change. A sentence begins with a small letter, to follow other words.
    """
    sentences = _data_differences(old.get("data"), new.get("data"))
    if _differ(old.get("tokenizer"), new.get("tokenizer")):
        sentences.append("the tokenizer is another one, so the same ids stand for other text.")
    before, now = ((facts.get("packages") or {}).get("torch") for facts in (old, new))
    if _differ(before, now):
        sentences.append(f"PyTorch is {now} instead of {before}; numbers may differ in their last digits.")
    return sentences


def _data_differences(old: Sequence[Mapping[str, Any]] | None, new: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if old is None or new is None:
        return []
    if len(old) != len(new):
        before, now = (", ".join(str(file.get("path")) for file in files) for files in (old, new))
        return [f"the data are in {len(new)} files ({now}) instead of {len(old)} ({before})."]
    sentences = []
    for was, is_now in zip(old, new, strict=True):
        name, sizes = f"the data file {is_now.get('path')}", (was.get("size"), is_now.get("size"))
        if _differ(*sizes):
            sentences.append(f"{name} has {sizes[1]:,} bytes instead of {sizes[0]:,}.")
        elif _differ(was.get("sha256_of_pieces"), is_now.get("sha256_of_pieces")):
            sentences.append(f"{name} has another content of the same size.")
    return sentences


def _differ(old: object, new: object) -> bool:
    return old is not None and new is not None and old != new


def file_facts(path: Path) -> dict[str, Any]:
    """Path, size, and the sha256 of three pieces of a file: its first, middle and last MiB, one after the other.

    A file of up to three MiB is taken whole. In a larger one a change that keeps the size and lies between the pieces is not
    noticed; that is the price of not reading gigabytes at every start. Raises UserError for a file that can't be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= 3 * PIECE:
                digest.update(file.read())
            else:
                for begin in (0, (size - PIECE) // 2, size - PIECE):
                    file.seek(begin)
                    digest.update(file.read(PIECE))
    except OSError as error:
        raise UserError(f"The data file {path} can't be read ({(error.strerror or str(error)).lower()}).") from None
    return {"path": str(path.resolve()), "size": size, "sha256_of_pieces": digest.hexdigest()}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the git tree in which `folder` lies, whether anything in the folder differs from it, and which files.

    None where git is missing, where there is no such tree, and where the folder lies in one but isn't part of it, as
    a package does that is installed inside of somebody's project.
    """
    if not _git(folder, "ls-files", "."):
        return None
    status = _git(folder, "status", "--porcelain=v1", "--untracked-files=all", ".")
    commit = _git(folder, "rev-parse", "HEAD")
    if status is None or not commit:
        return None
    changed = [line[3:] for line in status.splitlines()]
    return {"commit": commit.strip(), "dirty": bool(changed), "changed": changed}


def _git(folder: Path, *words: str) -> str | None:
    """What git prints, None where it fails. It takes no locks, so that it stands in no other git's way."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as a hook would set
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
            env=ours | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    """Of the packages that a run depends on, those that are installed."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # ours, where the code runs without having been installed
            continue
    return versions | {"torch": str(torch.__version__)}


def _processor() -> str:
    """The processor's name as its maker writes it, where the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
