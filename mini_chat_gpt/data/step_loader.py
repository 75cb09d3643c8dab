"""Read the examples of one optimizer step after another; each rank gets its share of every step.

Example i is read by rank i mod size and by no other. Which examples make a step depends on the examples alone, not on the number
of ranks, the size of a micro-batch or the number of worker processes. So a run can be resumed with other numbers of them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Protocol

import torch
from torch.utils.data._utils.signal_handling import _error_if_any_worker_fails

from mini_chat_gpt.common.child_processes import end_with_parent, ignore_stop_signals, stop_signals_blocked
from mini_chat_gpt.common.distributed import ALONE, World
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.batching import Example


class ExampleDataset(Protocol):
    """A map-style dataset without end: `dataset[i]` depends on i alone, for any i ≥ 0.

    `len(dataset)` is the length of an epoch. Indices from there on belong to later epochs, which have the same records in another
    order. There is no IndexError, so read a range of indices instead of iterating over the dataset.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


class Batches(Protocol):
    """The iterator of a DataLoader with workers, with the private parts that this module uses."""

    _workers: list[BaseProcess]

    def __next__(self) -> list[Example | UserError]: ...
    def __iter__(self) -> Batches: ...
    def _shutdown_workers(self) -> None: ...


class _CatchErrors(torch.utils.data.Dataset["Example | UserError"]):
    """Returns user errors instead of raising them: PyTorch would add a worker's traceback to their text."""

    def __init__(self, dataset: ExampleDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Example | UserError:
        try:
            return self.dataset[index]
        except UserError as error:
            return error


def read_examples(
    dataset: ExampleDataset, indices: range, workers: int, on_lost_worker: Callable[[str], None] | None = None
) -> Generator[Example, None, None]:
    """The examples at these indices, in order. `workers` processes prepare them ahead.

    If a worker dies, `on_lost_worker` is called with a sentence, and this process prepares the rest itself. Without
    `on_lost_worker` UserError is raised.
    """
    n_read = 0
    if workers > 0:
        batches = _start_workers(dataset, indices, workers)
        try:
            while (examples := _next_batch(batches)) is not None:
                for example in examples:
                    if isinstance(example, UserError):
                        raise example
                    yield example
                n_read += len(examples)
            return
        except _LostWorkerError as error:
            if on_lost_worker is None:
                raise UserError(str(error)) from None
            on_lost_worker(str(error))
        finally:
            _end_workers(batches)
    yield from (dataset[index] for index in indices[n_read:])


class _LostWorkerError(Exception):
    """A worker process has ended by itself."""


def _start_workers(dataset: ExampleDataset, indices: range, workers: int) -> Batches:
    loader = torch.utils.data.DataLoader(
        _CatchErrors(dataset),
        batch_sampler=_chunks(indices, 32),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=list,
        prefetch_factor=4,
        worker_init_fn=partial(_set_up_worker, os.getpid()),
    )
    # PyTorch's handler of SIGCHLD raises an exception wherever the program is at the death of a worker, for example in the
    # middle of an update. `_next_batch` has it where it can be handled.
    with _restored_handler(), stop_signals_blocked():  # a worker is not ready to ignore them when it starts
        return iter(loader)  # type: ignore[return-value]


def _set_up_worker(trainer: int, _worker: int) -> None:
    """A worker ignores the signals that reach the whole process group: the trainer still needs its last examples."""
    end_with_parent(trainer)
    ignore_stop_signals()


def _next_batch(batches: Batches) -> list[Example | UserError] | None:
    """The next examples of the workers; None at the end. Raises _LostWorkerError if a worker has died."""
    try:
        with _restored_handler():
            # Otherwise this process could wait forever for the rest of an example that the worker was sending.
            if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, lambda *_: _error_if_any_worker_fails())
            _error_if_any_worker_fails()
            return next(batches, None)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # from the dataset
            raise
        codes = [worker.exitcode for worker in batches._workers if worker.exitcode]
        how = f"was killed by {signal.Signals(-codes[0]).name}" if codes and codes[0] < 0 else "ended unexpectedly"
        raise _LostWorkerError(
            f"A data worker process {how}; often the system is short of memory. Use fewer workers, or none with "
            "data.num_workers=0."
        ) from None


