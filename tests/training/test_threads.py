"""The number of threads follows what other programs leave, and never changes a result. All times are injected."""

import os
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny import CountingDataset, tiny_config, tiny_model

from mini_chat_gpt.common import resources
from mini_chat_gpt.common.device import pick_precision
from mini_chat_gpt.training import threads as module
from mini_chat_gpt.training.step_state import StepState, digest
from mini_chat_gpt.training.threads import BLIND_WAIT, LONGEST_WAIT, MAX_SHARE, SILENCE, ThreadTuner
from mini_chat_gpt.training.train_step import StepReport, TrainStep


class Machine:
    """A machine with two cores whose clocks the test sets: a step of a token takes `seconds[threads]`."""

    def __init__(self):
        self.now = self.used = self.by_others = 0.0
        self.tells = True  # whether it tells what other programs use
        self.load, self.threads = 1.0, 2
        self.seconds = {1: 1.0, 2: 0.6}

    def be_busy(self):
        self.load, self.seconds = 3.0, {1: 1.0, 2: 4.0}

    def be_idle(self):
        self.load, self.seconds = 1.0, {1: 1.0, 2: 0.6}

    def spend(self, tokens):
        seconds = self.seconds[self.threads] * tokens
        used = seconds * self.threads * (0.6 if self.load > 2 else 1.0)
        self.now += seconds
        self.used += used
        self.by_others += 2 * seconds - used if self.load > 2 else 0.0

    def cpu_seconds(self):
        busy = self.used + self.by_others
        return (busy, 2 * self.now - busy) if self.tells else None


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(time, "monotonic", lambda: machine.now)
    monkeypatch.setattr(time, "process_time", lambda: machine.used)
    monkeypatch.setattr(resources, "_cpu_seconds", machine.cpu_seconds)
    monkeypatch.setattr(module, "load_average", lambda: machine.load)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(module, "cpu_threads", lambda device: machine.threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: setattr(machine, "threads", n))
    return machine


class Run:
    """Steps whose duration is that of the machine; with `computes`, real ones of the engine, else ones that change nothing."""

    def __init__(self, machine, fixed=False, noise=False, computes=False, **sections):
        training = {"batch_size": 4, "ema": 0.9} | sections.pop("training", {})
        config = tiny_config(training=training, **sections)
        cpu = torch.device("cpu")
        precision = pick_precision(config.system.mixed_precision, cpu)
        self.engine = TrainStep(tiny_model(64), config, config.sft, precision)
        self.machine, self.noise, self.computes, self.source = machine, noise, computes or noise, CountingDataset()
        self.said, self.pauses, self.n, self.calls = [], 0, 0, []
        self.tuner = ThreadTuner(self.engine, self.said.append, self.pause, fixed)

    def pause(self):
        self.pauses += 1

    def train(self):
        """A step of one token in the machine's time. With `noise`, its result depends on the number of threads."""
        self.calls.append(self.machine.threads)
        if not self.computes:
            self.machine.spend(1)
            return StepReport(1.0, 1.0, 1.0, 1, 1, 1.0, "updated")
        examples = [self.source[4 * self.n + i] for i in range(4)]
        rate = 0.5 if self.noise and self.machine.threads == 1 else 0.4
        report = self.engine.train_step(examples, rate, None, self.n)
        self.machine.spend(1)
        return replace(report, tokens=1)

    def steps(self, n):
        for _ in range(n):
            self.tuner.step(self.train)
            self.n += 1
        return self.machine.threads


def test_a_free_machine_changes_nothing(machine):
    run = Run(machine)
    assert run.steps(60) == 2
    assert run.said == []
    assert run.calls == [2] * 60


@pytest.mark.parametrize("tells", [True, False])
def test_the_number_of_threads_follows_the_machine_both_ways_with_a_line_for_each_change(machine, tells):
    machine.tells = tells
    run = Run(machine)
    run.steps(5)
    machine.be_busy()
    assert run.steps(20) == 1
    assert run.said[0].startswith("Other programs use the same cores: 2 threads get 6")
    # The measurement before the trial began while the machine was free.
    assert "continues with 1 thread, now 2.9 times as fast, with the same results" in run.said[0]
    assert run.pauses == 1
    run.steps(60)
    assert len(run.said) == 1
    machine.be_idle()
    assert run.steps(9 if tells else 170) == 2
    assert "More of the cores are free again. The run continues with 2 threads, now 1.7 times as fast" in run.said[1]
    assert len(run.said) == 2


def test_every_step_has_the_result_that_it_would_have_without_trials(machine):
    run = Run(machine, computes=True)
    machine.be_busy()
    assert run.steps(20) == 1
    machine.be_idle()
    assert run.steps(30) == 2
    plain = Run(Machine(), fixed=True, computes=True)
    for _ in range(50):
        plain.train()
        plain.n += 1
    assert digest(run.engine) == digest(plain.engine)


