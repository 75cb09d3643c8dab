"""The examples of a step do not depend on the number of ranks, and no example is read by two."""

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CountingDataset

from mini_chat_gpt.common.distributed import World
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.data.step_loader import StepLoader, count_workers, read_examples


@dataclass(frozen=True)
class InThreads(World):
    """Ranks that are threads of this process; what they say to each other goes through a shared list."""

    board: tuple = ()

    def gather(self, values):
        barrier, cells = self.board
        barrier.wait()
        cells[self.rank] = list(values)
        barrier.wait()
        return [list(cell) for cell in cells]


def read_steps(size: int, cursor: int, tokens: int | None, n_steps: int) -> list[tuple[list[list[int]], int]]:
    """For each step (ids of its examples by rank, indices it took)."""
    board = (threading.Barrier(size), [None] * size)
    found = [[] for _ in range(size)]

    def read(rank):
        reader = StepLoader(CountingDataset(), cursor, 0, InThreads(rank, size, board=board))
        for _ in range(n_steps):
            examples, taken = reader.step(5, tokens)
            found[rank].append(([tuple(example.ids.tolist()) for example in examples], taken))

    threads = [threading.Thread(target=read, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return list(zip(*found, strict=True))


@given(st.integers(2, 5), st.integers(0, 30), st.none() | st.integers(1, 150))
@settings(max_examples=40, deadline=None)
def test_any_number_of_ranks_reads_the_same_steps(size, cursor, tokens):
    alone = [ranks[0] for ranks in read_steps(1, cursor, tokens, 4)]
    for (expected, indices), ranks in zip(alone, read_steps(size, cursor, tokens, 4), strict=True):
        assert {taken for _, taken in ranks} == {indices}
        together = [example for examples, _ in ranks for example in examples]
        assert len(together) == indices  # disjoint: nothing is read twice
        assert sorted(together) == sorted(expected)


@given(st.integers(1, 4), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_an_index_belongs_to_the_same_rank_for_any_cursor(size, cursor):
    steps = read_steps(size, cursor, None, 2)
    for rank in range(size):
        expected = [index for index in range(cursor, cursor + 10) if index % size == rank]
        read = [ids for step in steps for ids in step[rank][0]]
        assert read == [tuple(CountingDataset()[index].ids.tolist()) for index in expected]


@pytest.mark.parametrize("indices", [range(7, 107), range(8, 200, 3)])
def test_worker_processes_give_the_same_examples_in_the_same_order(indices):
    inline, workers = (read_examples(CountingDataset(), indices, workers=n) for n in (0, 2))
    for ours, theirs in zip(inline, workers, strict=True):
        assert ours.ids.tolist() == theirs.ids.tolist()


def test_a_step_in_tokens_takes_examples_until_its_budget_is_reached():
    taken, indices = StepLoader(CountingDataset(), 0).step(4, tokens=100)
    lengths = [len(example.ids) for example in taken]
    assert indices == len(lengths)
    assert sum(lengths) >= 100 > sum(lengths[:-1])


@pytest.mark.parametrize(
    ("setting", "cores", "ranks", "workers"),
    [(0, 8, 1, 0), (3, 1, 1, 3), ("auto", 1, 1, 0), ("auto", 2, 1, 1), ("auto", 2, 2, 0), ("auto", 8, 4, 1)],
)
def test_auto_is_one_worker_if_each_rank_has_a_core_for_it(monkeypatch, setting, cores, ranks, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["fork", "spawn"])
    assert count_workers(setting, World(0, ranks, 0, ranks)) == workers


def test_auto_is_no_worker_without_fork(monkeypatch):
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn", "fork"])
    assert count_workers("auto") == 0


class Broken(CountingDataset):
    def __getitem__(self, index):
        raise ValueError(f"index {index}")


@pytest.mark.parametrize("source", [CountingDataset(), Broken()], ids=["in the program", "in a worker"])
def test_workers_end_after_an_error_even_if_its_traceback_is_kept(source):
    """The program would wait for it at its end, and a worker takes no signals."""
    with pytest.raises(ValueError, match="index") as error, StepLoader(source, 0, workers=1) as reader:
        reader.step(3, None)
        raise ValueError("no index failed")
    assert error.tb is not None
    assert not multiprocessing.active_children()


class KillsItsWorker(CountingDataset):
    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.reader, self.signal_number = os.getpid(), signal_number

    def __getitem__(self, index):
        if index == 70 and os.getpid() != self.reader:
            os.kill(os.getpid(), self.signal_number)
        return super().__getitem__(index)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_after_the_death_of_a_worker_the_reader_makes_the_rest_of_the_examples_itself(number):
    lost = []
    source, indices = KillsItsWorker(number), range(150)
    read = list(read_examples(source, indices, 2, lost.append))
    assert [example.ids.tolist() for example in read] == [source[i].ids.tolist() for i in indices]
    assert len(lost) == 1
    assert f"A data worker process was killed by {number.name}" in lost[0]
    assert not multiprocessing.active_children()
    with pytest.raises(UserError, match="A data worker process was killed"):
        list(read_examples(source, indices, 2))


def test_the_death_of_a_worker_raises_nothing_while_the_reader_does_something_else():
    """PyTorch would raise RuntimeError wherever the program is, for example in the middle of an update."""
    before = signal.getsignal(signal.SIGCHLD)
    with StepLoader(CountingDataset(), 0, workers=1) as reader:
        reader.step(3, None)
        (worker,) = multiprocessing.active_children()
        worker.kill()
        worker.join()
        time.sleep(0.05)
        assert signal.getsignal(signal.SIGCHLD) == before
        while not reader.lost_worker:  # what it has sent is used first
            reader.step(32, None)
        assert "killed by SIGKILL" in reader.lost_worker


class Large(CountingDataset):
    """Examples that do not fit into a pipe, so that a worker is killed in the middle of sending them."""

    def __getitem__(self, index):
        return Example(np.arange(20_000, dtype=np.int32) + index, np.ones(20_000, dtype=bool), weight=1.0, kind="a")


def test_a_worker_killed_while_it_sends_an_example_does_not_hang_the_reader():
    with StepLoader(Large(), 0, workers=1) as reader:
        reader.step(1, None)
        time.sleep(0.3)  # until the pipe is full
        multiprocessing.active_children()[0].kill()
        examples, _ = reader.step(300, None)
        assert "killed by SIGKILL" in reader.lost_worker
    assert [int(example.ids[0]) for example in examples] == list(range(1, 301))


@pytest.mark.parametrize("workers", [0, 1])
def test_examples_are_also_read_in_a_thread(workers):
    """Only the main thread may set handlers of signals."""
    expected = [example.ids.tolist() for example in read_examples(CountingDataset(), range(5), workers=0)]
    read = []
    thread = threading.Thread(
        target=lambda: read.extend(e.ids.tolist() for e in read_examples(CountingDataset(), range(5), workers=workers))
    )
    thread.start()
    thread.join()
    assert read == expected


class Refuses(CountingDataset):
    def __getitem__(self, index):
        raise UserError(f"chats.jsonl, line {index}: it is not readable.")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_mistake_that_a_worker_finds_is_raised_in_the_program(workers):
    with pytest.raises(UserError, match=r"line 0: it is not readable"):
        list(read_examples(Refuses(), range(3), workers))


def test_far_more_workers_than_cores_are_one_sentence(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert count_workers(16) == 16
    with pytest.raises(UserError, match=r"data.num_workers is 17, but there are 2 CPU cores; use at most 16"):
        count_workers(17)
