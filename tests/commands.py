"""Commands as a user types them, run in a folder that looks like a clone."""

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fork_server import execute
from tiny import STORIES

ROOT = Path(__file__).parent.parent
SMALL = ["model.preset=null", "model.n_layer=2", "model.n_embd=32", "model.n_head=2", "model.context_length=384"]
BRIEF = ["system.device=cpu", "data.seq_len=384", "data.eval_examples=20", "system.threads=1"]
TORCHRUN = ["-m", "torch.distributed.run"]


def program(*command: str) -> list[str]:
    """A verb, a file of the clone, or Python's own options, as a command line."""
    own = command[0].endswith(".py") or command[0] == "-m"
    return [sys.executable, *command] if own else [sys.executable, "-m", "mini_chat_gpt.cli", *command]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "WANDB_MODE": "offline", "COLUMNS": "200", **changes}


def run(folder: Path, *command: str, code: int = 0, **changes: str) -> str:
    """Run a command in `folder`, check its exit code, and return everything that it printed."""
    returned, output, errors = execute(program(*command)[1:], folder, environment(**changes))
    printed = output + errors
    assert returned == code, printed
    assert "Traceback" not in printed, printed
    return printed


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)


def free_port() -> int:
    """A port of this machine that no program listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    """Whether a program accepts connections on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def one_sentence(printed: str) -> str:
    """The single line of a user's mistake."""
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    return line


def make_clone(folder: Path) -> Path:
    for name in ("mini_chat_gpt", "sft_config.yaml", "prepare_sft_data.py"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def write_stories(folder: Path, n: int = 120) -> Path:
    """A text to pretrain on."""
    text = folder / "stories-train.txt"
    text.write_text("\n<|endoftext|>\n".join(f"{STORIES[i % 3]} It was day {i}." for i in range(n)), encoding="utf-8")
    return text