def test_a_number_with_other_results_is_never_used_and_the_state_is_that_of_the_first(machine):
    run = Run(machine, noise=True)
    machine.be_busy()
    assert run.steps(60) == 2
    assert len(run.said) == 1
    assert "differs from one with 2 threads in the last bits, so the run keeps its number" in run.said[0]
    assert "resume it with system.threads=1" in run.said[0]
    assert run.calls.count(1) == 1
    plain = Run(Machine(), fixed=True, computes=True)
    for _ in range(60):
        plain.train()
        plain.n += 1
    assert digest(run.engine) == digest(plain.engine)


def test_a_number_that_the_user_has_set_is_kept_with_advice_once(machine):
    run = Run(machine, fixed=True)
    machine.be_busy()
    assert run.steps(60) == 2
    assert run.calls == [2] * 60
    assert len(run.said) == 1
    assert "resume it with system.threads=1" in run.said[0]


def test_ranks_keep_their_number(machine, monkeypatch):
    run = Run(machine)
    monkeypatch.setattr(run.engine, "world", replace(run.engine.world, size=2))
    assert ThreadTuner(run.engine, print, print, fixed=False).fixed


def test_the_results_of_two_numbers_are_compared_once(machine):
    run = Run(machine)
    for _ in range(4):
        machine.be_busy()
        assert run.steps(40) == 1
        machine.be_idle()
        assert run.steps(40) == 2
    assert run.pauses == 1
    assert len(run.calls) == run.n + 1


def test_frequent_changes_are_said_together(machine):
    run = Run(machine)
    for _ in range(12):
        machine.be_busy()
        run.steps(12)
        machine.be_idle()
        run.steps(12)
    assert 2 < len(run.said) <= 1 + machine.now / SILENCE
    counts = [int(line.partition("has changed ")[2].split()[0]) for line in run.said[1:]]
    assert min(counts) >= 2
    assert 20 <= 1 + sum(counts) <= 24


@pytest.mark.parametrize("tells", [True, False])
def test_trials_that_gain_nothing_become_rare(machine, tells):
    machine.tells = tells
    run = Run(machine)
    machine.load, machine.seconds = 3.0, {1: 4.0, 2: 4.0}
    began = []
    for _ in range(400):
        before = machine.threads
        run.steps(1)
        began += [machine.now] if (before, machine.threads) == (2, 1) else []
    assert run.said == []
    assert machine.threads == 2
    waits = [later - earlier for earlier, later in pairwise(began)]
    assert waits == sorted(waits)
    assert waits[0] < 40
    assert LONGEST_WAIT <= waits[-1] < 1.5 * LONGEST_WAIT


def test_more_threads_are_tried_only_while_cores_are_idle(machine):
    run = Run(machine)
    machine.be_busy()
    assert run.steps(200) == 1
    assert run.calls.index(1) < 12
    assert set(run.calls[run.calls.index(1) + 1 :]) == {1}


def test_where_idle_cores_are_not_seen_more_threads_are_tried_later(machine):
    machine.tells = False
    run = Run(machine)
    machine.be_busy()
    run.steps(20)
    changed = machine.now
    while machine.threads == 1:
        run.steps(1)
    assert BLIND_WAIT - 10 < machine.now - changed < 2 * BLIND_WAIT
    assert run.steps(40) == 1


def test_trials_lose_a_small_share_of_the_time_of_slow_steps(machine):
    run = Run(machine)
    machine.load, machine.seconds = 3.0, {1: 200.0, 2: 100.0}
    assert run.steps(200) == 2
    lost = 100 * run.calls.count(1)
    assert 0 < lost < 2 * MAX_SHARE * machine.now


@pytest.mark.parametrize("sections", [{}, {"training": {"optimizer": "muon"}}, {"system": {"mixed_precision": "fp16"}}])
def test_a_state_is_restored_bit_for_bit_as_often_as_needed(machine, sections):
    run = Run(machine, computes=True, **sections)
    run.train()
    before, state = digest(run.engine), StepState.copy(run.engine)
    for _ in range(2):
        run.train()
        assert digest(run.engine) != before
        state.restore(run.engine)
        assert digest(run.engine) == before


def test_a_digest_sees_every_part_of_the_state(machine):
    run = Run(machine, computes=True)
    run.train()
    parts = [next(run.engine.model.parameters()), *run.engine.optimizer.state_tensors().values()]
    parts += run.engine.average.averages.values()
    for tensor in parts:
        before = digest(run.engine)
        with torch.no_grad():
            tensor.view(-1)[-1].add_(1)
        assert digest(run.engine) != before
