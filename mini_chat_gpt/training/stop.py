"""Why a run ends before its last step: Ctrl-C, a cluster's SIGTERM, or its time is over."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REASONS = ("", "SIGINT", "SIGTERM", "time limit")
"""By number, as ranks tell each other; the largest wins."""

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "time limit": 75}
"""128 + signal as shells have it; 75 is "try again later" (EX_TEMPFAIL of sysexits.h)."""


class StopRequest:
    """Whether to stop after the present step: `number` is 0 or an index into `REASONS`.

    `deadline` is a reading of `time.monotonic`. The request comes early enough for one more step and for saving, as long as those
    take what they took last.
    """

    def __init__(self, say: Callable[[str], None], deadline: float | None = None) -> None:
        self.say, self.deadline = say, deadline
        self.number = 0
        self._asked_at = 0.0

    def check_time(self, seconds_needed: float) -> None:
        """Ask to stop if less than `seconds_needed` are left."""
        if self.number == 0 and self.deadline is not None and time.monotonic() + seconds_needed > self.deadline:
            self.number = REASONS.index("time limit")
            self.say("The time limit is reached: saving.")

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within the block SIGINT and SIGTERM ask to stop; a second SIGINT raises KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._asked) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _asked(self, number: int, _frame: object) -> None:
        # torchrun passes on the Ctrl-C that its processes have already had: what comes at once is the same one.
        if self.number and number == signal.SIGINT and time.monotonic() - self._asked_at > 1:
            raise KeyboardInterrupt
        if self.number == 0:
            self._asked_at = time.monotonic()
            self.number = REASONS.index(signal.Signals(number).name)
            self.say("Stopping after this step and saving; Ctrl-C again leaves at once.")
