"""Notices that other programs use the processor's cores, which slows down a run of several threads far more than its share.

Threads that work on the same product wait for each other, spinning. If one of them doesn't get its core the others wait with
it: on two cores with one other busy process two threads are three times slower than a single one.
"""

from __future__ import annotations

import os
import time

SECONDS = 20.0  # that are looked at together
LEAST = 0.8  # of the threads' time that a run has on quiet cores; there it is 0.95 and more, beside another process 0.6


class CPUContention:
    """What part of its threads' time this process gets; `look` says once when that is too little."""

    def __init__(self, threads: int) -> None:
        self.threads, self.said = threads, False
        self.wall, self.used = time.monotonic(), time.process_time()

    def look(self) -> str | None:
        """A sentence for the user, or None."""
        seconds = time.monotonic() - self.wall
        if self.said or self.threads < 2 or seconds < SECONDS:
            return None
        share = (time.process_time() - self.used) / (seconds * self.threads)
        self.wall, self.used = time.monotonic(), time.process_time()
        if share >= LEAST or _load() <= (os.cpu_count() or 1):
            return None
        self.said = True
        return (
            f"Other programs use the cores as well: {self.threads} threads get {share:.0%} of their time, and as they wait for each "
            "other they lose far more than that. If it stays so, interrupt the run (Ctrl-C) and go on with system.threads=1."
        )


def _load() -> float:
    """Processes that want to run, over the last minute; 0 where nobody counts them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
