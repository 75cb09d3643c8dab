"""The first signal stops a run after its step, the second immediately; a time limit leaves time to save."""

import os
import signal
import time

import pytest

from mini_chat_gpt.training.stop import EXIT_CODES, REASONS, StopRequest


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_requests_a_stop_with_one_message(name):
    messages = []
    stop = StopRequest(messages.append)
    before = signal.getsignal(getattr(signal, name))
    with stop.on_signals():
        os.kill(os.getpid(), getattr(signal, name))
        os.kill(os.getpid(), getattr(signal, name))  # torchrun forwards the same Ctrl-C
    assert REASONS[stop.number] == name
    assert len(messages) == 1
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_second_interrupt_leaves_immediately(monkeypatch):
    clock = iter([100.0, 102.0])
    monkeypatch.setattr("mini_chat_gpt.training.stop.time.monotonic", lambda: next(clock))
    stop = StopRequest(lambda _: None)
    with stop.on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_time_limit_leaves_the_time_that_is_needed():
    stop = StopRequest(lambda _: None, deadline=time.monotonic() + 60)
    stop.check_time(seconds_needed=30)
    assert stop.number == 0
    stop.check_time(seconds_needed=61)
    assert REASONS[stop.number] == "time limit"
    assert EXIT_CODES[REASONS[stop.number]] == 75
