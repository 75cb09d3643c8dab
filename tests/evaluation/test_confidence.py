"""Intervals have their nominal coverage, and the paired test is the textbook sign-flip test."""

from math import comb

import numpy as np
import pytest

from mini_chat_gpt.evaluation import confidence
from mini_chat_gpt.evaluation.confidence import bootstrap, paired, ratio, wilson

RNG = np.random.default_rng(0)


def test_an_interval_of_the_mean_covers_it_about_95_times_in_100():
    rng = np.random.default_rng(1)
    samples = rng.exponential(size=(400, 60))  # mean 1, skewed
    intervals = [bootstrap(sample, n=400, seed=seed) for seed, sample in enumerate(samples)]
    assert 0.90 <= np.mean([low <= 1 <= high for low, high in intervals]) <= 0.98


def test_an_interval_is_as_wide_as_the_normal_distribution_says():
    values = RNG.normal(5, 2, size=2000)
    low, high = bootstrap(values, n=4000)
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_any_statistic_is_resampled_item_by_item():
    values = RNG.normal(size=501)
    low, high = bootstrap(values, lambda samples: np.median(samples, axis=1))
    assert low < np.median(values) < high
    sizes = RNG.integers(1, 100, size=300)
    low, high = bootstrap(np.stack([3 * sizes, sizes], axis=1), ratio)
    assert (low, high) == pytest.approx((3, 3))


@pytest.mark.parametrize(
    ("right", "n", "expected"),
    [
        (8, 10, (0.4902, 0.9433)),
        (40, 40, (0.9124, 1)),
        (0, 40, (0, 0.0876)),
        (1, 2, (0.0945, 0.9055)),
        (15, 50, (0.1910, 0.4375)),
    ],
)
def test_the_interval_of_a_share_is_wilsons(right, n, expected):
    assert wilson([1.0] * right + [0.0] * (n - right)) == pytest.approx(expected, abs=1e-4)


def test_the_interval_of_a_share_covers_it_about_95_times_in_100_also_near_its_end():
    rng = np.random.default_rng(2)
    for share in (0.5, 0.96):
        intervals = [wilson(rng.random(40) < share) for _ in range(2000)]
        assert 0.92 <= np.mean([low <= share <= high for low, high in intervals]) <= 0.99


def test_non_finite_differences_are_not_significant():
    assert paired([1, 1, 1], [float("nan"), 1, 1]).p == 1


def test_one_item_and_equal_items_give_an_interval_without_width():
    assert bootstrap([0.5]) == (0.5, 0.5)
    assert bootstrap([2.0] * 20) == (2.0, 2.0)
    assert bootstrap([[1, 4]], ratio) == (0.25, 0.25)


def test_an_interval_without_items_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        bootstrap([])
    with pytest.raises(ValueError, match="at least one item"):
        paired([], [])


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="2 items before and 1 after"):
        paired([1, 2], [1])


def test_the_same_arguments_give_the_same_result():
    before, after = RNG.normal(size=(2, 50))
    assert bootstrap(before) == bootstrap(before)
    assert paired(before, after) == paired(before, after)
    assert bootstrap(before) != bootstrap(before, seed=2)


def test_the_chunk_size_does_not_change_the_result(monkeypatch):
    before, after = RNG.normal(size=(2, 50))
    whole = paired(before, after)
    monkeypatch.setattr(confidence, "_CHUNK", 120)
    assert paired(before, after)[:3] == whole[:3]
    assert paired(before, after).p == pytest.approx(whole.p, abs=0.03)


def test_few_pairs_are_tested_with_all_signs():
    assert paired([0, 0, 0], [1, 2, 3]).p == 2 / 8  # only all + and all − are as far from 0
    assert paired([0, 0, 0], [1, 2, -3]).p == 1
    assert paired([0, 0, 0, 0], [1, 2, 3, -1]).p == 6 / 16  # |sum| is 5 or 7 in 6 of 16 cases


def test_pairs_without_differences_are_not_significant():
    assert paired([1.0, 2.0], [1.0, 2.0]) == (0, 0, 0, 1)
    assert paired([1.0], [3.0]) == (2, 2, 2, 1)


@pytest.mark.parametrize(("better", "worse"), [(9, 2), (10, 5), (40, 18)])
def test_for_right_or_wrong_it_is_mcnemars_exact_test(better, worse):
    before = [0] * better + [1] * worse + [1] * 30
    after = [1] * better + [0] * worse + [1] * 30
    n = better + worse
    exact = min(1.0, 2 * sum(comb(n, k) for k in range(better, n + 1)) / 2**n)
    assert paired(before, after).p == pytest.approx(exact, abs=0.01 if n > confidence.MAX_EXACT else 1e-12)


def test_without_a_difference_p_is_below_5_percent_about_5_times_in_100():
    rng = np.random.default_rng(3)
    differences = rng.normal(size=(600, 12))
    small = np.mean([paired(np.zeros(12), row, n=10).p <= 0.05 for row in differences])
    assert 0.025 <= small <= 0.08


def test_a_clear_difference_among_many_items_has_the_smallest_possible_p():
    result = paired(RNG.normal(size=200), RNG.normal(size=200) + 3)
    assert result.p == 1 / (confidence.SIGN_DRAWS + 1)
    assert result.low < result.difference < result.high
    assert result.low > 2
