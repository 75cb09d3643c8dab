"""Fused operations against what autograd computes for the plain formulas."""

import pytest
import torch
import torch.nn.functional as F
from gradients import assert_close, results

from mini_chat_gpt.ops import functional
from mini_chat_gpt.ops.fused import add_low_rank, apply_rope, rms_norm

ANGLES = torch.randn(1, 1, 7, 4).cos(), torch.randn(1, 1, 7, 4).sin()


def test_rms_norm_equals_pytorchs():
    x, weight = torch.randn(2, 5, 24), torch.randn(24)
    assert_close(
        results(lambda x, w: rms_norm(x, w, 1e-5, torch.float32), x, weight),
        results(lambda x, w: F.rms_norm(x, (24,), w, 1e-5), x, weight),
        1e-6,
    )


def test_rms_norm_returns_the_requested_precision_and_gradients_in_that_of_the_input():
    out, d_x, d_weight = results(lambda x, w: rms_norm(x, w, 1e-5, torch.bfloat16), torch.randn(3, 8), torch.ones(8))
    assert (out.dtype, d_x.dtype, d_weight.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_rms_norm_of_zeros_has_finite_gradients():
    _, d_x, _ = results(lambda x, w: rms_norm(x, w, 1e-5, torch.float32), torch.zeros(2, 8), torch.ones(8))
    assert d_x.isfinite().all()


def test_rope_equals_the_plain_formula():
    x, angles = torch.randn(1, 3, 7, 8), torch.randn(1, 1, 7, 4)
    cos, sin = angles.cos(), angles.sin()

    def plain(x: torch.Tensor) -> torch.Tensor:
        x1, x2 = x.chunk(2, dim=-1)
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)

    assert_close(results(lambda x: apply_rope(x, cos, sin), x), results(plain, x), 1e-6)


def test_a_low_rank_product_equals_the_plain_formula():
    torch.manual_seed(0)
    whole, x, a, b = torch.randn(2, 5, 7), torch.randn(2, 5, 6), torch.randn(3, 6), torch.randn(7, 3)
    ours = results(lambda *inputs: add_low_rank(*inputs, 0.7, 0.0), whole, x, a, b)
    assert_close(ours, results(lambda whole, x, a, b: whole + 0.7 * (x @ a.T @ b.T), whole, x, a, b), 1e-6)
    half = whole.bfloat16()
    rough = results(lambda *inputs: add_low_rank(*inputs, 0.7, 0.0), half, x, a, b)
    assert [each.dtype for each in rough] == [torch.bfloat16, torch.bfloat16, *[torch.float32] * 3]
    for one, other in zip(rough, ours, strict=True):
        assert (one.float() - other).abs().max() <= 0.05 * other.abs().max()


def test_the_backward_pass_uses_the_dropout_mask_of_the_forward_pass():
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 7), (4, 6), (3, 6), (7, 3))]

    def dropped(whole, x, a, b):
        torch.manual_seed(3)
        return add_low_rank(whole, x, a.double(), b.double(), 0.7, 0.4)

    assert torch.autograd.gradcheck(lambda *inputs: dropped(*inputs), inputs)
    assert not torch.equal(dropped(*inputs), add_low_rank(*inputs, 0.7, 0.0))


def test_dropout_drops_the_given_part_and_scales_the_rest():
    torch.manual_seed(0)
    x, eye = torch.ones(301, 333), torch.eye(333)
    out = add_low_rank(torch.zeros_like(x), x, eye, eye, 1.0, 0.1)
    assert abs((out == 0).float().mean() - 0.1) < 0.005
    assert torch.allclose(out[out > 0], torch.tensor(1 / 0.9), rtol=1e-4)
    assert (out == 0).float().mean(0).std() < 0.03  # no column is favored
    assert not torch.equal(out, add_low_rank(torch.zeros_like(x), x, eye, eye, 1.0, 0.1))


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (lambda x, w: functional.rms_norm(x, w, 1e-5), [(2, 5, 8), (8,)]),
        (lambda x: functional.apply_rope(x, *ANGLES), [(1, 3, 7, 8)]),
        (lambda y, x, a, b: functional.add_low_rank(y, x, a, b, 0.7, 0.0), [(4, 7), (4, 6), (3, 6), (7, 3)]),
    ],
    ids=["rms_norm", "rope", "low rank"],
)
def test_the_dispatcher_computes_the_same_with_and_without_fused_operations(monkeypatch, operation, shapes):
    inputs = [torch.randn(shape) for shape in shapes]
    fused = results(operation, *inputs)
    monkeypatch.setattr(functional, "use_fused_cpu", lambda x: False)
    assert_close(fused, results(operation, *inputs), 1e-5)


def test_the_norm_of_16_bit_numbers_is_summed_in_float32():
    x = (torch.randn(4, 4096, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = rms_norm(x, torch.ones(4096), 1e-5, torch.float32)
    torch.testing.assert_close(normed.double(), exact, rtol=1e-5, atol=0)
