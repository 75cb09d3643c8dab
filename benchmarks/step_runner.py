"""Run implementations in separate processes, interleaved, so that changes of the machine's speed affect all of them equally."""

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

# Allocator settings for the other implementations: let the C library keep freed memory for the next step, as ours does
# (device.keep_freed_memory), and use large pages. Without them large blocks are returned to the system and allocated again
# at every step, which is slow on virtual machines.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


class Child:
    """The process of one implementation."""

    def __init__(self, name: str, setting: Setting, folder: Path, nanochat: str | None) -> None:
        self.name, self.steps = name, list[dict[str, Any]]()
        self.log = tempfile.TemporaryFile("w+")
        threads = str(setting.threads)
        self.process = subprocess.Popen(
            [
                sys.executable,
                Path(__file__).with_name("step_implementations.py"),
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

    def _send(self, line: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def turn(self, seconds: float) -> None:
        self.steps += self._send(str(seconds))["steps"]

    def quit(self) -> int:
        """End the process and return its peak memory in bytes."""
        peak = self._send("quit")["peak_bytes"]
        self.process.wait()
        return peak


def run_interleaved(children: Sequence[Child], rounds: int, seconds: float) -> None:
    """Run one long warm-up turn of each (memory still grows, kernels are created), then `rounds` turns that count."""
    for child in children:
        child.turn(3 * seconds)
        child.steps.clear()
    for _ in range(rounds):
        for child in children:
            child.turn(seconds)