@contextmanager
def _restored_handler() -> Iterator[None]:
    """Context after which the handler of SIGCHLD is what it was before."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _end_workers(batches: Batches) -> None:
    """End the worker processes. They have nothing to save, and may be in the middle of a long example."""
    for worker in batches._workers:
        worker.kill()
    # PyTorch does this only when nothing refers to the iterator any more. After an error its traceback does.
    batches._shutdown_workers()


def _chunks(indices: range, size: int) -> Iterator[range]:
    return (indices[start : start + size] for start in range(0, len(indices), size))


def count_workers(setting: int | str, world: World = ALONE) -> int:
    """The number of worker processes of this process for a value of data.num_workers.

    "auto" is one worker if the process has at least two cores: with a small model or a GPU, a step hardly takes longer than making
    its examples. It is none if processes can't be forked, because each worker would then import everything and copy the data.
    Raises UserError for far more workers than cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(setting, int):
        if setting > (most := max(16, 4 * cores)):
            raise UserError(f"data.num_workers is {setting}, but there are {cores} CPU cores; use at most {most}.")
        return setting
    forks = multiprocessing.get_all_start_methods()[0] == "fork"  # the first one is the default
    return 1 if forks and cores // world.local_size >= 2 else 0


LOOK_AHEAD = 8  # examples of each rank whose lengths the ranks exchange at once


class StepLoader:
    """Reads a dataset step by step from index `cursor` on. Use it as a context manager, which ends the worker processes."""

    def __init__(self, dataset: ExampleDataset, cursor: int, workers: int = 0, world: World = ALONE) -> None:
        self.cursor, self.world = cursor, world
        self.lost_worker = ""  # what happened, if a worker process has died
        first = cursor + (world.rank - cursor) % world.size
        self._examples = read_examples(dataset, range(first, 2**62, world.size), workers, self._note_lost_worker)
        self._read_ahead: deque[Example] = deque()  # own examples that were read to know their length
        self._lengths: deque[int] = deque()  # of all ranks' examples from `cursor` on, as far as they are known
        self._n_known = cursor  # the first index whose length is unknown

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self._examples.close()

    def _note_lost_worker(self, sentence: str) -> None:
        self.lost_worker = sentence

    def step(self, examples: int, tokens: int | None) -> tuple[list[Example], int]:
        """(this rank's examples of the next step, number of examples of all ranks).

        A step has `examples` examples, or with `tokens` as many as are needed to reach that number of tokens.
        """
        n = self._examples_for(tokens) if tokens is not None else examples
        stop = self.cursor + n
        n_own = len(range(self.cursor + (self.world.rank - self.cursor) % self.world.size, stop, self.world.size))
        self.cursor = stop
        own = [self._read_ahead.popleft() if self._read_ahead else next(self._examples) for _ in range(n_own)]
        return own, n

    def _examples_for(self, tokens: int) -> int:
        n = total = 0
        while total < tokens:
            if not self._lengths:
                self._exchange_lengths()
            total += self._lengths.popleft()
            n += 1
        return n

    def _exchange_lengths(self) -> None:
        """Learn the lengths of the next examples: each rank reads its own, and all ranks exchange them."""
        world, n = self.world, LOOK_AHEAD if self.world.size > 1 else 1
        examples = list(islice(self._examples, n))
        self._read_ahead.extend(examples)
        by_rank = world.gather([len(example.ids) for example in examples])
        for index in range(self._n_known, self._n_known + n * world.size):
            owner = index % world.size
            first = self._n_known + (owner - self._n_known) % world.size
            self._lengths.append(int(by_rank[owner][(index - first) // world.size]))
        self._n_known += n * world.size
