"""A program at a pseudo-terminal: type, wait for what it shows, read what it printed.

Programs are forked from a server that has imported the package once, so that each starts in a moment and is alone.
"""

from __future__ import annotations

import fcntl
import io
import multiprocessing
import os
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Sequence

SECONDS = 60  # to wait for anything; only a hanging program ever takes so long

PROMPT_BEGINS, PROMPT_ENDS = "\x1b[?2004h", "\x1b[?2004l"  # prompt_toolkit lets pastes be marked while it reads
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>78]|\x1b\][^\x07]*\x07")


def printed(raw: str) -> str:
    """What was printed, without colors and cursor movements."""
    return ESCAPES.sub("", raw).replace("\r", "")


def on_terminal(name: str, program: Callable[[Sequence[str]], int], argv: Sequence[str], env: dict[str, str]) -> None:
    """Run in the child: the terminal becomes its own, and the program is run as a command is."""
    os.setsid()
    terminal = os.open(name, os.O_RDWR)  # the first one opened becomes the controlling one: Ctrl-C arrives as a signal
    for number in range(3):
        os.dup2(terminal, number)
    os.environ.update(env)
    encoding = env.get("PYTHONIOENCODING", "utf-8")  # which a new interpreter would look at
    sys.stdin = open(0, encoding=encoding, errors="surrogateescape", closefd=False)
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding=encoding, line_buffering=True)
    sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False), encoding=encoding, line_buffering=True)
    from mini_chat_gpt.common.entry import exit_with

    exit_with(lambda: program(argv))


class Program:
    """`program(argv)` at a terminal of its own, until `close`."""

    def __init__(
        self,
        program: Callable[[Sequence[str]], int],
        argv: Sequence[str],
        columns: int = 200,
        env: dict[str, str] | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mini_chat_gpt.chat.loop", "prompt_toolkit"])
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        env = {"TERM": "xterm-256color", "NO_COLOR": "", "LINES": "", "COLUMNS": ""} | (env or {})
        arguments = (os.ttyname(slave), program, argv, env)
        self._process = context.Process(target=on_terminal, args=arguments, daemon=True)
        self._process.start()
        self._slave = slave  # stays open, so that nothing is lost when the program ends
        self.raw = ""  # all it wrote
        self._bytes = b""
        self._seen = 0

    def close(self) -> None:
        """End it, however far it is."""
        self._process.kill()
        self._process.join()
        os.close(self._master)
        os.close(self._slave)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode(errors="surrogateescape"))

    def wait(self, text: str) -> str:
        """Wait until the program writes `text`; returns all that it wrote since the last wait, `text` included."""
        deadline = time.monotonic() + SECONDS
        while text not in self.raw[self._seen :]:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come; what came: {self.raw[self._seen :]!r}"
            self._read(left)
        end = self.raw.index(text, self._seen) + len(text)
        found, self._seen = self.raw[self._seen : end], end
        return found

    def prompt(self) -> str:
        """Wait for the next prompt of a terminal with comforts; returns what was printed before it."""
        return printed(self.wait(PROMPT_BEGINS).removesuffix(PROMPT_BEGINS))

    def say(self, line: str) -> str:
        """Type a line and wait for the next prompt; returns what was printed between."""
        self.type(line + "\r")
        self.wait(PROMPT_ENDS)
        return self.prompt().strip("\n")

    def end(self) -> int:
        """Wait until the program ends; returns its exit code."""
        deadline = time.monotonic() + SECONDS
        while self._process.is_alive():
            assert time.monotonic() < deadline, f"it does not end; what came: {self.raw!r}"
            self._read(0.05)
        self._process.join()
        self._read(0)
        return int(self._process.exitcode or 0)

    def _read(self, seconds: float) -> None:
        if select.select([self._master], [], [], seconds)[0]:
            new = os.read(self._master, 1 << 16)
            for _ in range(new.count(b"\x1b[6n")):
                self.type("\x1b[1;1R")  # where the cursor is, which a terminal answers by itself
            self._bytes += new
            self.raw = self._bytes.decode(errors="replace")
