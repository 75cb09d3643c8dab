"""Flat batches: nothing lost, nothing crosses from one example into the next."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model

from mini_chat_gpt.batching import Example, blank_batch, collate, micro_batches


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
    batch = collate(made)
    want = []
    for start, example in zip(batch.offsets, made, strict=False):
        for index in np.flatnonzero(example.trained):
            if index:  # the first token of an example has nothing before it
                want.append((start + index - 1, int(example.ids[index]), np.float32(example.weight), example.kind))
    got = list(
        zip(
            batch.rows.tolist(),
            batch.targets.tolist(),
            batch.weights.numpy(),
            [batch.kind_names[k] for k in batch.kinds],
            strict=True,
        )
    )
    assert got == want


@given(examples())
def test_positions_start_anew_in_each_example_and_no_token_is_lost(made):
    batch = collate(made)
    assert torch.equal(batch.ids, torch.from_numpy(np.concatenate([example.ids for example in made])).long())
    assert batch.positions.tolist() == [i for example in made for i in range(len(example.ids))]
    assert batch.offsets[-1] == batch.n_tokens
    assert batch.n_examples == len(made)


@given(examples(), st.integers(1, 5))
def test_micro_batches_hold_every_example_once(made, size):
    batches = micro_batches(made, size)
    assert all(batch.n_examples <= size for batch in batches)
    pieces = [tuple(b.ids[s:e].tolist()) for b in batches for s, e in zip(b.offsets, b.offsets[1:], strict=False)]
    assert sorted(pieces) == sorted(tuple(example.ids.tolist()) for example in made)
    assert sum(len(batch.targets) for batch in batches) == sum(example.n_trained for example in made)


def test_an_example_without_a_target_is_refused():
    only_first = Example(np.arange(3, dtype=np.int32), np.array([True, False, False]), 1.0, "x")
    with pytest.raises(ValueError, match="no trained token"):
        collate([only_first])


def test_a_batch_without_targets_gives_a_zero_that_reaches_every_weight():
    model = tiny_model(64)
    loss = model(blank_batch()).weighted_sum
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@given(examples(), st.integers(1, 4), st.integers(1, 40))
def test_micro_batches_keep_within_their_limits_and_lose_nothing(made, size, tokens):
    batches = micro_batches(made, size, tokens)
    assert all(batch.n_examples <= size for batch in batches)
    assert all(batch.n_tokens <= tokens or batch.n_examples == 1 for batch in batches)
    assert sum(batch.n_examples for batch in batches) == len(made)
    assert sum(batch.n_tokens for batch in batches) == sum(len(example.ids) for example in made)
