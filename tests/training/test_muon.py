"""Muon equals PyTorch's, for stacks of any size."""

import pytest
import torch

from mini_chat_gpt.common import device
from mini_chat_gpt.training.muon import Muon, newton_schulz


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize("stack_elements", [2**23, 200])
def test_muon_equals_pytorchs(monkeypatch, stack_elements, has_bf16):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr("mini_chat_gpt.training.muon.STACK_ELEMENTS", stack_elements)
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (8, 20), (20, 8), (8, 8), (5, 7)]
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    optimizers = [
        Muon([{"params": ours}], lr=0.1, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1),
    ]
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.02)  # PyTorch's iteration runs in bfloat16


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_an_orthogonalized_update_has_singular_values_of_about_one(monkeypatch, has_bf16, dtype):
    """In bfloat16 only where the processor has its products: elsewhere PyTorch emulates them, 25 times as slowly as float32."""
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: has_bf16)
    result = newton_schulz(torch.randn(3, 16, 40))
    assert result.dtype == dtype
    values = torch.linalg.svdvals(result.float())
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_a_matrix_without_gradient_is_unchanged():
    frozen, moved = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    moved.grad = torch.eye(4)
    Muon([{"params": [frozen, moved]}], lr=0.1).step()
    assert torch.equal(frozen, torch.ones(4, 4))
    assert not torch.equal(moved, torch.ones(4, 4))
