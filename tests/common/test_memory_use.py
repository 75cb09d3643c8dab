"""Memory in use follows what is really allocated."""

import mmap
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from mini_chat_gpt.common import memory_use

PIECE = 2**20
SIZE = 32 * PIECE


@contextmanager
def held_memory(size: int) -> Iterator[None]:
    """Pages straight from the system: what PyTorch frees may stay with the C library (`device.keep_freed_memory`)."""
    with mmap.mmap(-1, size) as pages:
        for _ in range(size // PIECE):
            pages.write(b"x" * PIECE)
        yield


def test_memory_in_use_grows_with_what_is_held_and_shrinks_without_it():
    before = memory_use.in_use("cpu")
    with held_memory(SIZE):
        held = memory_use.in_use(torch.device("cpu"))
    assert held - before == pytest.approx(SIZE, rel=0.1)
    assert held - memory_use.in_use("cpu") == pytest.approx(SIZE, rel=0.1)


def test_the_peak_remembers_what_was_given_back():
    with held_memory(4 * SIZE):
        held = memory_use.in_use("cpu")
    assert memory_use.in_use("cpu") < held - SIZE
    assert memory_use.peak("cpu") > held - SIZE // 8  # the system brings its record up to date now and then


def test_the_peak_is_what_the_system_accounts_for():
    accounted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert memory_use.peak("cpu") == pytest.approx(accounted, rel=0.05)


def test_without_proc_the_systems_accounting_is_taken(monkeypatch):
    monkeypatch.setattr(memory_use, "_from_proc", lambda name: 0)
    assert memory_use.in_use("cpu") == memory_use.peak("cpu") > 2**20


def test_on_a_gpu_the_allocators_own_numbers_are_taken(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: seen.append(device) or 5)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: seen.append(device) or 7)
    assert (memory_use.in_use("cuda:1"), memory_use.peak("cuda:1")) == (5, 7)
    assert seen == [torch.device("cuda:1")] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this test needs a GPU")
def test_a_tensor_on_a_gpu_counts_and_its_peak_stays():
    torch.cuda.reset_peak_memory_stats()
    before = memory_use.in_use("cuda")
    block = torch.ones(SIZE, dtype=torch.uint8, device="cuda")
    assert memory_use.in_use("cuda") == before + block.nbytes
    del block
    assert memory_use.in_use("cuda") == before
    assert memory_use.peak("cuda") >= before + SIZE
