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
from mini_chat_gpt.common.resources import CPUMeter, CPUUse

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


# CPU time


@pytest.fixture
def clocks(monkeypatch, tmp_path):
    """Wall time, CPU time, and the file in which Linux counts those of all cores; a test can set them."""
    now = {"wall": 0.0, "own": 0.0}
    monkeypatch.setattr(time, "monotonic", lambda: now["wall"])
    monkeypatch.setattr(time, "process_time", lambda: now["own"])
    monkeypatch.setattr(resources, "CPU_TIMES", tmp_path / "stat")
    return now


def write_times(**seconds) -> None:
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
    ticks = [round(seconds.get(name, 0) * os.sysconf("SC_CLK_TCK")) for name in names]
    resources.CPU_TIMES.write_text(f"cpu  {' '.join(map(str, ticks))}\ncpu0 1 2 3\n", encoding="ascii")


def test_the_use_of_the_cores_is_measured_from_call_to_call(clocks):
    write_times(user=1000, idle=5000)
    meter = CPUMeter(2)
    assert meter.sees_others
    clocks["wall"] = 1.9
    assert meter.read() is None
    clocks |= {"wall": 4.0, "own": 6.0}
    write_times(user=1006, system=1, steal=1, idle=5003, iowait=1, guest=6)  # guests are part of user
    assert meter.read() == CPUUse(own=1.5, others=pytest.approx(0.5), idle=pytest.approx(1.0))
    assert meter.read() is None
    clocks |= {"wall": 6.0, "own": 6.2}
    write_times(user=1010, system=1, steal=1, idle=5003, iowait=1)
    assert meter.read() == CPUUse(own=pytest.approx(0.1), others=pytest.approx(1.9), idle=0)


@pytest.mark.parametrize("content", [None, "", "cpu\n", "cpu a b c d e f g h\n", "intr 5\n"])
def test_without_the_times_of_all_cores_only_the_own_are_known(clocks, content):
    if content is not None:
        resources.CPU_TIMES.write_text(content)
    meter = CPUMeter(2)
    clocks |= {"wall": 10.0, "own": 15.0}
    assert not meter.sees_others
    assert meter.read() == CPUUse(own=1.5, others=None, idle=None)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux counts the times of all cores in /proc/stat")
def test_a_busy_process_is_seen_on_this_machine():
    meter = CPUMeter(0.3)
    while (use := meter.read()) is None:
        pass
    assert use.own > 0
    assert use.others >= 0
    assert 0.5 < (use.own + use.others + use.idle) / os.cpu_count() < 1.5
