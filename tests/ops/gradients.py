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
    largest = max(float(other.abs().max()) for other in theirs if other.numel())
    for one, other in zip(ours, theirs, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        # A gradient that is zero in exact arithmetic is the rounding error of terms as large as the other gradients.
        allowed = (
            max(bound * float(other.abs().max()), 16 * torch.finfo(torch.float32).eps * largest) if one.numel() else 0
        )
        error = float((one - other).abs().max()) if one.numel() else 0.0
        assert error <= allowed, f"{error} > {allowed}, tensors up to {largest}"
