"""Balancing: the shares of the mixture are reached if the data allow it, and approximated otherwise."""

import numpy as np
import pytest

from mini_chat_gpt.tinystories.mixture import balanced_weights, realized_shares, solve_weights

RNG = np.random.default_rng(0)


def sample(*chances: float, records: int = 1000) -> np.ndarray:
    return RNG.random((records, len(chances))) < np.array(chances)


@pytest.mark.parametrize("wished", [[1, 1, 1], [5, 3, 2], [0.1, 0.1, 0.8]])
def test_shares_within_reach_are_met(wished):
    supported = sample(0.9, 0.9, 0.9)
    shares = realized_shares(supported, solve_weights(supported, np.array(wished, dtype=float)))
    assert shares == pytest.approx(np.array(wished) / sum(wished), abs=2e-3)


def test_a_rare_category_is_taken_wherever_it_occurs_and_the_others_keep_their_proportion():
    supported = sample(1, 1, 0.05)
    shares = realized_shares(supported, solve_weights(supported, np.array([0.4, 0.2, 0.4])))
    assert shares[2] == pytest.approx(supported[:, 2].mean(), abs=2e-3)
    assert shares[0] / shares[1] == pytest.approx(2, abs=0.05)


def test_the_only_category_of_most_records_does_not_change_the_proportion_of_the_others():
    supported = sample(1, 0.3, 0.3)
    shares = realized_shares(supported, solve_weights(supported, np.array([0.1, 0.6, 0.3])))
    assert shares[0] == pytest.approx((supported.sum(axis=1) == 1).mean(), abs=0.02)


def test_a_category_without_records_or_share_is_never_drawn():
    assert solve_weights(sample(0.5, 0, 0.5), np.array([1.0, 1.0, 0.0]))[1:].tolist() == [0, 0]


def test_no_category_at_all_gives_no_weights():
    assert not solve_weights(np.zeros((5, 2), dtype=bool), np.ones(2)).any()


NAMES = ["words", "ending/yes", "ending/no"]


def test_both_answers_of_a_yes_no_kind_are_drawn_equally_often():
    answer = RNG.random(1000) < 0.9
    supported = np.stack([np.ones(1000, dtype=bool), answer, ~answer], axis=1)
    shares = realized_shares(supported, balanced_weights(supported, NAMES, {"words": 0.9, "ending": 0.1}))
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=3e-3)


def test_the_frequent_answer_is_limited_to_the_share_of_the_rare_one():
    answer = RNG.random(1000) < 0.98
    supported = np.stack([np.ones(1000, dtype=bool), answer, ~answer], axis=1)
    shares = realized_shares(supported, balanced_weights(supported, NAMES, {"words": 0.5, "ending": 0.5}))
    assert shares[1] == pytest.approx(shares[2], rel=0.05)
    assert shares[2] == pytest.approx((~answer).mean(), rel=0.05)


def test_a_question_with_one_answer_only_is_excluded():
    supported = np.array([[True, True, False]] * 10)
    assert balanced_weights(supported, NAMES, {"words": 0.5, "ending": 0.5})[1:].tolist() == [0, 0]
