"""Quality metrics of reward models against scipy, against resampling row by row, and by hand."""

import numpy as np
import pytest
from scipy import stats

from manners.evaluation.metrics.reward_quality import (
    pairwise_quality,
    prompt_ids,
    regression_quality,
)
from manners.evaluation.stats import bootstrap_estimate, clustered_proportion, correlation, proportion, ranks, resamples


@pytest.fixture
def noisy():
    """200 prompts of three replies each, with tied true scores and tied predictions: (600,) each."""
    rng = np.random.default_rng(1)
    true = rng.choice([0.0, 0.1, 0.4, 1.0], 600)
    return np.round(0.7 * true + rng.normal(0, 0.3, 600), 1), true, np.repeat(np.arange(200), 3)


def test_regression_errors_by_hand():
    # errors 1, 0, -2, 1: squares 6 / 4, magnitudes 4 / 4; the variance of 1, 2, 4, 5 is (4 + 1 + 1 + 4) / 4 = 2.5
    quality = regression_quality([2, 2, 2, 6], [1, 2, 4, 5])
    assert (quality.mse.value, quality.mae.value) == (1.5, 1.0)
    assert quality.r2.value == pytest.approx(1 - 1.5 / 2.5)
    assert (quality.rows, quality.prompts, quality.baseline, quality.error_length) == (4, 4, {}, None)


def test_baseline_predicts_the_training_mean():
    # predicts 4: errors 3, 2, 0, -1; worse than the held-out mean, so R² is negative
    baseline = regression_quality([2, 2, 2, 6], [1, 2, 4, 5], mean=4.0).baseline
    assert {name: e.value for name, e in baseline.items()} == pytest.approx(
        {"mse": 3.5, "mae": 1.5, "r2": 1 - 3.5 / 2.5}
    )


def test_correlations_equal_those_of_scipy(noisy):
    predicted, true, _ = noisy
    lengths = np.random.default_rng(2).integers(1, 9, len(true))
    quality = regression_quality(predicted, true, lengths=lengths)
    assert quality.pearson.value == pytest.approx(stats.pearsonr(predicted, true).statistic)
    assert quality.spearman.value == pytest.approx(stats.spearmanr(predicted, true).statistic)
    assert quality.error_length.value == pytest.approx(stats.spearmanr(predicted - true, lengths).statistic)


def test_weighted_correlation_equals_that_of_repeated_rows(noisy):
    """The bootstrap weights rows instead of repeating them; both must agree, also for ties."""
    predicted, true, _ = noisy
    weights = np.random.default_rng(3).integers(0, 4, (5, len(true)))
    weighted = correlation(ranks(predicted, weights), ranks(true, weights), weights)
    for row, value in zip(weights, weighted, strict=True):
        repeated = np.repeat(predicted, row), np.repeat(true, row)
        assert value == pytest.approx(stats.spearmanr(*repeated).statistic)
        assert correlation(predicted, true, row[None])[0] == pytest.approx(stats.pearsonr(*repeated).statistic)
        drawn = row > 0
        assert ranks(predicted, row[None])[0][drawn] == pytest.approx(
            stats.rankdata(repeated[0])[np.cumsum(row)[drawn] - 1]
        )


def test_error_length_shows_a_length_bias():
    rng = np.random.default_rng(0)
    true, lengths = rng.normal(size=80), rng.permutation(80)
    assert regression_quality(true + lengths / 100, true, lengths=lengths).error_length.value == pytest.approx(1.0)
    assert regression_quality(true - lengths / 100, true, lengths=lengths).error_length.value == pytest.approx(-1.0)


def test_pair_accuracy_compares_replies_of_one_prompt():
    # prompt 7: 3 > 1 and 2 > 1 are correct, 3 > 2 is a tie; prompt 8: equal true scores; prompt 9: one reply
    quality = regression_quality([0.6, 0.2, 0.6, 0, 1, 9], [3, 1, 2, 5, 5, 0], groups=[7, 7, 7, 8, 8, 9])
    assert (quality.pairs, quality.prompts) == (3, 3)
    assert quality.pair_accuracy.value == pytest.approx((1 + 0.5 + 1) / 3)
    wrong = regression_quality([0.0, 0.2, 0.6], [3, 1, 2], groups=[7, 7, 7])
    assert wrong.pair_accuracy.value == pytest.approx(1 / 3)
    assert regression_quality([1, 2], [1, 2]).pair_accuracy is None


def test_pair_accuracy_equals_counting_pair_by_pair(noisy):
    predicted, true, groups = noisy
    order = np.random.default_rng(5).permutation(len(true))  # replies to a prompt need not be adjacent
    predicted, true, groups = predicted[order], true[order], groups[order]
    credits = []
    for i in range(len(true)):
        for j in range(len(true)):
            if groups[i] == groups[j] and true[i] > true[j]:
                credits.append(1.0 if predicted[i] > predicted[j] else 0.5 if predicted[i] == predicted[j] else 0.0)
    quality = regression_quality(predicted, true, groups)
    assert quality.pairs == len(credits)
    assert quality.pair_accuracy.value == pytest.approx(np.mean(credits))


