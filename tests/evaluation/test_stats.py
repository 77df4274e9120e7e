"""Confidence intervals against Wilson's formula by hand, and their coverage on simulated data."""

import numpy as np
import pytest
from scipy.stats import t as student

from manners.evaluation.stats import Estimate, bootstrap_ratio, mean, paired_change, paired_difference, proportion, rate


def test_proportion_has_wilsons_interval():
    # z = 1.959964, n = 10, p = 0.8: the center is (p + z²/2n) / (1 + z²/n) = 0.992073 / 1.384146 = 0.716740,
    # the half-width z·√(p(1-p)/n + z²/4n²) / (1 + z²/n) = 1.959964·√0.0256036 / 1.384146 = 0.226578.
    estimate = proportion(8, 10)
    assert estimate.value == 0.8
    assert estimate.low == pytest.approx(0.716740 - 0.226578, abs=2e-6)
    assert estimate.high == pytest.approx(0.716740 + 0.226578, abs=2e-6)


def test_proportion_of_zero_successes_has_an_interval():
    # For p = 0 the upper bound is z²/n / (1 + z²/n) = 0.3841459 / 1.3841459.
    estimate = proportion(0, 10)
    assert (estimate.value, estimate.low) == (0.0, 0.0)
    assert estimate.high == pytest.approx(0.3841459 / 1.3841459, abs=1e-6)


def test_bootstrap_ratio_weights_by_length():
    # The mean of the two ratios would be (1 + 3) / 2 = 2; weighted by tokens it is (1·1 + 3·9) / (1 + 9) = 2.8.
    assert bootstrap_ratio(np.array([1.0, 27.0]), np.array([1, 9])).value == pytest.approx(2.8)


def test_bootstrap_ratio_covers_the_true_value_at_95_percent():
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(100):
        tokens = rng.integers(1, 20, 40)
        estimate = bootstrap_ratio(tokens * (1.5 + rng.normal(0, 1, 40)), tokens, seed=i)
        assert estimate.low < estimate.value < estimate.high
        covered += estimate.low <= 1.5 <= estimate.high
    assert 88 <= covered <= 99  # a percentile bootstrap of 40 pairs is a little narrow


def test_bootstrap_ratio_is_deterministic_by_seed():
    sums, weights = np.arange(1.0, 9.0), np.ones(8)
    assert bootstrap_ratio(sums, weights, seed=3) == bootstrap_ratio(sums, weights, seed=3)
    assert bootstrap_ratio(sums, weights, seed=3) != bootstrap_ratio(sums, weights, seed=4)


def test_bootstrap_ratio_of_one_pair_has_no_width():
    assert bootstrap_ratio(np.array([6.0]), np.array([4])) == Estimate(1.5, 1.5, 1.5)


def test_estimate_formats_with_interval():
    assert Estimate(0.8, 0.49, 0.943).percent() == "80.0 % [49.0, 94.3]"
    assert Estimate(1.5, 1.25, 1.75).plain() == "1.500 [1.250, 1.750]"


@pytest.mark.parametrize("gained, lost, total", [(0, 0, 20), (11, 6, 96), (4, 0, 4), (2, 30, 60)])
def test_paired_difference_has_the_interval_of_agresti_and_min(gained, lost, total):
    """Of the items' changes, 1, -1 or 0, with half an item more in each of the four cells of the table."""
    changes = np.array([1.0, -1.0, 0.0])
    weights = np.array([gained + 0.5, lost + 0.5, total - gained - lost + 1.0])
    mean = np.average(changes, weights=weights)
    error = 1.96 * np.sqrt(np.average((changes - mean) ** 2, weights=weights) / weights.sum())
    estimate = paired_difference(gained, lost, total)
    assert estimate.value == pytest.approx((gained - lost) / total)
    assert (estimate.low, estimate.high) == pytest.approx((mean - error, min(mean + error, 1.0)))
    assert estimate.low < estimate.value <= estimate.high


CLUSTERS = np.repeat(np.arange(40), 5)  # forty templates, each with five subjects


def test_clusters_of_one_change_nothing():
    hits = np.arange(30) % 3 == 0
    alone = np.random.default_rng(0).permutation(30)
    assert rate(hits, alone) == rate(hits) == proportion(10, 30)
    assert mean(hits, np.arange(30)) == mean(hits)
    assert paired_change(hits, ~hits, alone) == paired_difference(20, 10, 30)


def test_copies_of_a_prompt_leave_the_interval_as_wide_as_it_was():
    """Five answers that stand or fall together tell no more than one."""
    hits = np.random.default_rng(1).random(40) < 0.6
    once, copied = proportion(int(hits.sum()), 40), rate(np.repeat(hits, 5), CLUSTERS)
    assert copied.value == once.value
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.1)
    ignored = rate(np.repeat(hits, 5))
    assert ignored.high - ignored.low < 0.55 * (copied.high - copied.low)
    values = np.random.default_rng(2).normal(size=40)
    apart, together = mean(values, seed=3), mean(np.repeat(values, 5), CLUSTERS, seed=3)
    assert together.value == pytest.approx(apart.value)
    assert together.high - together.low == pytest.approx(apart.high - apart.low, rel=0.15)
    error = values.std(ddof=1) / np.sqrt(40)  # with clusters of one size, Student's interval of their means
    assert together.high - together.value == pytest.approx(student.ppf(0.975, 39) * error)


@pytest.mark.parametrize("groups", [3, 8, 40])
def test_intervals_over_clusters_cover_the_true_value(groups):
    """Each template has a chance of its own; an interval over prompts would cover far less often than 95 %."""
    rng, clusters = np.random.default_rng(4), np.repeat(np.arange(groups), 10)
    covered = {"rate": 0, "mean": 0, "prompts": 0}
    for _ in range(300):
        chances = rng.beta(0.5, 0.5, groups)  # most templates nearly always fit, or nearly never
        hits = rng.random(10 * groups) < np.repeat(chances, 10)
        for name, e in (("rate", rate(hits, clusters)), ("mean", mean(hits, clusters)), ("prompts", rate(hits))):
            covered[name] += e.low <= 0.5 <= e.high
    assert covered["rate"] >= 0.93 * 300, covered
    assert covered["mean"] >= (0.92 if groups > 3 else 0.75) * 300, covered
    assert covered["prompts"] < 0.65 * 300, covered


def test_one_cluster_tells_nothing():
    estimate = rate([True, False, True], np.zeros(3))
    assert (estimate.low, estimate.high) == (0.0, 1.0)
    change = paired_change(np.array([0, 0, 1]), np.array([1, 0, 1]), np.zeros(3))
    assert (change.low, change.high) == (-1.0, 1.0)


def test_few_clusters_that_agree_by_chance_are_not_certain():
    estimate = rate([True, False, True, False], np.array([0, 0, 1, 1]))
    assert estimate.high - estimate.low > 0.9


def test_all_hits_have_an_interval_over_clusters():
    estimate, wilson = rate(np.ones(200), CLUSTERS), proportion(40, 40)
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(wilson.low, abs=0.01)


def test_paired_change_over_clusters():
    old, new = np.zeros(200), np.repeat(np.arange(40) % 4 == 0, 5).astype(float)
    change, ignored = paired_change(old, new, CLUSTERS), paired_change(old, new)
    assert change.value == ignored.value == 0.25
    assert change.high - change.low > 1.8 * (ignored.high - ignored.low)
    assert paired_change(old, old, CLUSTERS) == paired_difference(0, 0, 40)
