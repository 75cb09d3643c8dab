"""SIGTERM and SIGHUP end a command as Ctrl-C does: `finally` blocks run, so temporary files are removed.

A training run saves instead of ending at once, see training/stop.py.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]

GRACE = 10.0
"""Seconds in which a command must have ended after SIGTERM or SIGHUP, or after its run has been saved because of them."""


class StoppedBySignal(SystemExit):
    """Raised in the main thread by SIGTERM and SIGHUP. Its code is 128 + the signal's number, as in shells."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


def end_signals() -> list[int]:
    """SIGTERM and SIGHUP. Windows has no SIGHUP, and under nohup it is ignored and stays so."""
    numbers = [signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        numbers.append(hangup)
    return [int(number) for number in numbers]


@contextmanager
def handled(numbers: list[int], handler: Handler) -> Iterator[None]:
    """Context in which these signals call `handler`. Has no effect outside the main thread, as Python requires."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class _Command:
    """Whether this process runs a command, which may be ended from here. Python code that imports us may not."""

    running = False


@contextmanager
def signals_end_command() -> Iterator[None]:
    """Context of a command, at whose end the process ends, too.

    The first SIGTERM or SIGHUP raises StoppedBySignal; further ones within `GRACE` are ignored. One that arrives while Python
    runs a `__del__`, which drops every exception, is sent again a moment later.
    """
    deadline, ended = 0.0, False

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal deadline
        if ended:  # nothing is left to clean up, but a library may wait for its network
            os._exit(128 + number)
        if time.monotonic() >= deadline:
            deadline = time.monotonic() + GRACE
            leave_within(GRACE, 128 + number)
            raise StoppedBySignal(number)

    report_unraisable = sys.unraisablehook

    def send_again(unraisable: sys.UnraisableHookArgs) -> None:
        nonlocal deadline
        if not isinstance(unraisable.exc_value, StoppedBySignal):
            report_unraisable(unraisable)
            return
        deadline = 0.0
        threading.Timer(0.05, os.kill, [os.getpid(), signal.Signals[unraisable.exc_value.name]]).start()

    if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
        _Command.running = True
        for signal_number in end_signals():
            signal.signal(signal_number, end)
        sys.unraisablehook = send_again
    try:
        yield
    finally:
        ended = True
        sys.unraisablehook = report_unraisable


@contextmanager
def after_interruption(say: Callable[[], object]) -> Iterator[None]:
    """Context that calls `say`, which tells how to resume, when Ctrl-C, SIGTERM or SIGHUP end it."""
    try:
        yield
    except (KeyboardInterrupt, StoppedBySignal):
        say()
        raise


def leave_within(seconds: float, code: int) -> None:
    """End this command with this exit code if it hasn't ended by itself within this time.

    Libraries may wait for a network at their end, for longer than a scheduler waits before it sends SIGKILL.
    """
    if _Command.running:
        timer = threading.Timer(seconds, os._exit, [code])
        timer.daemon = True
        timer.start()
