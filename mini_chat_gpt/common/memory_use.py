"""Memory that this process has in use, in bytes, and the most it ever had: what a run shows and `doctor` compares with.

On a CPU that is resident memory, Python and its libraries included; on a GPU what PyTorch's allocator has handed out,
which is less than what the driver shows (contexts, and blocks kept for the next request, aren't in it).
"""

from __future__ import annotations

import sys

import torch


def in_use(device: torch.device | str) -> int:
    """Bytes in use now. On a CPU without /proc (macOS) the peak, which is all the system tells; 0 where it tells nothing."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return _from_proc("VmRSS") or _largest_resident()


def peak(device: torch.device | str) -> int:
    """The most bytes that were in use, since the process began or since torch.cuda.reset_peak_memory_stats.

    mps keeps no such record: what it holds of the system's memory stands for it, since it seldom gives any back.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return _from_proc("VmHWM") or _largest_resident()


def _from_proc(name: str) -> int:
    """A line of /proc/self/status, such as "VmRSS:     1784 kB", in bytes; 0 where there is none."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:")), 0)
    except OSError:
        return 0


def _largest_resident() -> int:
    """The peak as getrusage gives it: bytes on macOS, else kilobytes; 0 on Windows, which has no such call."""
    try:
        import resource
    except ImportError:
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
