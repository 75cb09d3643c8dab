"""Run commands in forks of a process that has imported the libraries: importing PyTorch takes seconds.

The server imports nothing of the package itself, so each command imports the package in its own process, as a user's does. Where processes
can't be forked, and for other programs than the package's own, a command is started as a process of its own.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARIES = (
    "numpy", "torch", "torch.distributed", "torch._dynamo", "pydantic", "rich.console", "rich.progress", "yaml", "safetensors.torch",
    "tiktoken", "matplotlib.pyplot",
    "jinja2", "tokenizers", "wandb", "rouge_score.rouge_scorer", "prompt_toolkit", "huggingface_hub", "rustbpe",
)  # fmt: skip
TIME_LIMIT = 300  # seconds for one command


class ForkServer:
    """A process that forks for each command and reports its exit code."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([sys.executable, __file__], text=True, bufsize=1, **pipes)
        atexit.register(self._process.kill)

    def run(self, argv: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of `python ARGV` in a folder."""
        with tempfile.TemporaryDirectory() as place:
            output, errors = Path(place, "output"), Path(place, "errors")
            request = {"argv": argv, "folder": str(folder), "environment": environment}
            self._process.stdin.write(json.dumps(request | {"output": str(output), "errors": str(errors)}) + "\n")
            if not select.select([self._process.stdout], [], [], TIME_LIMIT)[0]:
                self._process.kill()
                raise subprocess.TimeoutExpired(argv, TIME_LIMIT)
            code = int(self._process.stdout.readline())
            return code, output.read_text("utf-8"), errors.read_text("utf-8")


_server: ForkServer | None = None


def execute(argv: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """Run `python ARGV` in `folder`: exit code, standard output, standard error."""
    global _server
    own = argv[0].endswith(".py") or (argv[0] == "-m" and argv[1].startswith("mini_chat_gpt"))
    # Libraries read these variables once, when they are imported.
    changed = {name for name in {*environment, *os.environ} if environment.get(name) != os.environ.get(name)}
    if not own or not hasattr(os, "fork") or changed - {"WANDB_MODE", "COLUMNS"}:
        done = subprocess.run(
            [sys.executable, *argv], cwd=folder, capture_output=True, text=True, env=environment, timeout=TIME_LIMIT
        )
        return done.returncode, done.stdout, done.stderr
    if _server is None or _server._process.poll() is not None:
        _server = ForkServer()
    return _server.run(argv, folder, environment)


def serve() -> dict:
    """Fork for each request; returns in the child, with its request."""
    with open(0, closefd=False) as requests:
        for line in requests:
            request = json.loads(line)
            if (child := os.fork()) == 0:
                return request
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.write(1, f"{code}\n".encode())
    raise SystemExit


def become(request: dict) -> None:
    """Take on the folder, environment, arguments and streams of a command."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    files = [os.open(os.devnull, os.O_RDONLY), os.open(request["output"], write), os.open(request["errors"], write)]
    for descriptor, file in enumerate(files):
        os.dup2(file, descriptor)
        os.close(file)


def main() -> None:
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()
    request = serve()
    become(request)
    option, *argv = request["argv"]
    if option == "-m":
        module, *arguments = argv
        sys.path[0] = request["folder"]
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(option).parent.absolute())
        sys.argv = [option, *argv]
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    main()
