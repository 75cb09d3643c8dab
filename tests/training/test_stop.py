"""A signal stops a run after its step, or abandons work that changes nothing; a time limit leaves time to save."""

import os
import signal
import time

import pytest

from mini_chat_gpt.common.distributed import World
from mini_chat_gpt.training.stop import EXIT_CODES, REASONS, Abandoned, StopRequest


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_requests_a_stop_with_one_message(name):
    messages = []
    stop = StopRequest(messages.append)
    before = signal.getsignal(getattr(signal, name))
    with stop.on_signals():
        send(name)
        send(name)  # torchrun forwards the same Ctrl-C; schedulers repeat SIGTERM
    assert REASONS[stop.number] == name
    assert EXIT_CODES[name] == 128 + getattr(signal, name)
    assert len(messages) == 1
    assert signal.getsignal(getattr(signal, name)) == before


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest(lambda _: None)
        with stop.on_signals():
            send("SIGHUP")
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stop.number == 0


def test_a_second_interrupt_leaves_immediately(monkeypatch):
    clock = iter([100.0, 102.0])
    monkeypatch.setattr("mini_chat_gpt.training.stop.time.monotonic", lambda: next(clock))
    stop = StopRequest(lambda _: None)
    with stop.on_signals():
        send("SIGINT")
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_work_that_changes_nothing_is_abandoned_at_once(name):
    stop = StopRequest(lambda _: None)
    with stop.on_signals():
        with pytest.raises(Abandoned), stop.abandonable():
            send(name)
            pytest.fail("the signal has not ended the work")
        assert stop.reason == name
        with pytest.raises(Abandoned), stop.abandonable():  # nor does it begin after a request
            pytest.fail("the work has begun")


def test_a_signal_after_abandonable_work_only_requests_a_stop():
    stop = StopRequest(lambda _: None)
    with stop.on_signals():
        with stop.abandonable():
            pass
        send("SIGTERM")
    assert stop.reason == "SIGTERM"


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("reentrant call")])
def test_a_message_that_cannot_be_written_does_not_stop_the_stop(error):
    """A closed terminal sends SIGHUP and can't be written to. A signal may also arrive while the same stream is written."""

    def fail(_message):
        raise error

    stop = StopRequest(fail)
    with stop.on_signals():
        send("SIGHUP")
    assert stop.reason == "SIGHUP"


def test_a_time_limit_leaves_the_time_that_is_needed():
    stop = StopRequest(lambda _: None, deadline=time.monotonic() + 60)
    stop.check_time(seconds_needed=30)
    assert stop.number == 0
    stop.saving_time = 40  # seconds for what comes next and for saving are added
    stop.check_time(seconds_needed=30)
    assert REASONS[stop.number] == "time limit"
    assert EXIT_CODES[REASONS[stop.number]] == 75


def test_the_time_limit_abandons_work_that_takes_too_long():
    stop = StopRequest(lambda _: None, deadline=time.monotonic() + 100)
    stop.saving_time = 99.95
    with stop.on_signals(), pytest.raises(Abandoned), stop.abandonable():
        signal.pause()
    assert stop.reason == "time limit"


def test_the_time_limit_does_not_abandon_what_is_not_timed():
    stop = StopRequest(lambda _: None, deadline=time.monotonic() - 1)
    with stop.on_signals(), stop.abandonable(timed=False):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert stop.number == 0


class TwoRanks(World):
    """Rank 0 of two, of which the other one has a request."""

    def gather(self, values):
        return [list(values), [float(REASONS.index("SIGTERM"))]]


def test_a_request_of_one_rank_is_one_of_all():
    stop = StopRequest(lambda _: None)
    with pytest.raises(Abandoned):
        stop.raise_if_requested(TwoRanks(rank=0, size=2))
    assert stop.reason == "SIGTERM"


def test_without_handlers_of_signals_the_deadline_sets_no_alarm():
    """The default action of SIGALRM would end the process."""
    with StopRequest(lambda _: None, deadline=time.monotonic() + 60).abandonable():
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_alarm_of_the_time_limit_ends_with_the_work():
    stop = StopRequest(lambda _: None, deadline=time.monotonic() + 1000)
    with stop.on_signals():
        with stop.abandonable():
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
