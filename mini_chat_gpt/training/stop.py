"""Requests to stop a run before its last step: Ctrl-C, SIGTERM from a cluster's scheduler, or a time limit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REASONS = ("", "SIGINT", "SIGTERM", "time limit")
"""Reasons by number. Ranks exchange the numbers, and the largest one wins."""

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "time limit": 75}
"""128 + signal number as in shells; 75 means "try again later" (EX_TEMPFAIL in sysexits.h)."""


class StopRequest:
    """Whether to stop after the current step. `number` is 0 or an index into `REASONS`.

    `deadline` is a reading of `time.monotonic`. The stop is requested early enough for one more step and for saving, if these
    take as long as before.
    """

    def __init__(self, notify: Callable[[str], None], deadline: float | None = None) -> None:
        self.notify, self.deadline = notify, deadline
        self.number = 0
        self._signal_time = 0.0

    def check_time(self, seconds_needed: float) -> None:
        """Request a stop if less than `seconds_needed` are left before the deadline."""
        if self.number == 0 and self.deadline is not None and time.monotonic() + seconds_needed > self.deadline:
            self.number = REASONS.index("time limit")
            self.notify("The time limit is reached: saving.")

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Context in which SIGINT and SIGTERM request a stop; a second SIGINT raises KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
            yield
            return
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        # torchrun forwards the Ctrl-C that its processes have already received: a signal within a second is the same one.
        if self.number and number == signal.SIGINT and time.monotonic() - self._signal_time > 1:
            raise KeyboardInterrupt
        if self.number == 0:
            self._signal_time = time.monotonic()
            self.number = REASONS.index(signal.Signals(number).name)
            self.notify("Stopping after this step and saving; press Ctrl-C again to leave immediately.")
