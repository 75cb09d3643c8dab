"""Ranks share one message about a failure; two of them in one process here, connected by a real store."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from mini_chat_gpt.common import rank_failures
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.rank_failures import Failure, FailureWatch, lost_connection

MISTAKE = "error: b.jsonl, line 7: the record is damaged; repair it."


@pytest.fixture
def ended(monkeypatch) -> list[int]:
    """The exit codes of the ranks that were ended because they did not end by themselves."""
    codes: list[int] = []
    monkeypatch.setattr(rank_failures, "end_process", codes.append)
    monkeypatch.setattr(rank_failures, "mute", lambda: None)  # both ranks share the standard error of this process
    return codes


@pytest.fixture
def ranks(ended):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False)
    watches = [FailureWatch(0, 2, server), FailureWatch(1, 2, client)]
    yield watches
    for watch in watches:
        watch.stop()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_the_message_of_another_rank_is_printed_once_by_rank_0(ranks, capsys):
    failure = Failure(1, 2, MISTAKE)
    assert ranks[1].report(failure) == failure  # returns only when rank 0 has printed it
    assert capsys.readouterr().err == f"{MISTAKE}\n"
    assert ranks[0].report(Failure(0, 2, "error: Process 0 of 2 has lost the connection to another one")) == failure
    assert capsys.readouterr().err == ""


def test_rank_0_keeps_the_store_until_the_failed_rank_has_seen_that_its_message_is_printed(ranks, capsys, monkeypatch):
    """Rank 1 asks the store late, because its machine is busy; rank 0 fails by the same mistake meanwhile."""
    recorded, ask = threading.Event(), ranks[1]._wait_for

    def late(condition, seconds):
        recorded.set()
        time.sleep(0.5)
        return ask(condition, seconds)

    monkeypatch.setattr(ranks[1], "_wait_for", late)
    failing = threading.Thread(target=ranks[1].report, args=(Failure(1, 2, MISTAKE),))
    failing.start()
    recorded.wait()
    ranks[0].report(Failure(0, 2, MISTAKE))
    assert ranks[0]._store.add(rank_failures.NOTICED, 0) == 2
    failing.join()
    assert capsys.readouterr().err == f"{MISTAKE}\n"


def test_a_message_that_rank_0_has_printed_before_it_joins_is_not_printed_again(ended, capsys):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    other = FailureWatch(1, 2, dist.TCPStore("127.0.0.1", server.port, is_master=False))
    failing = threading.Thread(target=other.report, args=(Failure(1, 2, MISTAKE),))
    failing.start()
    first = FailureWatch(0, 2, server, printed=True)
    wait_until(lambda: first.failure is not None)  # noticed by its thread, before its own report
    assert first.report(Failure(0, 2, MISTAKE)).rank == 1
    failing.join()
    assert capsys.readouterr().err == ""
    for watch in (first, other):
        watch.stop()


def test_a_rank_is_muted_before_rank_0_may_end(ranks, monkeypatch):
    confirmed: list[int] = []
    monkeypatch.setattr(rank_failures, "mute", lambda: confirmed.append(ranks[0]._store.add(rank_failures.NOTICED, 0)))
    ranks[0].report(Failure(0, 2, MISTAKE))
    assert confirmed == [0]


def test_a_muted_process_prints_nothing_on_standard_error():
    code = (
        "import os; from mini_chat_gpt.common.rank_failures import mute; os.write(2, b'a'); mute(); os.write(2, b'b')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b"a"


def test_an_error_of_all_ranks_is_told_from_that_of_one(ranks, monkeypatch):
    def together(*calling: FailureWatch) -> list[bool]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(FailureWatch.failed_together, calling))

    assert together(*ranks) == [True, True]
    assert together(*reversed(ranks)) == [True, True]
    monkeypatch.setattr(rank_failures, "TOGETHER", 0.3)
    assert together(ranks[1]) == [False]


def test_the_same_mistake_on_all_ranks_is_printed_once(ranks, capsys):
    assert ranks[0].report(Failure(0, 2, MISTAKE)).code == ranks[1].report(Failure(1, 2, MISTAKE)).code == 2
    assert capsys.readouterr().err == f"{MISTAKE}\n"


def test_the_first_failure_decides_the_exit_code_of_all_ranks(ranks, capsys):
    ranks[1].report(Failure(1, 130, "interrupted"))
    assert ranks[0].report(Failure(0, 1, ""), details="Traceback of what follows from it").code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_unexpected_exception_is_printed_by_its_own_rank_only(ranks, capsys):
    ranks[1].report(Failure(1, 1, ""), details="Traceback: ZeroDivisionError")
    assert ranks[0].report(Failure(0, 1, ""), details="Traceback: connection closed").code == 1
    assert capsys.readouterr().err == "Traceback: ZeroDivisionError\n"


def test_a_rank_that_computes_on_is_ended_with_the_exit_code_of_the_failure(ranks, ended, monkeypatch):
    monkeypatch.setattr(rank_failures, "GRACE", 0.1)
    ranks[1].report(Failure(1, 2, MISTAKE))
    wait_until(lambda: len(ended) == 2)
    assert ended == [2, 2]  # in reality the failed rank exits before


def test_a_rank_ends_at_once_when_rank_0_fails_unless_it_writes_a_checkpoint(ranks, ended):
    writing = threading.Event()
    writer = threading.Thread(target=writing.wait, name=rank_failures.WRITER)
    writer.start()
    ranks[0].report(Failure(0, 2, MISTAKE))
    time.sleep(0.3)
    assert ended == []
    writing.set()
    wait_until(lambda: ended)
    assert ended == [2]


def test_without_a_failure_no_rank_is_ended(ranks, ended, monkeypatch):
    monkeypatch.setattr(rank_failures, "GRACE", 0.1)
    for watch in ranks:
        watch.stop()
    time.sleep(0.3)
    assert ended == []


def test_a_rank_prints_its_own_message_if_rank_0_does_not(capsys, monkeypatch, ended):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    watch = FailureWatch(1, 2, server)
    monkeypatch.setattr(watch, "_wait_for", lambda condition, seconds: False)  # no waiting for what never comes
    watch.report(Failure(1, 2, MISTAKE))
    assert capsys.readouterr().err == f"[rank 1] {MISTAKE}\n"
    watch.stop()


def test_only_the_loss_of_another_process_is_a_lost_connection():
    gloo = RuntimeError(
        "[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1. This is typically …"
    )
    assert "which ended without a message (Connection closed by peer [127.0.0.1]:1); it may" in lost_connection(
        gloo, 0, 2
    )
    assert lost_connection(gloo, 0, 1) == ""
    assert lost_connection(RuntimeError("shapes differ"), 0, 2) == ""
    assert lost_connection(UserError("Connection: not a setting"), 0, 2) == ""
    assert lost_connection(KeyboardInterrupt(), 0, 2) == ""
