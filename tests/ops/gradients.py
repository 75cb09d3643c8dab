"""Outputs and gradients of a function, to compare an implementation with what autograd computes for the plain formula."""

import torch


def results(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The output of a function, and the gradients of a random projection of it with respect to its inputs."""
    inputs = tuple(each.detach().clone().requires_grad_() for each in inputs)
    out = function(*inputs)
    projection = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    out.backward(projection)
    return [out.detach(), *(each.grad for each in inputs)]


def assert_close(ours: list[torch.Tensor], theirs: list[torch.Tensor], bound: float) -> None:
    """Equal to `bound` times the largest value of each tensor, with the same precision and shape."""
    for one, other in zip(ours, theirs, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        # A gradient that is zero in exact arithmetic may differ by rounding.
        assert not one.numel() or (one - other).abs().max() <= bound * other.abs().max() + 1e-6
