"""Memory in use follows real allocations; a run warns once if other programs use its cores."""

import mmap
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mini_chat_gpt.common import resources
from mini_chat_gpt.common.resources import CPUContention

PIECE = 2**20
SIZE = 32 * PIECE


@contextmanager
def allocated(size: int) -> Iterator[None]:
    """Pages from the operating system. What PyTorch frees may stay with the C library (`device.keep_freed_memory`)."""
    with mmap.mmap(-1, size) as pages:
        for _ in range(size // PIECE):
            pages.write(b"x" * PIECE)
        yield


def test_memory_in_use_grows_with_an_allocation_and_shrinks_when_it_is_freed():
    before = resources.memory_in_use("cpu")
    with allocated(SIZE):
        in_block = resources.memory_in_use(torch.device("cpu"))
    assert in_block - before == pytest.approx(SIZE, rel=0.1)
    assert in_block - resources.memory_in_use("cpu") == pytest.approx(SIZE, rel=0.1)


def test_the_peak_includes_memory_that_was_freed():
    with allocated(4 * SIZE):
        in_block = resources.memory_in_use("cpu")
    assert resources.memory_in_use("cpu") < in_block - SIZE
    assert resources.peak_memory("cpu") > in_block - SIZE // 8  # the kernel updates its record now and then


def test_the_peak_equals_the_maximum_resident_set():
    accounted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert resources.peak_memory("cpu") == pytest.approx(accounted, rel=0.05)


def test_without_proc_the_maximum_resident_set_is_used(monkeypatch):
    monkeypatch.setattr(resources, "_from_proc", lambda name: 0)
    assert resources.memory_in_use("cpu") == resources.peak_memory("cpu") > 2**20


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("limit", "used", "free"), [("max", 0, None), (3 * PIECE, 2 * PIECE, 2 * PIECE), (PIECE, 9 * PIECE, 0)]
)
def test_free_memory_is_that_of_the_machine_within_the_limit_of_its_container(monkeypatch, tmp_path, limit, used, free):
    machine = resources.free_memory("cpu")
    assert 0 < machine < 2**50
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    # Half of a piece each of files that were read, which the kernel drops when other memory is needed.
    files = f"anon 5\nfile {2 * PIECE}\ninactive_file {PIECE // 2}\nactive_file {PIECE // 2}\nslab 7\n"
    (tmp_path / "memory.stat").write_text(files)
    monkeypatch.setattr(resources, "CONTAINER", tmp_path)
    assert resources.free_memory("cpu") == (pytest.approx(machine, rel=0.1) if free is None else free)


def test_on_a_gpu_the_numbers_are_those_of_the_allocator(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: seen.append(device) or 5)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: seen.append(device) or 7)
    assert (resources.memory_in_use("cuda:1"), resources.peak_memory("cuda:1")) == (5, 7)
    assert seen == [torch.device("cuda:1")] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this test needs a GPU")
def test_a_tensor_on_a_gpu_is_counted_and_its_peak_stays():
    torch.cuda.reset_peak_memory_stats()
    before = resources.memory_in_use("cuda")
    block = torch.ones(SIZE, dtype=torch.uint8, device="cuda")
    assert resources.memory_in_use("cuda") == before + block.nbytes
    del block
    assert resources.memory_in_use("cuda") == before
    assert resources.peak_memory("cuda") >= before + SIZE


# CPU contention


@pytest.fixture
def clocks(monkeypatch):
    """Wall time, CPU time and load average, which a test can set."""
    now = {"wall": 0.0, "used": 0.0, "load": 9.0}
    monkeypatch.setattr(time, "monotonic", lambda: now["wall"])
    monkeypatch.setattr(time, "process_time", lambda: now["used"])
    monkeypatch.setattr(resources, "_load_average", lambda: now["load"])
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return now


def after(clocks, watch: CPUContention, wall: float, used: float) -> float | None:
    clocks["wall"] += wall
    clocks["used"] += used
    return watch.check()


def test_contention_is_the_fraction_of_their_time_that_the_threads_get(clocks):
    watch = CPUContention(2)
    assert after(clocks, watch, 9, 1) is None  # before the end of the interval
    assert after(clocks, watch, 11, 23.8) == pytest.approx(0.62)
    assert after(clocks, watch, 5, 1) is None


def test_a_run_that_gets_its_cores_has_no_contention(clocks):
    watch = CPUContention(2)
    assert after(clocks, watch, 25, 48) is None
    assert after(clocks, watch, 25, 41) is None
    assert after(clocks, CPUContention(1), 25, 5) is None
    clocks["load"] = 1.5  # it waits for something else, such as a disk
    assert after(clocks, watch, 25, 5) is None


def test_each_interval_is_measured_separately(clocks):
    watch = CPUContention(2)
    assert after(clocks, watch, 1000, 2000) is None
    assert after(clocks, watch, 20, 20) is not None
