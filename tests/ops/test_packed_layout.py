"""Layouts of packed rows: groups, padding at the end of the row, and prefix branches."""

import pytest
import torch

from mini_chat_gpt.ops.attention import packed_attention
from mini_chat_gpt.ops.packed_layout import MAX_GROUP_TOKENS, Packed, causal_mask, positions_of


def test_padding_is_an_example_of_its_own_that_no_limit_counts():
    layout = Packed((0, 3, 8), length=64)
    assert layout.cu_seqlens_tensor.tolist() == [0, 3, 8, 64]
    assert layout.groups[-1].stop == 64
    assert (layout.longest_conversation, layout.max_seqlen) == (5, 56)


def test_a_row_without_padding_ends_with_its_last_example():
    assert Packed((0, 3, 8), length=8).cu_seqlens_tensor.tolist() == [0, 3, 8]
    assert Packed((0, 3, 8)).cu_seqlens_tensor.tolist() == [0, 3, 8]


def test_padding_changes_no_attention_within_examples():
    q, k, v = (torch.randn(1, heads, 20, 8) for heads in (4, 2, 2))
    padded = packed_attention(q, k, v, Packed((0, 7, 12), length=20), None, None)
    alone = packed_attention(*(part[:, :, :12] for part in (q, k, v)), Packed((0, 7, 12)), None, None)
    torch.testing.assert_close(padded[:, :, :12], alone)


def test_examples_of_similar_length_share_a_group():
    assert [group.n for group in Packed((0, 50, 98, 145, 155)).groups] == [3, 1]


@pytest.mark.parametrize("lengths", [(30, 31, 30), (32, 32), (7,)])
def test_unpad_is_the_inverse_of_pad(lengths):
    cu_seqlens = tuple(sum(lengths[:n]) for n in range(len(lengths) + 1))
    row = torch.randn(2, sum(lengths), 4)
    for group in Packed(cu_seqlens).groups:
        assert torch.equal(group.unpad(group.pad(row)), row[:, group.start : group.stop])


def test_branches_continue_at_the_end_of_the_prefix():
    assert positions_of(7, (3, 5)).tolist() == [0, 1, 2, 3, 4, 3, 4]
    assert Packed((0, 7), prefix_branches=((3, 5),)).longest_conversation == 5


def test_a_branch_sees_the_prefix_and_itself():
    (group,) = Packed((0, 5), prefix_branches=((2, 3),)).groups
    visible = group.mask(None, torch.device("cpu"))
    assert visible is not None
    assert visible[0, 0, :5, :5].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1],
    ]  # fmt: skip


def test_a_mask_is_needed_only_for_windows_shorter_than_the_row():
    assert causal_mask(5, None, torch.device("cpu")) is None
    assert causal_mask(5, 5, torch.device("cpu")) is None
    mask = causal_mask(3, 2, torch.device("cpu"))
    assert mask is not None
    assert mask.int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_a_group_is_limited_in_tokens():
    groups = Packed(tuple(128 * n for n in range(21))).groups
    assert [group.n for group in groups] == [8, 8, 4]
    assert all(group.n * group.max_seqlen <= MAX_GROUP_TOKENS for group in groups)
