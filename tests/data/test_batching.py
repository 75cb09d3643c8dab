"""Packed batches: no token is lost, and examples are independent."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model

from mini_chat_gpt.data.batching import (
    Example,
    blank_batch,
    collate,
    micro_batches,
    share_prefix,
)
from mini_chat_gpt.data.epoch_order import EpochOrder, epoch_order


@st.composite
def examples(draw):
    made = []
    for _ in range(draw(st.integers(1, 8))):
        length = draw(st.integers(2, 12))
        trained = draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))
        trained[draw(st.integers(0, length - 2))] = True
        ids = draw(st.lists(st.integers(0, 99), min_size=length, max_size=length))
        kind = draw(st.sampled_from(["a", "b", "c"]))
        made.append(
            Example(np.array(ids, np.int32), np.array([draw(st.booleans()), *trained]), draw(st.floats(0.1, 5)), kind)
        )
    return made


@given(examples())
def test_each_target_is_predicted_from_the_token_before_it_in_its_own_example(made):
    batch = collate(made, pad_to_multiple_of=1)
    want = []
    for start, example in zip(batch.cu_seqlens, made, strict=False):
        for index in np.flatnonzero(example.loss_mask):
            if index:  # the first token of an example has nothing before it
                want.append((start + index - 1, int(example.ids[index]), np.float32(example.weight), example.kind))
    got = list(
        zip(
            batch.target_positions.tolist(),
            batch.labels.tolist(),
            batch.weights.numpy(),
            [batch.kind_names[k] for k in batch.kinds],
            strict=True,
        )
    )
    assert got == want


@given(examples())
def test_positions_restart_in_each_example_and_no_token_is_lost(made):
    batch = collate(made, pad_to_multiple_of=1)
    assert torch.equal(batch.ids, torch.from_numpy(np.concatenate([example.ids for example in made])).long())
    assert batch.positions.tolist() == [i for example in made for i in range(len(example.ids))]
    assert batch.cu_seqlens[-1] == batch.n_tokens
    assert batch.n_examples == len(made)


@given(examples(), st.integers(1, 9))
def test_padding_is_at_the_end_and_is_not_counted(made, multiple):
    batch, padded = collate(made, pad_to_multiple_of=1), collate(made, pad_to_multiple_of=multiple)
    assert len(padded.ids) % multiple == len(padded.labels) % multiple == 0
    assert padded.ids[: len(batch.ids)].tolist() == batch.ids.tolist()
    assert padded.labels[: len(batch.labels)].tolist() == batch.labels.tolist()
    assert not padded.weights[padded.n_targets :].any()
    counts = [(b.n_tokens, b.n_examples, b.n_targets, b.total_weight, b.cu_seqlens) for b in (batch, padded)]
    assert counts[0] == counts[1]


@given(examples(), st.integers(1, 5))
def test_micro_batches_contain_every_example_once(made, size):
    batches = micro_batches(made, size)
    assert all(batch.n_examples <= size for batch in batches)
    pieces = [tuple(b.ids[s:e].tolist()) for b in batches for s, e in zip(b.cu_seqlens, b.cu_seqlens[1:], strict=False)]
    assert sorted(pieces) == sorted(tuple(example.ids.tolist()) for example in made)
    assert sum(batch.n_targets for batch in batches) == sum(example.n_trained for example in made)


def test_an_example_without_a_target_is_an_error():
    only_first = Example(np.arange(3, dtype=np.int32), np.array([True, False, False]), 1.0, "x")
    with pytest.raises(ValueError, match="no trained token"):
        collate([only_first])


def test_a_batch_without_targets_has_zero_loss_and_a_gradient_for_every_weight():
    model = tiny_model(64)
    loss = model(blank_batch()).weighted_sum
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@given(examples(), st.integers(1, 4), st.integers(1, 40))
def test_micro_batches_respect_their_limits_and_lose_nothing(made, size, tokens):
    batches = micro_batches(made, size, tokens)
    assert all(batch.n_examples <= size for batch in batches)
    assert all(batch.n_tokens <= tokens or batch.n_examples == 1 for batch in batches)
    assert sum(batch.n_examples for batch in batches) == len(made)
    assert sum(batch.n_tokens for batch in batches) == sum(len(example.ids) for example in made)


@pytest.mark.parametrize(
    ("tokens", "counts"), [(None, [3]), (15, [3]), (14, [2, 1]), (10, [2, 1]), (9, [1, 1, 1]), (4, [1, 1, 1])]
)
def test_a_micro_batch_is_filled_up_to_its_token_limit(tokens, counts):
    example = Example(np.arange(5, dtype=np.int32), np.array([False, True, True, True, True]), 1.0, "x")
    assert [batch.n_examples for batch in micro_batches([example] * 3, 8, tokens)] == counts


@st.composite
def conversations_that_begin_alike(draw):
    beginning = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
    made = []
    for _ in range(draw(st.integers(1, 4))):
        ids = beginning + draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
        trained = draw(st.lists(st.booleans(), min_size=len(ids) - 1, max_size=len(ids) - 1))
        trained[-1] = True
        weight = np.array(draw(st.lists(st.floats(0.5, 3), min_size=len(ids), max_size=len(ids))), np.float32)
        made.append(Example(np.array(ids, np.int32), np.array([False, *trained]), weight, "x"))
    return made


def weight_by_history(batch):
    """(tokens before, target) -> Σ weight, following each target back through its own conversation."""
    found = {}
    for row, target, weight in zip(
        batch.target_positions.tolist(), batch.labels.tolist(), batch.weights.tolist(), strict=True
    ):
        example = next(n for n in range(batch.n_examples) if row < batch.cu_seqlens[n + 1])
        start, branches = batch.cu_seqlens[example], batch.prefix_branches[example] if batch.prefix_branches else ()
        place = row - start
        branch = max((begin for begin in branches if begin <= place), default=None)
        own = range(place + 1) if branch is None else [*range(branches[0]), *range(branch, place + 1)]
        history = tuple(batch.ids[start + i].item() for i in own)
        assert batch.positions[start : start + place + 1][list(own)].tolist() == list(range(len(history)))
        found[history, target] = found.get((history, target), 0) + weight
    return found


@given(conversations_that_begin_alike())
def test_a_shared_prefix_preserves_the_context_and_weight_of_each_target(made):
    shared = share_prefix(made)
    assert weight_by_history(collate([shared], 1)) == pytest.approx(weight_by_history(collate(made, 1)))
    assert (len(shared.prefix_branches) or 1) == len(made)


@given(conversations_that_begin_alike())
def test_a_shared_prefix_occurs_once(made):
    common = min(len(example.ids) for example in made) - 1
    while any((example.ids[:common] != made[0].ids[:common]).any() for example in made):
        common -= 1
    expected = common + sum(len(example.ids) - common for example in made)
    assert len(share_prefix(made).ids) == (expected if len(made) > 1 else len(made[0].ids))


def test_conversations_without_a_shared_prefix_are_an_error():
    made = [Example(np.array([first, 5], np.int32), np.array([False, True]), 1.0, "x") for first in (1, 2)]
    with pytest.raises(ValueError, match="share nothing"):
        share_prefix(made)


def test_the_order_of_an_epoch_depends_on_the_seed_and_the_epoch():
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1, 2**62) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)


def test_the_order_of_an_epoch_is_made_once_and_takes_four_bytes_for_each_item():
    made = []

    def make(epoch: int) -> np.ndarray:
        made.append(epoch)
        return epoch_order(100, 7, epoch)

    order = EpochOrder(100, 7, make)
    items = [order[index] for index in range(250)]
    assert made == [0, 1, 2]
    assert items == [(index // 100, int(epoch_order(100, 7, index // 100)[index % 100])) for index in range(250)]
    assert epoch_order(100, 7, 0).itemsize == 4
    assert epoch_order(100, 7, 3).tolist() == np.random.default_rng([7, 3]).permutation(100).tolist()
