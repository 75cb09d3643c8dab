"""Run many functions in forked processes with limits on memory and time. A crash costs one process and is reported.

A forked child shares the parent's imports, so a mutant costs milliseconds and not the seconds that importing PyTorch takes.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_chat_gpt.common.errors import UserError

SECONDS, MEGABYTES = 10.0, 1024  # limits of one mutant: CPU time, and memory in addition to that of the imports
WALL_SECONDS = 120.0  # for a process that waits without using the CPU


@dataclass(frozen=True)
class Outcome:
    """What a function did."""

    status: str  # "value", "refused" (a UserError), or "fault"
    value: Any = None
    message: str = ""  # of the UserError; for a fault the traceback
    printed: str = ""  # output and warnings


class TimeLimit(BaseException):
    """The function used too much CPU time."""


def _on_alarm(*_: object) -> None:
    raise TimeLimit


def attempt(act: Callable[[], Any]) -> Outcome:
    """Call `act` in this process, capture what it prints, and check its errors, time and memory."""
    printed = io.StringIO()
    started, before = time.process_time(), _reset_peak()
    signal.signal(signal.SIGPROF, _on_alarm)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, category, *_, **__: (
            print(f"warning: {message}") if category is UserWarning else None
        )
        try:
            outcome = Outcome("value", act())
        except UserError as error:
            outcome = Outcome("refused", message=str(error))
        except TimeLimit:
            outcome = Outcome("fault", message=f"more than {SECONDS:g} s\n{traceback.format_exc()[-1500:]}")
        except BaseException:
            outcome = Outcome("fault", message=traceback.format_exc()[-3000:])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    if outcome.status == "refused" and not _is_sentence(outcome.message):
        outcome = Outcome(
            "fault", message=f"not one short sentence ({len(outcome.message)}): {outcome.message[:1500]!r}"
        )
    seconds, megabytes = time.process_time() - started, (_memory("VmHWM") - before) / 1024
    if outcome.status != "fault" and (seconds > SECONDS or megabytes > MEGABYTES):
        outcome = Outcome("fault", message=f"{seconds:.1f} s, {megabytes:.0f} MB")
    return Outcome(outcome.status, outcome.value, outcome.message, printed.getvalue())


def _is_sentence(message: str) -> bool:
    return 0 < len(message) <= 1000 and "\n" not in message and "Traceback" not in message


def _memory(field: str) -> int:
    """A field of /proc/self/status in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


def _reset_peak() -> int:
    """Reset the peak of this process's memory; returns the current value in KiB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def run_all(cases: Sequence[Callable[[], Any]]) -> Iterator[Any]:
    """The results of the cases in order, called in forked processes. A case that ends or hangs its process gives a str."""
    done = 0
    while done < len(cases):
        worker = _Worker(cases[done:])
        try:
            for result in worker.results():
                done += 1
                yield result
        finally:
            worker.end()
        if worker.problem:
            done += 1
            yield worker.problem


class _Worker:
    """One forked process, which sends the results of the cases through a pipe."""

    def __init__(self, cases: Sequence[Callable[[], Any]]) -> None:
        self.n, self.problem = len(cases), ""
        self.stderr = tempfile.TemporaryFile()
        read, write = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            self._work(cases, write)
        os.close(write)
        self.pipe = os.fdopen(read, "rb", buffering=0)  # `select` does not see what a buffer has read already

    def _work(self, cases: Sequence[Callable[[], Any]], write: int) -> None:
        """In the child: never returns."""
        try:
            os.setpgid(0, 0)
            os.dup2(self.stderr.fileno(), 2)
            size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
            resource.setrlimit(resource.RLIMIT_AS, (size + 8 * 2**30,) * 2)  # protects the machine
            with os.fdopen(write, "wb") as pipe:
                for case in cases:
                    frame = pickle.dumps(case())
                    pipe.write(struct.pack("<Q", len(frame)) + frame)
                    pipe.flush()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            sys.__stderr__.flush()
            os._exit(1)
        os._exit(0)

    def results(self) -> Iterator[Any]:
        for _ in range(self.n):
            if problem := self._wait():
                self.problem = problem
                return
            head = self._read(8)
            if len(head) < 8:
                self.problem = self._how_it_ended()
                return
            yield pickle.loads(self._read(*struct.unpack("<Q", head)))

    def _read(self, n: int) -> bytes:
        data = b""
        while len(data) < n and (part := self.pipe.read(n - len(data))):
            data += part
        return data

    def _how_it_ended(self) -> str:
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        self.stderr.seek(0)
        text = self.stderr.read().decode(errors="replace")[-2000:]
        signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return f"the process ended: signal {signal_number}, status {status}\n{text}"

    def _wait(self) -> str:
        """Wait for a result. Returns the reason if there is none."""
        start, base, used = time.monotonic(), self._resident(), self._cpu_seconds()
        while not select.select([self.pipe], [], [], 0.05)[0]:
            if time.monotonic() - start > WALL_SECONDS:
                return f"no result within {WALL_SECONDS:g} s"
            if self._cpu_seconds() - used > 1.5 * SECONDS:
                return f"more than {SECONDS:g} s, in code that can't be interrupted"
            if self._resident() - base > 2 * MEGABYTES:
                return f"more than {2 * MEGABYTES} MB"
        return ""

    def _resident(self) -> float:
        """Memory of the process in MB."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096 / 2**20
        except (OSError, IndexError):
            return 0.0

    def _cpu_seconds(self) -> float:
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError):
            return 0.0

    def end(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.pipe.close()
        self.stderr.close()
