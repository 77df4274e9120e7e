"""What is said of a reward model's scores, held against scipy, against resampling row by row, and by hand."""

import json
import time

import numpy as np
import pytest
from scipy import stats

from manners.evaluation.metrics.reward_quality import (
    PairwiseQuality,
    RegressionQuality,
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


def test_errors_by_hand():
    # errors 1, 0, -2, 1: squares 6 / 4, sizes 4 / 4; the true scores 1, 2, 4, 5 vary by (4 + 1 + 1 + 4) / 4 = 2.5
    found = regression_quality([2, 2, 2, 6], [1, 2, 4, 5])
    assert (found.mse.value, found.mae.value) == (1.5, 1.0)
    assert found.r2.value == pytest.approx(1 - 1.5 / 2.5)
    assert (found.rows, found.prompts, found.baseline, found.error_length) == (4, 4, {}, None)


def test_the_baseline_predicts_the_training_mean():
    # 4 for each: errors 3, 2, 0, -1; so it does worse than the held-out mean, and R² is below 0
    baseline = regression_quality([2, 2, 2, 6], [1, 2, 4, 5], mean=4.0).baseline
    assert {name: e.value for name, e in baseline.items()} == pytest.approx(
        {"mse": 3.5, "mae": 1.5, "r2": 1 - 3.5 / 2.5}
    )


def test_correlations_are_those_of_scipy(noisy):
    predicted, true, _ = noisy
    lengths = np.random.default_rng(2).integers(1, 9, len(true))
    found = regression_quality(predicted, true, lengths=lengths)
    assert found.pearson.value == pytest.approx(stats.pearsonr(predicted, true).statistic)
    assert found.spearman.value == pytest.approx(stats.spearmanr(predicted, true).statistic)
    assert found.error_length.value == pytest.approx(stats.spearmanr(predicted - true, lengths).statistic)


def test_a_weighted_row_is_a_row_that_comes_so_often(noisy):
    """The bootstrap weighs rows instead of copying them: both must come to the same, ties included."""
    predicted, true, _ = noisy
    weights = np.random.default_rng(3).integers(0, 4, (5, len(true)))
    weighted = correlation(ranks(predicted, weights), ranks(true, weights), weights)
    for line, value in zip(weights, weighted, strict=True):
        copied = np.repeat(predicted, line), np.repeat(true, line)
        assert value == pytest.approx(stats.spearmanr(*copied).statistic)
        assert correlation(predicted, true, line[None])[0] == pytest.approx(stats.pearsonr(*copied).statistic)
        where = line > 0
        assert ranks(predicted, line[None])[0][where] == pytest.approx(
            stats.rankdata(copied[0])[np.cumsum(line)[where] - 1]
        )


def test_who_gains_by_length_is_seen():
    rng = np.random.default_rng(0)
    true, lengths = rng.normal(size=80), rng.permutation(80)
    assert regression_quality(true + lengths / 100, true, lengths=lengths).error_length.value == pytest.approx(1.0)
    assert regression_quality(true - lengths / 100, true, lengths=lengths).error_length.value == pytest.approx(-1.0)


def test_pairs_are_counted_within_a_prompt_only():
    # prompt 7: 3 over 1 and 2 over 1 are seen, 3 over 2 is a tie; prompt 8: both true scores are 5; prompt 9: one reply
    found = regression_quality([0.6, 0.2, 0.6, 0, 1, 9], [3, 1, 2, 5, 5, 0], groups=[7, 7, 7, 8, 8, 9])
    assert (found.pairs, found.prompts) == (3, 3)
    assert found.pair_accuracy.value == pytest.approx((1 + 0.5 + 1) / 3)
    wrong = regression_quality([0.0, 0.2, 0.6], [3, 1, 2], groups=[7, 7, 7])
    assert wrong.pair_accuracy.value == pytest.approx(1 / 3)
    assert regression_quality([1, 2], [1, 2]).pair_accuracy is None


def test_pairs_against_counting_them_one_by_one(noisy):
    predicted, true, groups = noisy
    order = np.random.default_rng(5).permutation(len(true))  # replies to a prompt need not stand together
    predicted, true, groups = predicted[order], true[order], groups[order]
    credits = []
    for i in range(len(true)):
        for j in range(len(true)):
            if groups[i] == groups[j] and true[i] > true[j]:
                credits.append(1.0 if predicted[i] > predicted[j] else 0.5 if predicted[i] == predicted[j] else 0.0)
    found = regression_quality(predicted, true, groups)
    assert found.pairs == len(credits)
    assert found.pair_accuracy.value == pytest.approx(np.mean(credits))


def test_intervals_are_of_prompts_not_of_rows():
    """Ten copies of each row tell nothing new: with the prompts known the interval stays, without them it shrinks."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=60)
    predicted = true + rng.normal(size=60)
    once = regression_quality(predicted, true)
    copies = regression_quality(np.repeat(predicted, 10), np.repeat(true, 10), np.repeat(np.arange(60), 10))
    unaware = regression_quality(np.repeat(predicted, 10), np.repeat(true, 10))
    for name in ("mse", "mae", "r2", "pearson", "spearman"):
        a, b, c = (getattr(m, name) for m in (once, copies, unaware))
        assert (b.low, b.high) == pytest.approx((a.low, a.high), abs=1e-9), name
        assert c.high - c.low < 0.6 * (a.high - a.low), name


def test_the_interval_of_the_error_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(100):
        of_prompt = np.repeat(rng.normal(0, 1, 50), 4)  # replies to a prompt err alike
        error = of_prompt + rng.normal(0, 0.5, 200)
        found = regression_quality(error, np.zeros(200), np.repeat(np.arange(50), 4), seed=i).mse
        covered += found.low <= 1.25 <= found.high
    assert 87 <= covered <= 99


def test_a_perfect_ranking_of_few_prompts_is_not_surely_perfect():
    assert clustered_proportion(np.array([2, 3, 1]), np.array([2, 3, 1])) == proportion(
        3, 3
    )  # three prompts, not six pairs
    some = clustered_proportion(np.array([2.0, 0.5, 1.0]), np.array([2, 1, 1]))
    assert some.value == 0.875 and some.low < 0.875 < some.high <= 1.0


def test_the_first_resample_is_the_sample_and_each_draws_as_many():
    drawn = resamples(30, seed=4)
    assert (drawn[0] == 1).all()
    assert (drawn.sum(1) == 30).all()
    # a group is missed by a resample with probability (1 - 1/30)^30 = 0.362
    assert (drawn[1:] == 0).mean() == pytest.approx(0.362, abs=0.02)


def test_an_estimate_is_the_middle_95_of_100_and_none_without_a_number():
    found = bootstrap_estimate(np.array([50.0, *range(101), np.nan]))
    assert (found.value, found.low, found.high) == (50.0, 2.5, 97.5)
    assert bootstrap_estimate(np.array([np.nan, 1.0, 2.0])) is None


def test_what_has_no_number_is_left_out():
    same = regression_quality([0.1] * 20, np.arange(20) / 10, mean=1.0)
    assert (same.pearson, same.spearman, same.pair_accuracy) == (None, None, None)
    assert "after/pearson" not in same.metrics("after")
    assert len(same.bins) == 1
    flat = regression_quality(np.arange(20) / 10, [0.1] * 20, mean=1.0)
    assert (flat.r2, flat.pearson) == (None, None)
    assert set(flat.baseline) == {"mse", "mae"}


def test_bins_hold_as_many_rows_each_and_keep_ties_together():
    rng = np.random.default_rng(0)
    predicted = rng.permutation(200) / 200
    true = predicted**2
    found = regression_quality(predicted, true).bins
    assert [b.count for b in found] == [20] * 10
    third = np.arange(40, 60) / 200
    assert found[2].predicted == pytest.approx(third.mean())
    assert found[2].true.value == pytest.approx((third**2).mean())
    # of 20 rows, the mean's interval is about ±1.96 standard errors; a bootstrap's a little less
    assert (found[2].true.high - found[2].true.low) / 2 == pytest.approx(1.96 * (third**2).std() / 20**0.5, rel=0.2)
    tied = regression_quality(np.repeat([0.0, 1.0], [150, 50]), np.repeat([0.2, 0.8], [150, 50])).bins
    assert [(b.predicted, b.count) for b in tied] == [(0.0, 150), (1.0, 50)]
    assert [b.true.value for b in tied] == pytest.approx([0.2, 0.8])


def test_few_rows_make_few_bins():
    assert [b.count for b in regression_quality(np.arange(30.0), np.arange(30.0)).bins] == [10, 10, 10]


def test_pairwise_by_hand():
    # margins 2, 0, -1, 3: two right and a tie, of four; the mean is 1
    found = pairwise_quality([2, 1, 0, 4], [0, 1, 1, 1], groups=["a", "a", "b", "c"])
    assert (found.pairs, found.prompts) == (4, 3)
    assert (found.accuracy.value, found.margin.value) == (0.625, 1.0)
    assert found.margin.low < 1.0 < found.margin.high
    assert found.metrics("after") == {"after/pair_accuracy": 0.625, "after/margin": 1.0}
    assert pairwise_quality([1, 2], [0, 1]).accuracy == proportion(2, 2)


def test_prompts_are_told_by_their_messages_and_plain_texts_stand_alone():
    hello, bye = [{"role": "user", "content": "Hello"}], [{"role": "user", "content": "Bye"}]
    found = prompt_ids([hello, bye, [], list(hello), []])
    assert found[0] == found[3]
    assert len(set(found)) == 4


def test_measurements_survive_the_run_folder(noisy):
    predicted, true, groups = noisy
    found = regression_quality(predicted, true, groups, lengths=np.arange(600), mean=0.4)
    assert RegressionQuality.from_json(json.loads(json.dumps(found.to_json()))) == found
    bare = regression_quality([1, 2, 3], [2, 2, 2])
    assert RegressionQuality.from_json(json.loads(json.dumps(bare.to_json()))) == bare
    pairs = pairwise_quality([1, 2], [0, 3])
    assert PairwiseQuality.from_json(json.loads(json.dumps(pairs.to_json()))) == pairs
    assert found.metrics("after")["after/baseline_mse"] == found.baseline["mse"].value
    assert len(found.metrics("after")) == 7 + 3


def test_the_same_seed_gives_the_same_intervals(noisy):
    assert regression_quality(*noisy, seed=1) == regression_quality(*noisy, seed=1)
    assert regression_quality(*noisy, seed=1).mse != regression_quality(*noisy, seed=2).mse


def test_sixteen_hundred_rows_take_no_longer_than_two_seconds_of_work():
    rng = np.random.default_rng(0)
    true = rng.choice([0.0, 0.3, 1.0], 1600)
    started = time.process_time()
    regression_quality(true + rng.normal(0, 1, 1600), true, np.arange(1600) // 3, rng.integers(1, 60, 1600), 0.5)
    assert time.process_time() - started < 2
