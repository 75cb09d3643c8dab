"""The number of threads of a run on a CPU that other programs use as well.

Threads that work on the same product wait for each other. If another program takes one of their cores, fewer threads are
faster: on two cores up to five times. `ThreadTuner` measures it: while others use the cores, it tries half as many threads for a
few steps, later twice as many again, and keeps what is faster.

A resumed run must equal an uninterrupted one bit for bit, so the number of threads must not change any result. Before each
trial, one step is made with both numbers and every bit of its result is compared; if one differs, the number stays for good.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

import torch

from mini_chat_gpt.common.device import cpu_threads
from mini_chat_gpt.common.resources import CPUContention
from mini_chat_gpt.training.step_state import StepState, digest
from mini_chat_gpt.training.train_step import StepReport, TrainStep

Step = Callable[[], StepReport]
TIMED = 3
"""Steps of a trial that are timed; it is compared with the last steps before it."""
MIN_GAIN = 1.1
"""A trial must be this many times as fast, or the old number of threads stays."""
FIRST_WAIT, LONGEST_WAIT = 20.0, 320.0
"""Seconds until the next trial; doubled by each trial that wasn't faster."""
MAX_SHARE = 0.05
"""Share of the time that trials may take."""


class ThreadTuner:
    """Runs the steps of `engine`, and changes the number of threads between them.

    say      prints a line
    pause    waits for threads that hold copies of the state, such as a checkpoint that is being written
    fixed    the number of threads stays: the user has set it, or the results depend on it (compiled code)
    """

    def __init__(self, engine: TrainStep, say: Callable[[str], None], pause: Callable[[], None], fixed: bool) -> None:
        self.engine, self.say, self.pause = engine, say, pause
        self.most = self.threads = cpu_threads(engine.model.device)
        self.fixed = fixed or engine.world.size > 1  # the ranks would have to agree
        self._warned = False
        self._contention = CPUContention(self.threads)
        self._recent: deque[float] = deque(maxlen=TIMED)  # seconds per token of the last steps
        self._before: list[float] | None = None  # the same before the trial that is in progress
        self._trial = 0  # number of threads that is being tried
        self._lost_time = ""  # what a line says about the other programs
        self._trial_began, self._wait, self._next_trial = 0.0, FIRST_WAIT, 0.0

    def step(self, train: Step) -> StepReport:
        """`train` is one step of the engine, which can be repeated after the state before it is restored."""
        if self._before is None and (threads := self._candidate()) is not None:
            return self._begin_trial(threads, train)
        started = time.monotonic()
        report = train()
        if report.tokens:
            self._recent.append((time.monotonic() - started) / report.tokens)
        if self._before is not None and len(self._recent) == TIMED:
            self._end_trial(self._before)
        return report

    def _candidate(self) -> int | None:
        """The number of threads to try now, if any."""
        fraction = self._contention.check()
        if fraction is not None:
            self._lost_time = (
                f"Other programs use the same cores: {_counted(self.threads)} get {fraction:.0%} of their time."
            )
        if self.fixed:
            if fraction is not None:
                self._warn(
                    "They wait for each other and lose much more than that. If this continues, interrupt the run (Ctrl-C) and "
                    "resume it with system.threads=1."
                )
            return None
        if len(self._recent) < TIMED or time.monotonic() < self._next_trial:
            return None
        if fraction is not None:
            return self.threads // 2
        return min(self.most, 2 * self.threads) if self.threads < self.most else None

    def _begin_trial(self, threads: int, train: Step) -> StepReport:
        """Make a step with the current number of threads and with this one. If the results are equal, continue with the new one."""
        self.pause()
        self._trial_began = time.monotonic()
        state = StepState.copy(self.engine)
        report = train()
        result = digest(self.engine)
        if report.outcome != "updated":  # nothing to compare
            self._schedule(FIRST_WAIT)
            return report
        state.restore(self.engine)
        torch.set_num_threads(threads)
        if train() == report and digest(self.engine) == result:
            self._before, self._trial = list(self._recent), threads
            self._recent.clear()
            return report
        torch.set_num_threads(self.threads)
        state.restore(self.engine)
        report = train()
        self.fixed = True
        self._warn(
            f"On this machine a step with {_counted(threads)} differs from one with {_counted(self.threads)} in the last bits, so the "
            "run keeps its number, to be reproducible. If this continues, interrupt it (Ctrl-C) and resume it with system.threads=1."
        )
        return report

    def _end_trial(self, before: list[float]) -> None:
        """Keep the number of threads that was tried, if it is faster."""
        gain = statistics.median(before) / max(statistics.median(self._recent), 1e-12)
        fewer = self._trial < self.threads
        if gain >= MIN_GAIN:
            self.threads = self._trial
            reason = self._lost_time if fewer else "More of the cores are free again."
            self.say(
                f"{reason} The run continues with {_counted(self.threads)}, now {gain:.1f} times as fast, with the same results."
            )
            self._wait = FIRST_WAIT
        else:
            torch.set_num_threads(self.threads)
            self._recent.extend(before)
            self._wait = min(LONGEST_WAIT, 2 * self._wait)
        self._before = None
        self._schedule(self._wait)

    def _schedule(self, wait: float) -> None:
        """Plan the next trial."""
        now = time.monotonic()
        self._next_trial = now + max(wait, (now - self._trial_began) / MAX_SHARE)
        self._contention = CPUContention(self.threads)

    def _warn(self, remedy: str) -> None:
        """Say once what the user can do."""
        if not self._warned:
            self.say(f"{self._lost_time} {remedy}")
            self._warned = True


def _counted(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"
