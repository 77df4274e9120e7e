"""Intervals, held against Wilson's formula worked out by hand and against how often they cover the truth."""

import numpy as np
import pytest

from manners.evaluation.stats import Estimate, bootstrap_ratio, proportion


def test_a_share_has_wilsons_interval():
    # z = 1.959964, n = 10, p = 0.8: the centre is (p + z²/2n) / (1 + z²/n) = 0.992073 / 1.384146 = 0.716740,
    # the half width z·√(p(1-p)/n + z²/4n²) / (1 + z²/n) = 1.959964·√0.0256036 / 1.384146 = 0.226578.
    found = proportion(8, 10)
    assert found.value == 0.8
    assert found.low == pytest.approx(0.716740 - 0.226578, abs=2e-6)
    assert found.high == pytest.approx(0.716740 + 0.226578, abs=2e-6)


def test_none_of_ten_is_not_surely_none():
    # For p = 0 the upper end is z²/n / (1 + z²/n) = 0.3841459 / 1.3841459.
    found = proportion(0, 10)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(0.3841459 / 1.3841459, abs=1e-6)


def test_a_ratio_weighs_long_conversations_more():
    # The mean of the two ratios would be (1 + 3) / 2 = 2; weighed by tokens it is (1·1 + 3·9) / (1 + 9) = 2.8.
    assert bootstrap_ratio(np.array([1.0, 27.0]), np.array([1, 9])).value == pytest.approx(2.8)


def test_the_interval_of_a_ratio_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(100):
        tokens = rng.integers(1, 20, 40)
        found = bootstrap_ratio(tokens * (1.5 + rng.normal(0, 1, 40)), tokens, seed=i)
        assert found.low < found.value < found.high
        covered += found.low <= 1.5 <= found.high
    assert 88 <= covered <= 99  # a percentile bootstrap of 40 pairs is a little narrow


def test_the_same_seed_gives_the_same_interval():
    sums, weights = np.arange(1.0, 9.0), np.ones(8)
    assert bootstrap_ratio(sums, weights, seed=3) == bootstrap_ratio(sums, weights, seed=3)
    assert bootstrap_ratio(sums, weights, seed=3) != bootstrap_ratio(sums, weights, seed=4)


def test_one_conversation_alone_has_no_spread_to_show():
    assert bootstrap_ratio(np.array([6.0]), np.array([4])) == Estimate(1.5, 1.5, 1.5)


def test_estimates_are_printed_with_their_interval():
    assert Estimate(0.8, 0.49, 0.943).percent() == "80.0 % [49.0, 94.3]"
    assert Estimate(1.5, 1.25, 1.75).plain() == "1.500 [1.250, 1.750]"
