"""The number of threads of a run on a CPU that other programs use as well.

Threads that work on the same product wait for each other. If another program takes one of their cores, fewer threads are
faster: on two cores up to five times. `ThreadTuner` measures it: while others use the cores, it tries half as many threads for a
few steps; when cores are idle, twice as many; and keeps what is faster.

A resumed run must equal an uninterrupted one bit for bit, so the number of threads must not change any result. Before two
numbers are compared for the first time, one step is made with both and every bit of its result is compared; if one differs, the
number stays for good.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from mini_chat_gpt.common.device import cpu_threads
from mini_chat_gpt.common.resources import CPUMeter, CPUUse, load_average
from mini_chat_gpt.training.step_state import StepState, digest
from mini_chat_gpt.training.train_step import StepReport, TrainStep

Step = Callable[[], StepReport]
INTERVAL, LONG_INTERVAL = 2.0, 10.0
"""Seconds over which the use of the cores is measured; the second where that leads to advice only."""
MIN_FRACTION = 0.8
"""Of the threads' time. On idle cores a run gets at least 0.95, next to another program about 0.65."""
MIN_IDLE = 0.5
"""Cores that must be idle before more threads are tried."""
TIMED = 3
"""Steps of a trial that are timed, and at least as many before it."""
MIN_GAIN = 1.1
"""A trial must be this many times as fast, or the old number of threads stays."""
FIRST_WAIT, LONGEST_WAIT = 5.0, 320.0
"""Seconds until the next trial; doubled by each trial that wasn't faster."""
BLIND_WAIT = 20.0
"""Seconds until more threads are tried where the system does not tell whether cores are idle."""
MAX_SHARE = 0.05
"""Share of the time that trials may lose."""
SILENCE = 60.0
"""Seconds between two lines about changes."""


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
        self._meter = CPUMeter(LONG_INTERVAL if self.fixed else INTERVAL)
        self._recent = Timing()  # of the steps since the last measurement
        self._rate = 0.0  # seconds per token in the last measurement
        self._before: float | None = None  # the same before the trial that is in progress
        self._trial = 0  # number of threads that is being tried
        self._equal: set[frozenset[int]] = set()  # numbers of threads whose results are known to be equal
        self._lost_time = ""  # what a line says about the other programs
        self._wait, self._next_trial = FIRST_WAIT, 0.0
        self._next_line, self._unsaid = 0.0, 0  # changes since the last line

    def step(self, train: Step) -> StepReport:
        """`train` is one step of the engine, which can be repeated after the state before it is restored."""
        if self._before is None and (threads := self._candidate()) is not None:
            return self._begin_trial(threads, train)
        report = self._timed(train)
        if self._before is not None and self._recent.steps == TIMED:
            self._end_trial(self._before)
        return report

    def _timed(self, train: Step) -> StepReport:
        started = time.monotonic()
        report = train()
        self._recent.add(time.monotonic() - started, report.tokens)
        return report

    def _candidate(self) -> int | None:
        """The number of threads to try now, if any."""
        if self._recent.steps < TIMED or (use := self._meter.read()) is None:
            return None
        measured, self._recent = self._recent, Timing()
        fraction = use.own / self.threads
        # Without a look at the others, a run that waits for its disk would count as well.
        crowded = self.threads > 1 and fraction < MIN_FRACTION and others_compute(use)
        if crowded:
            self._lost_time = (
                f"Other programs use the same cores: {_counted(self.threads)} get {fraction:.0%} of their time."
            )
        if self.fixed:
            if crowded:
                self._warn(
                    "They wait for each other and lose much more than that. If this continues, interrupt the run (Ctrl-C) and "
                    "resume it with system.threads=1."
                )
            return None
        if time.monotonic() < self._next_trial:
            return None
        self._rate = measured.seconds_per_token
        if crowded:
            return self.threads // 2
        if self.threads < self.most and (use.idle is None or use.idle >= MIN_IDLE):
            return min(self.most, 2 * self.threads)
        return None

    def _begin_trial(self, threads: int, train: Step) -> StepReport:
        """Continue with this number of threads. The first time, make a step with both numbers, and compare the results."""
        if frozenset((self.threads, threads)) not in self._equal:
            return self._compare_results(threads, train)
        self._try(threads)
        return self._timed(train)

    def _compare_results(self, threads: int, train: Step) -> StepReport:
        """Make a step with the current number of threads and with this one. If the results are equal, continue with the new one."""
        self.pause()
        state = StepState.copy(self.engine)
        report = train()
        result = digest(self.engine)
        if report.outcome != "updated":  # nothing to compare
            self._schedule(FIRST_WAIT)
            return report
        state.restore(self.engine)
        torch.set_num_threads(threads)
        if train() == report and digest(self.engine) == result:
            self._equal.add(frozenset((self.threads, threads)))
            self._try(threads)
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

    def _try(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._trial, self._before, self._recent = threads, self._rate, Timing()

    def _end_trial(self, before: float) -> None:
        """Keep the number of threads that was tried, if it is faster."""
        gain = before / max(self._recent.seconds_per_token, 1e-12)
        if gain >= MIN_GAIN:
            reason = self._lost_time if self._trial < self.threads else "More of the cores are free again."
            self.threads, self._wait = self._trial, FIRST_WAIT
            self._say_change(reason, gain)
            self._schedule(0.0 if self._meter.sees_others else BLIND_WAIT)
        else:
            torch.set_num_threads(self.threads)
            lost = self._recent.seconds - before * self._recent.tokens
            self._wait = min(LONGEST_WAIT, 2 * self._wait)
            self._schedule(max(self._wait, lost / MAX_SHARE))
        self._before = None

    def _schedule(self, wait: float) -> None:
        """Plan the next trial."""
        self._next_trial = time.monotonic() + wait
        self._meter, self._recent = CPUMeter(INTERVAL), Timing()

    def _say_change(self, reason: str, gain: float) -> None:
        """Say that the number of threads has changed, but not each time if it changes often."""
        self._unsaid += 1
        if (now := time.monotonic()) >= self._next_line:
            often = f" It has changed {self._unsaid} times since the last message." if self._unsaid > 1 else ""
            self.say(
                f"{reason} The run continues with {_counted(self.threads)}, now {gain:.1f} times as fast, with the same results.{often}"
            )
            self._next_line, self._unsaid = now + SILENCE, 0

    def _warn(self, remedy: str) -> None:
        """Say once what the user can do."""
        if not self._warned:
            self.say(f"{self._lost_time} {remedy}")
            self._warned = True


class Timing:
    """The time of some steps."""

    def __init__(self) -> None:
        self.steps, self.tokens, self.seconds = 0, 0, 0.0

    def add(self, seconds: float, tokens: int) -> None:
        """Add a step; one without a token says nothing."""
        if tokens:
            self.steps, self.tokens, self.seconds = self.steps + 1, self.tokens + tokens, self.seconds + seconds

    @property
    def seconds_per_token(self) -> float:
        """Of all steps together."""
        return self.seconds / self.tokens


def others_compute(use: CPUUse) -> bool:
    """Whether other programs take a share of the cores that a run notices."""
    if use.others is not None:
        return use.others >= 0.2
    return load_average() > (os.cpu_count() or 1)


def _counted(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"
