"""Every way of computing attention against PyTorch's kernel with a mask."""

from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F
from gradients import assert_close, results

from mini_chat_gpt.ops import attention, cpu_attention
from mini_chat_gpt.ops.attention import packed_attention
from mini_chat_gpt.ops.cpu_attention import last_tokens_attention, use_blocked_attention
from mini_chat_gpt.ops.packed_layout import Packed


@pytest.mark.parametrize("lengths", [[1], [31], [64, 60], [100, 40, 37, 1]])
@pytest.mark.parametrize("n_head", [2, 6], ids=["a head each", "three heads share keys"])
@pytest.mark.parametrize("window", [None, 5])
def test_blocked_attention_equals_pytorchs(monkeypatch, lengths, n_head, window):
    monkeypatch.setattr(cpu_attention, "BLOCK", 32)
    total = sum(lengths)
    q, k, v = torch.randn(1, n_head, total, 8), torch.randn(1, 2, total, 8), torch.randn(1, 2, total, 8)
    example = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    distance = torch.arange(total)[:, None] - torch.arange(total)
    visible = (distance >= 0) & (distance < (window or total)) & (example[:, None] == example)

    def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, visible, scale=0.3, enable_gqa=True)

    layout = Packed(tuple(accumulate(lengths, initial=0)))
    assert use_blocked_attention(q, layout)
    assert_close(
        results(lambda *qkv: packed_attention(*qkv, layout, 0.3, window), q, k, v), results(theirs, q, k, v), 1e-5
    )


@pytest.mark.parametrize("window", [None, 5])
def test_the_flash_kernel_gets_the_arguments_for_the_same_result(monkeypatch, window):
    """The path that runs on a GPU, with a plain kernel in place of PyTorch's."""

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
    expected = packed_attention(q, k, v, layout, 0.3, window)
    monkeypatch.setattr(attention, "use_flash_varlen", lambda *_: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain)
    torch.testing.assert_close(packed_attention(q, k, v, layout, 0.3, window), expected, atol=1e-5, rtol=1e-5)


def test_long_examples_do_not_keep_probabilities():
    q = torch.randn(1, 1, 1030, 8)
    assert not use_blocked_attention(q, Packed((0, 1030)))


def visible(n_new: int, n_all: int, window: int | None) -> torch.Tensor:
    """(n_new, n_all): which keys each of the last n_new tokens sees."""
    queries, keys = torch.arange(n_all - n_new, n_all)[:, None], torch.arange(n_all)[None, :]
    return (keys <= queries) if window is None else (keys <= queries) & (keys > queries - window)


@pytest.mark.parametrize("window", [None, 1, 30, 500])
@pytest.mark.parametrize(("n_new", "n_all"), [(1, 1), (2, 9), (64, 64), (65, 65), (200, 200), (7, 300), (150, 170)])
@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_of_the_last_tokens_equals_pytorchs(window, n_new, n_all, n_kv_head, scale):
    torch.manual_seed(0)
    q = torch.randn(2, n_new, 4, 16).transpose(1, 2)
    k, v = (torch.randn(2, n_kv_head, n_all + 5, 16)[:, :, :n_all] for _ in range(2))
    mask = visible(n_new, n_all, window)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    torch.testing.assert_close(last_tokens_attention(q, k, v, scale, window), expected, atol=1e-5, rtol=0)


def test_attention_of_the_last_tokens_in_bfloat16_is_close_to_float32():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 200, 16) for _ in range(3))
    exact = last_tokens_attention(q, k, v, None, None)
    got = last_tokens_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), None, None)
    assert got.dtype == torch.bfloat16
    assert (got.float() - exact).square().mean().sqrt() < 0.01 * exact.std()


@pytest.mark.parametrize("branches", [(), ((), (2, 5))], ids=["plain", "branches"])
@pytest.mark.parametrize("window", [None, 5])
def test_groups_of_padded_examples_equal_blocked_attention(monkeypatch, window, branches):
    """The path of GPUs without the flash kernel, and of long examples."""
    q, k, v = torch.randn(1, 6, 70, 8), torch.randn(1, 2, 70, 8), torch.randn(1, 2, 70, 8)
    layout = Packed((0, 31, 40, 70), prefix_branches=branches)

    def attend(*qkv: torch.Tensor) -> torch.Tensor:
        return packed_attention(*qkv, layout, None, window)

    blocked = results(attend, q, k, v)
    monkeypatch.setattr(attention, "use_blocked_attention", lambda *_: False)
    assert_close(results(attend, q, k, v), blocked, 1e-5)


@pytest.mark.parametrize(("device", "dtype", "blocked"), [
    ("cpu", torch.float32, True), ("cpu", torch.bfloat16, True), ("cpu", torch.float64, False), ("cpu", torch.float16, False),
    ("meta", torch.bfloat16, False), ("meta", torch.float32, False),
])  # fmt: skip
def test_blocked_attention_is_for_processors_in_two_precisions(device, dtype, blocked):
    q = torch.empty(1, 2, 9, 8, device=device, dtype=dtype)
    assert use_blocked_attention(q, Packed((0, 9), device=device)) == blocked