def test_intervals_resample_prompts_not_rows():
    """Ten copies of each row add no information: with prompt ids the interval stays, without them it shrinks."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=60)
    predicted = true + rng.normal(size=60)
    single = regression_quality(predicted, true)
    copies = regression_quality(np.repeat(predicted, 10), np.repeat(true, 10), np.repeat(np.arange(60), 10))
    without_ids = regression_quality(np.repeat(predicted, 10), np.repeat(true, 10))
    for name in ("mse", "mae", "r2", "pearson", "spearman"):
        a, b, c = (getattr(m, name) for m in (single, copies, without_ids))
        assert (b.low, b.high) == pytest.approx((a.low, a.high), abs=1e-9), name
        assert c.high - c.low < 0.6 * (a.high - a.low), name


def test_mse_interval_covers_the_true_value_at_95_percent():
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(100):
        prompt_error = np.repeat(rng.normal(0, 1, 50), 4)  # shared by the replies to a prompt
        error = prompt_error + rng.normal(0, 0.5, 200)
        quality = regression_quality(error, np.zeros(200), np.repeat(np.arange(50), 4), seed=i).mse
        covered += quality.low <= 1.25 <= quality.high
    assert 87 <= covered <= 99


def test_clustered_proportion_of_0_or_1_has_wilsons_interval():
    assert clustered_proportion(np.array([2, 3, 1]), np.array([2, 3, 1])) == proportion(
        3, 3
    )  # three prompts, not six pairs
    partial = clustered_proportion(np.array([2.0, 0.5, 1.0]), np.array([2, 1, 1]))
    assert partial.value == 0.875 and partial.low < 0.875 < partial.high <= 1.0


def test_resamples_start_with_the_sample_and_keep_its_size():
    counts = resamples(30, seed=4)
    assert (counts[0] == 1).all()
    assert (counts.sum(1) == 30).all()
    # a group is missed by a resample with probability (1 - 1/30)^30 = 0.362
    assert (counts[1:] == 0).mean() == pytest.approx(0.362, abs=0.02)


def test_bootstrap_estimate_percentiles_and_undefined_values():
    quality = bootstrap_estimate(np.array([50.0, *range(101), np.nan]))
    assert (quality.value, quality.low, quality.high) == (50.0, 2.5, 97.5)
    assert bootstrap_estimate(np.array([np.nan, 1.0, 2.0])) is None


def test_undefined_metrics_are_none_and_not_logged():
    constant = regression_quality([0.1] * 20, np.arange(20) / 10, mean=1.0)
    assert (constant.pearson, constant.spearman, constant.pair_accuracy) == (None, None, None)
    assert "after/pearson" not in constant.metrics("after")
    assert len(constant.bins) == 1
    flat = regression_quality(np.arange(20) / 10, [0.1] * 20, mean=1.0)
    assert (flat.r2, flat.pearson) == (None, None)
    assert set(flat.baseline) == {"mse", "mae"}


def test_calibration_bins_have_equal_size_and_keep_ties():
    rng = np.random.default_rng(0)
    predicted = rng.permutation(200) / 200
    true = predicted**2
    quality = regression_quality(predicted, true).bins
    assert [b.count for b in quality] == [20] * 10
    third = np.arange(40, 60) / 200
    assert quality[2].predicted == pytest.approx(third.mean())
    assert quality[2].true.value == pytest.approx((third**2).mean())
    # the interval of a mean of 20 rows is about ±1.96 standard errors; a bootstrap's is a little narrower
    assert (quality[2].true.high - quality[2].true.low) / 2 == pytest.approx(1.96 * (third**2).std() / 20**0.5, rel=0.2)
    tied = regression_quality(np.repeat([0.0, 1.0], [150, 50]), np.repeat([0.2, 0.8], [150, 50])).bins
    assert [(b.predicted, b.count) for b in tied] == [(0.0, 150), (1.0, 50)]
    assert [b.true.value for b in tied] == pytest.approx([0.2, 0.8])


def test_calibration_bins_have_at_least_ten_rows():
    assert [b.count for b in regression_quality(np.arange(30.0), np.arange(30.0)).bins] == [10, 10, 10]


def test_pairwise_quality_by_hand():
    # margins 2, 0, -1, 3: two of four correct and one tie; the mean is 1
    quality = pairwise_quality([2, 1, 0, 4], [0, 1, 1, 1], groups=["a", "a", "b", "c"])
    assert (quality.pairs, quality.prompts) == (4, 3)
    assert (quality.accuracy.value, quality.margin.value) == (0.625, 1.0)
    assert quality.margin.low < 1.0 < quality.margin.high
    assert quality.metrics("after") == {"after/pair_accuracy": 0.625, "after/margin": 1.0}
    assert pairwise_quality([1, 2], [0, 1]).accuracy == proportion(2, 2)


def test_prompt_ids_by_messages_and_unique_without_prompt():
    hello, bye = [{"role": "user", "content": "Hello"}], [{"role": "user", "content": "Bye"}]
    quality = prompt_ids([hello, bye, [], list(hello), []])
    assert quality[0] == quality[3]
    assert len(set(quality)) == 4


def test_quality_metrics_and_those_of_the_baseline(noisy):
    predicted, true, groups = noisy
    quality = regression_quality(predicted, true, groups, lengths=np.arange(600), mean=0.4)
    assert quality.metrics("after")["after/baseline_mse"] == quality.baseline["mse"].value
    names = {"mse", "mae", "r2", "pearson", "spearman", "pair_accuracy", "error_length"}
    baseline = {"baseline_mse", "baseline_mae", "baseline_r2"}
    assert quality.metrics("after").keys() == {f"after/{name}" for name in names | baseline}


def test_regression_quality_is_deterministic_by_seed(noisy):
    assert regression_quality(*noisy, seed=1) == regression_quality(*noisy, seed=1)
    assert regression_quality(*noisy, seed=1).mse != regression_quality(*noisy, seed=2).mse
