"""Memory and CPU time of this process, as a run displays them and as `doctor` compares its predictions with them, and memory
that is still free.

On a CPU, memory is the resident set, including Python and its libraries. On a GPU it is what PyTorch's allocator has
handed out. The driver shows more, because it also counts contexts and the allocator's cached blocks.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

CONTAINER = Path("/sys/fs/cgroup")
"""What the kernel says about the memory of the container that this process runs in (control groups, version 2)."""
CPU_TIMES = Path("/proc/stat")
"""How long the cores have been busy and idle, in Linux."""


def memory_in_use(device: torch.device | str) -> int:
    """Bytes in use now. Without /proc (macOS) this is the peak, the only value that the system reports; 0 if unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return _from_proc("VmRSS") or _max_resident_set()


def peak_memory(device: torch.device | str) -> int:
    """The largest number of bytes in use since the process began or since torch.cuda.reset_peak_memory_stats.

    MPS does not record a peak. The driver's current allocation is used instead, because the driver seldom returns memory.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return _from_proc("VmHWM") or _max_resident_set()


def total_memory(device: torch.device | str) -> int | None:
    """Bytes of memory of the GPU, or those that the machine or its container allows; None if unknown (Windows)."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        return min(total, int((CONTAINER / "memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no control groups, or no limit ("max")
        return total


def free_memory(device: torch.device | str) -> int | None:
    """Free bytes of the GPU, or of the machine or its container; None if the system does not report them."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        if sys.platform == "darwin":
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return None
    limit = _left_in_container()
    return min(available, limit) if limit is not None else available


def _left_in_container() -> int | None:
    """Bytes left under the container's memory limit; None without a limit."""
    try:
        limit = int((CONTAINER / "memory.max").read_text(encoding="ascii"))
        used = int((CONTAINER / "memory.current").read_text(encoding="ascii"))
        lines = (CONTAINER / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # no control groups, or no limit ("max")
        return None
    # Files that were read count as used until other memory is needed, such as the one that a model has just been loaded from.
    cached = sum(int(line.split()[1]) for line in lines if line.startswith(("active_file ", "inactive_file ")))
    return max(0, limit - used + cached)


def _from_proc(name: str) -> int:
    """A line of /proc/self/status such as "VmRSS:     1784 kB", in bytes; 0 if it does not exist."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:")), 0)
    except OSError:
        return 0


def _max_resident_set() -> int:
    """The peak from getrusage, which counts bytes on macOS and kilobytes elsewhere; 0 on Windows, which lacks the call."""
    try:
        import resource
    except ImportError:
        return 0
    max_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max_rss if sys.platform == "darwin" else max_rss * 1024


@dataclass(frozen=True)
class CPUUse:
    """CPU time of some seconds, in cores: 1.0 is one core all the time."""

    own: float  # of this process
    others: float | None  # of other programs; None if the system does not tell
    idle: float | None  # likewise


class CPUMeter:
    """Measures who uses the cores, from one call of `read` to the next."""

    def __init__(self, interval: float) -> None:
        self.interval = interval  # seconds that a measurement takes at least
        self._wall, self._own, self._all = time.monotonic(), time.process_time(), _cpu_seconds()

    @property
    def sees_others(self) -> bool:
        """Whether the system tells what other programs use."""
        return self._all is not None

    def read(self) -> CPUUse | None:
        """The use since the last measurement; None if it is too early for another one."""
        seconds = time.monotonic() - self._wall
        if seconds < self.interval:
            return None
        before = self._own, self._all
        self._wall, self._own, self._all = time.monotonic(), time.process_time(), _cpu_seconds()
        own = (self._own - before[0]) / seconds
        if self._all is None or before[1] is None:
            return CPUUse(own, None, None)
        busy, idle = ((now - then) / seconds for now, then in zip(self._all, before[1], strict=True))
        return CPUUse(own, max(0.0, busy - own), idle)


def load_average() -> float:
    """Number of runnable processes, averaged over the last minute; 0 on systems that do not count them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _cpu_seconds() -> tuple[float, float] | None:
    """Seconds that all cores have been busy and idle since the machine was started; None without Linux's /proc/stat."""
    try:
        # The first line is the sum of all cores. After these fields follow those of guests, which "user" and "nice" include.
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, CPU_TIMES.read_text("ascii").split()[1:9])
        second = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    return (user + nice + system + irq + softirq + steal) / second, (idle + iowait) / second
