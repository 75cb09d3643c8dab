"""Requests to stop a run before its last step: Ctrl-C, SIGTERM from a cluster's scheduler, a closed terminal (SIGHUP), a
time limit, or a lost data worker.

A step is always completed, so that the state can be saved. What leaves the state unchanged (evaluations, waiting for
examples) is abandoned instead.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mini_chat_gpt.common import rank_failures
from mini_chat_gpt.common.distributed import ALONE, World
from mini_chat_gpt.common.entry import under_torchrun
from mini_chat_gpt.common.signals import end_signals, handled

TIME_LIMIT, LOST_WORKER = "time limit", "lost data worker"

REASONS = ("", "SIGINT", "SIGHUP", "SIGTERM", TIME_LIMIT, LOST_WORKER)
"""Reasons by number. Ranks exchange the numbers, and the largest one wins."""

EXIT_CODES = {"SIGINT": 130, "SIGHUP": 129, "SIGTERM": 143, TIME_LIMIT: 75}
"""128 + signal number as in shells; 75 means "try again later" (EX_TEMPFAIL in sysexits.h)."""


def exit_code(reason: str) -> int:
    """Exit code of a run that stopped for this reason; 0 for "", a run that has finished."""
    if reason == TIME_LIMIT and under_torchrun():
        return 0  # torchrun treats every other code as a failure and would restart the run
    return EXIT_CODES.get(reason, 0)


URGENT = ("SIGHUP", "SIGTERM", TIME_LIMIT)
"""Reasons after which a scheduler ends the process soon: the run is saved, and nothing that can take long follows."""


class Abandoned(BaseException):
    """Raised in code that `StopRequest.abandonable` surrounds when a stop is requested. Not an Exception, as KeyboardInterrupt."""


class StopRequest:
    """Whether to stop after the current step. `number` is 0 or an index into `REASONS`.

    `deadline` is a reading of `time.monotonic`. The stop is requested early enough for what comes next and for saving, if these
    take as long as before.
    """

    def __init__(self, notify: Callable[[str], None], deadline: float | None = None) -> None:
        self.notify, self.deadline = notify, deadline
        self.number = 0
        self.saving_time = 0.0  # seconds that must be left for saving
        self._signal_time = 0.0
        self._abandons = False  # whether a signal raises Abandoned now
        self._alarm = False  # whether SIGALRM can announce the deadline

    @property
    def reason(self) -> str:
        return REASONS[self.number]

    def request(self, reason: str, message: str) -> None:
        """Request a stop, unless one is requested already."""
        if self.number == 0:
            self.number = REASONS.index(reason)
            if rank_failures.failed():  # torchrun ends this rank because of another one, whose message has been printed
                return
            # This may run within a signal handler, while the same stream is being written.
            with contextlib.suppress(OSError, RuntimeError):
                self.notify(message)

    def check_time(self, seconds_needed: float) -> None:
        """Request a stop if the time before the deadline is less than `seconds_needed` and what saving takes."""
        if self.deadline is not None and time.monotonic() + seconds_needed + self.saving_time > self.deadline:
            self.request(TIME_LIMIT, "The time limit is reached: saving.")

    def raise_if_requested(self, world: World = ALONE) -> None:
        """Raise Abandoned if a rank of `world` has a request. All its ranks must call this together."""
        if world.size > 1:
            self.number = int(max(number for (number,) in world.gather([self.number])))
        if self.number:
            raise Abandoned

    @contextmanager
    def abandonable(self, timed: bool = True) -> Iterator[None]:
        """Context of work that changes nothing: a signal, and with `timed` the deadline, raises Abandoned within it.

        Not for work with messages to other ranks, which would wait for this one.
        """
        self.raise_if_requested()
        before, self._abandons = self._abandons, True
        alarm = timed and self._alarm and self.deadline is not None
        try:
            if alarm:
                signal.setitimer(signal.ITIMER_REAL, max(0.01, self.deadline - self.saving_time - time.monotonic()))  # type: ignore[operator]
            yield
        finally:
            self._abandons = before
            if alarm:
                signal.setitimer(signal.ITIMER_REAL, 0)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Context in which SIGINT, SIGTERM and SIGHUP request a stop; a second SIGINT raises KeyboardInterrupt."""
        numbers = [int(signal.SIGINT), *end_signals()]
        if self.deadline is not None and hasattr(signal, "setitimer"):
            numbers.append(int(signal.SIGALRM))
            self._alarm = threading.current_thread() is threading.main_thread()
        try:
            with handled(numbers, self._on_signal):
                yield
        finally:
            self._alarm = False

    def _on_signal(self, number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        # torchrun forwards the Ctrl-C that its processes have already received: a signal within a second is the same one.
        if self.number and name == "SIGINT" and time.monotonic() - self._signal_time > 1:
            raise KeyboardInterrupt
        if self.number:
            return
        self._signal_time = time.monotonic()
        if name == "SIGALRM":
            self.request(TIME_LIMIT, "The time limit is reached: saving.")
        else:
            when = "" if self._abandons else "after this step "
            self.request(name, f"Stopping {when}and saving; press Ctrl-C again to leave immediately.")
        if self._abandons:
            raise Abandoned
