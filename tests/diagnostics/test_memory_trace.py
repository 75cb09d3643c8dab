"""Fake tensors are counted like real ones, but take no memory."""

import pytest
import torch
import torch.nn as nn

from mini_chat_gpt.common.device import keep_freed_memory
from mini_chat_gpt.common.resources import memory_in_use
from mini_chat_gpt.diagnostics.memory_trace import Kernels, LiveTensors, ShadowHeap, heap_bytes

MIB = 2**20
needs_glibc = pytest.mark.skipif(heap_bytes() is None, reason="this C library does not report its heap size")


def train_a_little(model: nn.Module, inputs: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(inputs).square().mean().backward()
    optimizer.step()


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 64))


def test_a_tensor_counts_as_long_as_it_lives():
    with LiveTensors() as live:
        whole = torch.zeros(MIB)
        part = whole[:10]
        assert live.now == 4 * MIB
        del whole
        assert live.now == 4 * MIB  # a view keeps its storage alive
        del part
        assert (live.now, live.peak) == (0, 4 * MIB)


def test_fake_tensors_of_any_size_take_no_memory():
    before = memory_in_use("cpu")
    with LiveTensors() as live:
        weights = torch.zeros(10**7, 10**5)
        product = weights.T @ weights
        assert live.now == 4 * (10**12 + 10**10)
        assert product.shape == (10**5, 10**5)
    assert memory_in_use("cpu") - before < 100 * MIB


def test_the_peak_of_a_training_step_equals_that_of_pytorchs_tracker():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with LiveTensors() as live:
        train_a_little(small_model(), torch.randn(512, 64))
    with FakeTensorMode():
        tracker, model, inputs = MemTracker(), small_model(), torch.randn(512, 64)
        tracker.track_external(model, inputs)
        with tracker:
            train_a_little(model, inputs)
    expected = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert live.peak == pytest.approx(expected, rel=0.01)


def test_a_real_mask_selects_as_many_rows_as_it_has_true_values():
    mask = torch.tensor([True, False, True])
    with LiveTensors():
        assert torch.zeros(3, 5)[mask].shape == (2, 5)


def test_integers_are_computed():
    with LiveTensors():
        lengths = torch.tensor([3, 4])
        assert torch.arange(int(lengths.sum())).tolist() == list(range(7))


def test_bytes_at_the_peak_are_counted_by_name():
    with LiveTensors() as live:
        live.logits_width = 1000
        with live.calling("weights"):
            weights = torch.zeros(1000, 64)
        moments = torch.zeros(1000, 64)
        live.name("optimizer", [moments])
        logits = torch.zeros(10, 64) @ weights.T
        assert {name: size for name, size in live.at_peak.items() if size} == {
            "weights": weights.nbytes,
            "optimizer": moments.nbytes,
            "logits": logits.nbytes,
            "activations": 10 * 64 * 4,
        }


@needs_glibc
def test_a_shadow_heap_grows_without_taking_memory():
    keep_freed_memory()
    size, used = heap_bytes()
    heap, before = ShadowHeap(Kernels(torch.float32), kernel_size=0), memory_in_use("cpu")
    with LiveTensors(heap=heap):
        tensors = [torch.zeros(MIB) for _ in range(256)]
        assert heap.block_bytes == 2**30
        del tensors
    assert heap.block_bytes == 0
    assert 2**30 - (size - used) <= heap.grown() < 2**30 + 64 * MIB  # earlier gaps may be used
    assert memory_in_use("cpu") - before < 100 * MIB


@needs_glibc
def test_freed_blocks_are_reused():
    keep_freed_memory()
    heap = ShadowHeap(Kernels(torch.float32), kernel_size=0)
    with LiveTensors(heap=heap):
        for _ in range(50):
            torch.zeros(64 * MIB)
    assert heap.grown() < 3 * 256 * MIB


@needs_glibc
def test_kernels_stand_for_shapes_that_the_dry_run_leaves_out():
    heap = ShadowHeap(Kernels(torch.float32), kernel_size=1000, per_shape=2.5, capacity=9)
    kernel_bytes = []
    for _ in range(4):
        heap.add_kernels()
        kernel_bytes.append(heap.kernel_bytes)
    assert kernel_bytes == [2000, 5000, 7000, 9000]
