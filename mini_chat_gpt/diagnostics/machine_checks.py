"""Checks of the machine before training, as findings in words. Nothing here trains, and nothing raises."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mini_chat_gpt.common.device import pick_device, pick_precision
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import existing_folder
from mini_chat_gpt.common.terminal import format_size
from mini_chat_gpt.common.writable import require_writable
from mini_chat_gpt.config import Config
from mini_chat_gpt.training.compile import choose_compiling
from mini_chat_gpt.training.wandb_run import choose_mode


@dataclass(frozen=True)
class Finding:
    """The result of one check: "ok", "note" (works, but could be better) or "error" (training can't start)."""

    level: Literal["ok", "note", "error"]
    about: str
    what: str


def machine_findings(config: Config, steps: int) -> Iterator[Finding]:
    """Check Python, PyTorch, device, precision, compilation, threads and wandb. `steps` is the length of the run."""
    yield Finding("ok", "Python", f"{platform.python_version()}, PyTorch {torch.__version__}")
    try:
        device = pick_device(config.system.device)
    except UserError as error:
        yield Finding("error", "device", str(error))
        return
    yield _device(device)
    try:
        yield Finding("ok", "precision", pick_precision(config.system.mixed_precision, device).reason)
    except UserError as error:
        yield Finding("error", "precision", str(error))
    compiling = choose_compiling(config.system.compile, device, steps)
    requested_but_off = config.system.compile is True and not compiling.on
    yield Finding("note" if requested_but_off else "ok", "compiling", compiling.reason)
    if device.type == "cpu":
        yield _threads(config)
    yield _wandb(config)


def _device(device: torch.device) -> Finding:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        count = torch.cuda.device_count()
        more = f"; {count} of them: torchrun --nproc_per_node={count} uses all" if count > 1 else ""
        return Finding("ok", "device", f"{properties.name}, {format_size(properties.total_memory)}{more}")
    return Finding("ok", "device", f"{device.type}, {os.cpu_count()} processors ({platform.machine()})")


def _threads(config: Config) -> Finding:
    threads = config.system.threads or torch.get_num_threads()
    others = [name for name in other_torch_processes() if name]
    if others and threads > 1:
        return Finding(
            "note", "threads",
            f"{threads}, but another process uses PyTorch as well ({others[0]}): two processes with several threads each can be "
            "ten times slower, because waiting threads spin. Set system.threads=1, or OMP_WAIT_POLICY=PASSIVE for both.",
        )  # fmt: skip
    return Finding("ok", "threads", str(threads))


def other_torch_processes() -> Iterator[str]:
    """Yield the command lines of other running processes with PyTorch loaded and several threads (Linux only)."""
    own_pids = {os.getpid(), os.getppid()}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text(encoding="utf-8", errors="replace")
            threads = int(status.partition("Threads:")[2].split()[0])
            if int(folder.name) in own_pids or threads < 2 or "\nState:\tR" not in status:
                continue
            if "libtorch" in (folder / "maps").read_text(encoding="utf-8", errors="replace"):
                yield " ".join((folder / "cmdline").read_text(errors="replace").split("\0"))[:60].strip()
        except (OSError, ValueError, IndexError):
            continue  # the process has ended, or belongs to another user


def _wandb(config: Config) -> Finding:
    mode, note = choose_mode(config.wandb)
    return Finding("ok", "wandb", note or mode)


def disk_finding(folder: Path, checkpoint: int, kept: int) -> Finding:
    """Check that the checkpoints fit on the disk: `kept` of them, the best one, and the one being written."""
    place = existing_folder(folder.absolute())
    needed, free = (kept + 2) * checkpoint, shutil.disk_usage(place).free
    words = f"{format_size(free)} free at {place}; checkpoints of {format_size(checkpoint)} take up to {format_size(needed)}"
    try:
        require_writable(folder)
    except UserError as error:
        return Finding("error", "disk", str(error))
    if free < needed:
        return Finding("error", "disk", f"{words}: free some space, or lower training.keep_checkpoints")
    return Finding("ok", "disk", words)
