"""Attention as plain products against PyTorch's kernel."""

import pytest
import torch
import torch.nn.functional as F

from mini_chat_gpt.ops.products import causal_products


def visible(n_new: int, n_all: int, window: int | None) -> torch.Tensor:
    """(n_new, n_all): which keys each of the last n_new tokens sees."""
    queries, keys = torch.arange(n_all - n_new, n_all)[:, None], torch.arange(n_all)[None, :]
    return (keys <= queries) if window is None else (keys <= queries) & (keys > queries - window)


@pytest.mark.parametrize("window", [None, 1, 30, 500])
@pytest.mark.parametrize(("n_new", "n_all"), [(1, 1), (2, 9), (64, 64), (65, 65), (200, 200), (7, 300), (150, 170)])
@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_products_in_blocks_are_pytorchs_attention(window, n_new, n_all, n_kv_head, scale):
    torch.manual_seed(0)
    q = torch.randn(2, n_new, 4, 16).transpose(1, 2)
    k, v = (torch.randn(2, n_kv_head, n_all + 5, 16)[:, :, :n_all] for _ in range(2))
    mask = visible(n_new, n_all, window)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    torch.testing.assert_close(causal_products(q, k, v, scale, window), expected, atol=1e-5, rtol=0)


def test_products_in_bfloat16_are_near_those_in_float32():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 200, 16) for _ in range(3))
    exact = causal_products(q, k, v, None, None)
    got = causal_products(q.bfloat16(), k.bfloat16(), v.bfloat16(), None, None)
    assert got.dtype == torch.bfloat16
    assert (got.float() - exact).square().mean().sqrt() < 0.01 * exact.std()
