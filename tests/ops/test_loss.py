"""The summed cross-entropy against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from gradients import assert_close, results

from mini_chat_gpt.ops.loss import IGNORE_INDEX, cross_entropy_sums


def plain_cross_entropy(hidden, head, labels, weights):
    losses = F.cross_entropy(F.linear(hidden, head).float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
    return (losses * weights).sum()


@pytest.mark.parametrize("rows", [0, 1, 50])
def test_the_loss_equals_pytorchs(rows):
    hidden, head = torch.randn(rows, 16), torch.randn(40_000, 16)
    labels, weights = torch.randint(0, 40_000, (rows,)), torch.rand(rows)
    labels[::7] = IGNORE_INDEX
    ours = results(lambda h, w: cross_entropy_sums(h, w, labels, weights).weighted_sum, hidden, head)
    theirs = results(lambda h, w: plain_cross_entropy(h, w, labels, weights), hidden, head)
    assert_close(ours, theirs, 1e-5)


def test_bf16_gradients_are_as_close_to_float32_as_those_of_the_plain_formula():
    hidden, head = torch.randn(64, 32), torch.randn(500, 32)
    labels, weights = torch.randint(0, 500, (64,)), torch.rand(64)
    exact = results(lambda h, w: plain_cross_entropy(h, w, labels, weights), hidden, head)

    def in_bf16(function):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return results(lambda h, w: function(h, w, labels, weights), hidden, head)

    ours, plain = in_bf16(lambda *args: cross_entropy_sums(*args).weighted_sum), in_bf16(plain_cross_entropy)
    for one, other, right in zip(ours, plain, exact, strict=True):
        assert (one - right).norm() <= 1.25 * (other - right).norm() + 1e-6 * right.norm()


def test_an_almost_certain_label_keeps_its_small_gradient_in_bf16():
    """p rounds to 1 in bf16, but its distance from 1 doesn't round to 0."""
    hidden = torch.tensor([[1.0]]).requires_grad_()
    head = torch.tensor([[7.0], [0.0]]).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cross_entropy_sums(hidden, head, torch.tensor([0]), torch.ones(1)).weighted_sum.backward()
    p = torch.sigmoid(torch.tensor(7.0))
    assert torch.allclose(head.grad[0], p - 1, rtol=0.01)


def test_a_second_backward_pass_raises():
    sums = cross_entropy_sums(
        torch.randn(2, 4).requires_grad_(), torch.randn(9, 4), torch.tensor([1, 2]), torch.ones(2)
    )
    sums.weighted_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        sums.weighted_sum.backward()
