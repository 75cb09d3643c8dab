"""What is written out by hand against what autograd makes of the plain formulas."""

from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F

from mini_chat_gpt.ops import cpu_attention, packed_layout
from mini_chat_gpt.ops.fused import low_rank, rms_norm, rotate
from mini_chat_gpt.ops.loss import IGNORE_INDEX, cross_entropy_sums
from mini_chat_gpt.ops.packed_layout import Packed, blocks_are_faster, flat


def results(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """What a function gives, and the gradients of a random projection of it."""
    inputs = tuple(each.detach().clone().requires_grad_() for each in inputs)
    out = function(*inputs)
    projection = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    out.backward(projection)
    return [out.detach(), *(each.grad for each in inputs)]


def assert_alike(ours, theirs, bound):
    for one, other in zip(ours, theirs, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert not one.numel() or (one - other).abs().max() <= bound * other.abs().max()


def test_the_norm_is_pytorchs():
    x, weight = torch.randn(2, 5, 24), torch.randn(24)
    assert_alike(
        results(lambda x, w: rms_norm(x, w, 1e-5, torch.float32), x, weight),
        results(lambda x, w: F.rms_norm(x, (24,), w, 1e-5), x, weight),
        1e-6,
    )


def test_the_norm_gives_its_result_in_the_precision_asked_for_and_gradients_in_that_of_the_input():
    out, d_x, d_weight = results(lambda x, w: rms_norm(x, w, 1e-5, torch.bfloat16), torch.randn(3, 8), torch.ones(8))
    assert (out.dtype, d_x.dtype, d_weight.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_the_norm_of_nothing_but_zeros_has_finite_gradients():
    _, d_x, _ = results(lambda x, w: rms_norm(x, w, 1e-5, torch.float32), torch.zeros(2, 8), torch.ones(8))
    assert d_x.isfinite().all()


def test_the_rotation_is_that_of_the_plain_formula():
    x, angles = torch.randn(1, 3, 7, 8), torch.randn(1, 1, 7, 4)
    cos, sin = angles.cos(), angles.sin()

    def plain(x: torch.Tensor) -> torch.Tensor:
        x1, x2 = x.chunk(2, dim=-1)
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)

    assert_alike(results(lambda x: rotate(x, cos, sin), x), results(plain, x), 1e-6)


@pytest.mark.parametrize("lengths", [[1], [31], [64, 60], [100, 40, 37, 1]])
@pytest.mark.parametrize("n_head", [2, 6], ids=["a head each", "three heads share keys"])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_in_blocks_is_pytorchs(monkeypatch, lengths, n_head, window):
    monkeypatch.setattr(cpu_attention, "BLOCK", 32)
    total = sum(lengths)
    q, k, v = torch.randn(1, n_head, total, 8), torch.randn(1, 2, total, 8), torch.randn(1, 2, total, 8)
    example = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    distance = torch.arange(total)[:, None] - torch.arange(total)
    visible = (distance >= 0) & (distance < (window or total)) & (example[:, None] == example)

    def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, visible, scale=0.3, enable_gqa=True)

    layout = Packed(tuple(accumulate(lengths, initial=0)))
    assert blocks_are_faster(q, layout)
    assert_alike(results(lambda *qkv: flat(*qkv, layout, 0.3, window), q, k, v), results(theirs, q, k, v), 1e-5)


@pytest.mark.parametrize("window", [None, 5])
def test_a_flash_kernel_is_told_the_same_as_the_others(monkeypatch, window):
    """What would run on a GPU, with a plain kernel in place of PyTorch's."""

    def plain(q, k, v, edges, key_edges, longest, longest_key, scale, window_size, enable_gqa):
        assert edges.dtype == torch.int32
        assert longest == longest_key >= edges.diff().max()
        outs = []
        for start, stop in pairwise(edges.tolist()):
            behind = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
            seen = (behind >= -window_size[1]) & ((behind <= window_size[0]) | (window_size[0] < 0))
            parts = (part[start:stop].transpose(0, 1) for part in (q, k, v))
            outs.append(
                F.scaled_dot_product_attention(*parts, seen, scale=scale, enable_gqa=enable_gqa).transpose(0, 1)
            )
        assert torch.equal(edges, key_edges)
        return torch.cat(outs)

    q, k, v = torch.randn(1, 6, 40, 8), torch.randn(1, 2, 40, 8), torch.randn(1, 2, 40, 8)
    layout = Packed((0, 7, 31, 40))
    expected = flat(q, k, v, layout, 0.3, window)
    monkeypatch.setattr(packed_layout, "flash_can", lambda *_: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain)
    torch.testing.assert_close(flat(q, k, v, layout, 0.3, window), expected, atol=1e-5, rtol=1e-5)


def test_attention_over_long_examples_keeps_nothing_quadratic():
    q = torch.randn(1, 1, 1030, 8)
    assert not blocks_are_faster(q, Packed((0, 1030)))


def plain_cross_entropy(hidden, head, targets, weights):
    losses = F.cross_entropy(F.linear(hidden, head).float(), targets, ignore_index=IGNORE_INDEX, reduction="none")
    return (losses * weights).sum()


@pytest.mark.parametrize("rows", [0, 1, 50])
def test_the_loss_is_pytorchs(rows):
    hidden, head = torch.randn(rows, 16), torch.randn(40_000, 16)
    targets, weights = torch.randint(0, 40_000, (rows,)), torch.rand(rows)
    targets[::7] = IGNORE_INDEX
    ours = results(lambda h, w: cross_entropy_sums(h, w, targets, weights).weighted_sum, hidden, head)
    theirs = results(lambda h, w: plain_cross_entropy(h, w, targets, weights), hidden, head)
    assert_alike(ours, theirs, 1e-5)


def test_in_bf16_gradients_of_the_loss_are_as_near_to_float32_as_those_of_the_plain_formula():
    hidden, head = torch.randn(64, 32), torch.randn(500, 32)
    targets, weights = torch.randint(0, 500, (64,)), torch.rand(64)
    exact = results(lambda h, w: plain_cross_entropy(h, w, targets, weights), hidden, head)

    def in_bf16(function):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return results(lambda h, w: function(h, w, targets, weights), hidden, head)

    ours, plain = in_bf16(lambda *args: cross_entropy_sums(*args).weighted_sum), in_bf16(plain_cross_entropy)
    for one, other, right in zip(ours, plain, exact, strict=True):
        assert (one - right).norm() <= 1.25 * (other - right).norm() + 1e-6 * right.norm()


def test_a_target_that_is_as_good_as_certain_keeps_its_small_gradient_in_bf16():
    """p rounds to 1 in bf16, but its distance from 1 doesn't round to 0."""
    hidden = torch.tensor([[1.0]]).requires_grad_()
    head = torch.tensor([[7.0], [0.0]]).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cross_entropy_sums(hidden, head, torch.tensor([0]), torch.ones(1)).weighted_sum.backward()
    p = torch.sigmoid(torch.tensor(7.0))
    assert torch.allclose(head.grad[0], p - 1, rtol=0.01)


def test_a_second_backward_pass_is_refused():
    sums = cross_entropy_sums(
        torch.randn(2, 4).requires_grad_(), torch.randn(9, 4), torch.tensor([1, 2]), torch.ones(2)
    )
    sums.weighted_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        sums.weighted_sum.backward()


def test_an_adapters_product_is_the_plain_formula():
    torch.manual_seed(0)
    whole, x, a, b = torch.randn(2, 5, 7), torch.randn(2, 5, 6), torch.randn(3, 6), torch.randn(7, 3)
    ours = results(lambda *those: low_rank(*those, 0.7, 0.0), whole, x, a, b)
    assert_alike(ours, results(lambda whole, x, a, b: whole + 0.7 * (x @ a.T @ b.T), whole, x, a, b), 1e-6)
    half = whole.bfloat16()
    rough = results(lambda *those: low_rank(*those, 0.7, 0.0), half, x, a, b)
    assert [each.dtype for each in rough] == [torch.bfloat16, torch.bfloat16, *[torch.float32] * 3]
    for one, other in zip(rough, ours, strict=True):
        assert (one.float() - other).abs().max() <= 0.05 * other.abs().max()


def test_what_an_adapter_drops_in_the_forward_pass_it_drops_in_the_backward_pass():
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 7), (4, 6), (3, 6), (7, 3))]

    def dropped(whole, x, a, b):
        torch.manual_seed(3)
        return low_rank(whole, x, a.double(), b.double(), 0.7, 0.4)

    assert torch.autograd.gradcheck(lambda *those: dropped(*those), inputs)
    assert not torch.equal(dropped(*inputs), low_rank(*inputs, 0.7, 0.0))


def test_as_much_is_dropped_as_was_asked_for_and_the_rest_makes_up_for_it():
    torch.manual_seed(0)
    x, eye = torch.ones(301, 333), torch.eye(333)
    out = low_rank(torch.zeros_like(x), x, eye, eye, 1.0, 0.1)
    assert abs((out == 0).float().mean() - 0.1) < 0.005
    assert torch.allclose(out[out > 0], torch.tensor(1 / 0.9), rtol=1e-4)
    assert (out == 0).float().mean(0).std() < 0.03  # no column is favoured
    assert not torch.equal(out, low_rank(torch.zeros_like(x), x, eye, eye, 1.0, 0.1))
