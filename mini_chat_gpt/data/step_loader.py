"""The examples of one optimizer step after another, of each step those that are this rank's.

Example i is read by rank i mod size, and by no other. Which indices make a step depends on the examples alone, never on the number of
ranks, the size of a micro-batch or the worker processes: so a run may go on with another number of any of them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator
from itertools import islice
from typing import Any, Protocol

import torch

from mini_chat_gpt.common.distributed import ALONE, World
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.batching import Example


class ExampleDataset(Protocol):
    """A map-style dataset of any number of epochs: `dataset[i]` depends on i alone, for any i ≥ 0.

    `len` is one epoch. An index beyond it is in a later epoch, in which each record comes again in another order; there is
    no IndexError, so read a range of indices instead of iterating.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


class SlotReader(torch.utils.data.Dataset["Example | UserError"]):
    """A source as a PyTorch dataset, so that worker processes can prepare examples in order."""

    def __init__(self, source: ExampleDataset) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Example | UserError:
        try:
            return self.source[index]
        except UserError as error:  # raised there, it would arrive with a traceback for a text
            return error


def examples_from(source: ExampleDataset, indices: range, workers: int) -> Generator[Example, None, None]:
    """The examples of these indices, in order; `workers` processes prepare them ahead."""
    if workers == 0:
        yield from map(source.__getitem__, indices)
        return
    loader = torch.utils.data.DataLoader(
        SlotReader(source),
        batch_sampler=_chunks(indices, 32),
        num_workers=workers,
        collate_fn=list,
        prefetch_factor=4,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    batches = iter(loader)
    try:
        for examples in batches:
            for example in examples:
                if isinstance(example, UserError):
                    raise example
                yield example
    finally:
        # PyTorch does it when nothing refers to them any more; after an error its traceback does, to the end of the program,
        # which would then wait for workers that have been told to ignore signals.
        batches._shutdown_workers()  # type: ignore[attr-defined]


def count_workers(setting: int | str, world: World = ALONE) -> int:
    """What data.num_workers comes to in each process of the run.

    "auto" is one where the process has two cores or more: with a small model, or a GPU, a step takes hardly longer than making its
    examples. Where a worker can't be forked it would have to import everything anew and be given a copy of the data: none then.
    """
    if isinstance(setting, int):
        return setting
    forks = multiprocessing.get_all_start_methods()[0] == "fork"  # the first one is the default
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if forks and cores // world.local_size >= 2 else 0


def _chunks(indices: range, size: int) -> Any:
    return (indices[start : start + size] for start in range(0, len(indices), size))


def _leave_signals_to_the_trainer(_worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach every process of a group; the trainer wants its last examples all the same."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


AHEAD = 8  # examples of each rank whose lengths the ranks tell each other at a time


class StepLoader:
    """Reads a source step by step from index `cursor` on. Use as a context manager: its worker processes end with it."""

    def __init__(self, source: ExampleDataset, cursor: int, workers: int = 0, world: World = ALONE) -> None:
        self.cursor, self.world = cursor, world
        first = cursor + (world.rank - cursor) % world.size
        self._examples = examples_from(source, range(first, 2**62, world.size), workers)
        self._read: deque[Example] = deque()  # own examples whose length had to be known
        self._lengths: deque[int] = deque()  # of everybody's examples from `cursor` on, as far as they are known
        self._known = cursor  # the first index whose length isn't

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self._examples.close()

    def step(self, examples: int, tokens: int | None) -> tuple[list[Example], int]:
        """(this rank's examples of the coming step, number of indices it takes): `examples`, or as many as reach `tokens`."""
        taken = self._slots_for(tokens) if tokens is not None else examples
        stop = self.cursor + taken
        own = len(range(self.cursor + (self.world.rank - self.cursor) % self.world.size, stop, self.world.size))
        self.cursor = stop
        return [self._read.popleft() if self._read else next(self._examples) for _ in range(own)], taken

    def _slots_for(self, tokens: int) -> int:
        taken = total = 0
        while total < tokens:
            if not self._lengths:
                self._look_ahead()
            total += self._lengths.popleft()
            taken += 1
        return taken

    def _look_ahead(self) -> None:
        """Learn the lengths of the next indices: each rank reads its own, and all tell each other."""
        world, ahead = self.world, AHEAD if self.world.size > 1 else 1
        new = list(islice(self._examples, ahead))
        self._read.extend(new)
        by_rank = world.gather([len(example.ids) for example in new])
        for index in range(self._known, self._known + ahead * world.size):
            owner = index % world.size
            first = self._known + (owner - self._known) % world.size
            self._lengths.append(int(by_rank[owner][(index - first) // world.size]))
        self._known += ahead * world.size
