"""Runs pytest in children of a process that has imported the slow libraries, for the mutation test.

Reads {"tests": [...], "seconds": n, "temporary": folder, "lines": file or null} from standard input, one request a line, and
answers "passed", "failed" or "timeout". With "lines", the one test file of the request is run under `line_map.RecordLines`.
The package itself is imported in the child, from the current folder.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

for library in ("numpy", "torch", "torch._dynamo", "yaml", "pydantic", "pytest", "hypothesis", "safetensors.torch", "rich.live",
                "tiktoken", "rustbpe", "peft", "transformers.models.llama.modeling_llama"):  # fmt: skip
    importlib.import_module(library)


def run_in_child(tests: list[str], seconds: float, temporary: str, lines: str | None) -> str:
    """The result of pytest on these tests, with temporary files in the folder `temporary`."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.environ["TMPDIR"] = tempfile.tempdir = temporary
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        code = 1
        with contextlib.suppress(BaseException):
            plugins = []
            if lines is not None:
                plugins.append(importlib.import_module("line_map").RecordLines(Path.cwd(), tests[0], Path(lines)))
            options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
            code = int(importlib.import_module("pytest").main([*tests, *options], plugins=plugins))
        os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # what its tests have left behind
            return "passed" if status == 0 else "failed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


sys.path.insert(0, os.getcwd())
for request in map(json.loads, sys.stdin):
    print(run_in_child(**request), flush=True)
