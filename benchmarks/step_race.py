"""Contestants in processes of their own that take turns, so that a machine's moods meet all of them alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from step_setting import Setting

# For those who'd have to know of it: let the C library keep freed memory for the next step, as ours does by itself
# (device.keep_freed_memory), and take it in large pages. Without it large blocks are given back and taken anew at every
# step, and on virtual machines that is dear.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


class Child:
    """A contestant's process."""

    def __init__(self, name: str, setting: Setting, folder: Path, nanochat: str | None) -> None:
        self.name, self.steps = name, list[dict[str, Any]]()
        self.log = tempfile.TemporaryFile("w+")
        threads = str(setting.threads)
        self.process = subprocess.Popen(
            [
                sys.executable,
                Path(__file__).with_name("step_contestants.py"),
                name,
                json.dumps(setting.as_dict()),
                folder,
                nanochat or "",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ
            | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
            | (KEEP_MEMORY if name.endswith("kept") else {}),
        )
        self.first = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise SystemExit(f"{self.name} failed:\n{self.log.read()}")
        return json.loads(line)

    def _say(self, line: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def turn(self, seconds: float) -> None:
        self.steps += self._say(str(seconds))["steps"]

    def quit(self) -> int:
        """Ends the process; returns the most memory it had, in bytes."""
        peak = self._say("quit")["peak_bytes"]
        self.process.wait()
        return peak


def race(children: Sequence[Child], rounds: int, seconds: float) -> None:
    """One long turn each that doesn't count (memory still grows, kernels are still prepared), then `rounds` that do."""
    for child in children:
        child.turn(3 * seconds)
        child.steps.clear()
    for _ in range(rounds):
        for child in children:
            child.turn(seconds)
