import math

import numpy as np
import pytest

from manners.data.formats.votes import Vote
from manners.evaluation.metrics.votes import (
    bradley_terry,
    fit_strengths,
    krippendorff_alpha,
    length_controlled_win_rate,
    logistic,
    results_markdown,
    vote_results,
    win_rate,
)
from manners.evaluation.stats import proportion


def vote(verdict, prompt="q", models=("a", "b"), replies=("one", "two words"), annotator="ann"):
    return Vote(verdict, [{"role": "user", "content": prompt}], list(replies), list(models), annotator)


def test_win_rate_without_ties_is_wilsons_at_students_quantile():
    scores = np.array([1.0] * 14 + [0.0] * 6)
    expected = proportion(14, 20)
    found = win_rate(scores, np.arange(20))
    assert found.value == expected.value
    assert 1 < (found.high - found.low) / (expected.high - expected.low) < 1.1


def test_ties_count_half_and_narrow_the_interval():
    split = win_rate(np.array([1.0, 0.0] * 10), np.arange(20))
    tied = win_rate(np.full(20, 0.5), np.arange(20))
    assert split.value == tied.value == 0.5
    assert tied.high - tied.low < split.high - split.low


def test_votes_on_one_prompt_are_no_independent_evidence():
    scores = np.repeat(np.array([1.0, 1, 1, 0, 1, 1, 0, 1]), 5)
    apart, together = win_rate(scores, np.arange(40)), win_rate(scores, np.repeat(np.arange(8), 5))
    assert apart.value == together.value
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_results_do_not_depend_on_the_order_shown():
    straight = [vote("first", str(i), ("b", "a"), ("x y", "x")) for i in range(3)]
    swapped = [vote("second", str(i), ("a", "b"), ("x", "x y")) for i in range(3)]
    assert vote_results(straight) == vote_results(swapped)
    [comparison] = vote_results([*straight, vote("tie", "3"), vote("both_bad", "4"), vote("skip", "5")]).comparisons
    assert (comparison.models, comparison.wins, comparison.ties, comparison.losses) == (("a", "b"), 3, 2, 0)


def test_the_last_vote_of_a_person_on_a_pair_counts():
    """In either order of the replies; those without a name may be of different people."""
    twice = [
        vote("first"),
        vote("first", models=("b", "a"), replies=("two words", "one")),
        vote("tie", annotator="bob"),
    ]
    [found] = vote_results(twice).comparisons
    assert (found.wins, found.ties, found.losses) == (1, 1, 0)
    [unnamed] = vote_results([vote("first", annotator="") for _ in range(3)]).comparisons
    assert unnamed.losses == 3


def test_two_samples_of_one_model_compare_no_models():
    results = vote_results([vote("first", models=("a", "a"))])
    assert results.comparisons == [] and results.annotators == {"ann": 1}


def test_logistic_regression_finds_the_maximum():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=60), np.ones(60)
    scores = (rng.random(60) < 1 / (1 + np.exp(-(0.4 + 1.5 * x)))).astype(float)
    beta = logistic(scores, x, weights)

    def log_posterior(b):
        p = 1 / (1 + np.exp(-(b[0] + b[1] * x)))
        return (scores * np.log(p) + (1 - scores) * np.log(1 - p)).sum() - 0.005 * b[0] ** 2 - 0.5 * b[1] ** 2

    around = [log_posterior(beta + step) for step in np.array([[0.01, 0], [-0.01, 0], [0, 0.01], [0, -0.01]])]
    assert log_posterior(beta) > max(around)


def test_length_control_takes_away_what_length_alone_won():
    rng = np.random.default_rng(1)
    longer = rng.integers(-20, 40, 400)  # the second model writes more, and voters like it: that alone decides
    scores = (rng.random(400) < 1 / (1 + np.exp(-3 * np.tanh(longer / longer.std())))).astype(float)
    raw, controlled = scores.mean(), length_controlled_win_rate(scores, longer, np.arange(400))
    assert raw > 0.65
    assert controlled.low < 0.5 < controlled.high


def test_length_control_needs_lengths_and_scores_that_differ():
    assert length_controlled_win_rate(np.array([1.0, 0.0]), np.array([3, 3]), np.arange(2)) is None
    assert length_controlled_win_rate(np.array([1.0, 1.0]), np.array([3, -3]), np.arange(2)) is None


def test_strengths_of_two_models_are_their_log_odds():
    strengths = fit_strengths(np.array([[0.0, 30.0], [10.0, 0.0]]))
    assert strengths[0] - strengths[1] == pytest.approx(math.log(3))
    assert strengths.mean() == pytest.approx(0)


def test_strengths_give_back_the_win_rates_of_their_own_model():
    true = np.array([0.8, 0.1, -0.9])
    wins = 100 / (1 + np.exp(true[None, :] - true[:, None])) * (1 - np.eye(3))
    assert fit_strengths(wins) == pytest.approx(true, abs=1e-6)


def test_an_unbeaten_model_is_first_and_finite():
    votes = [vote("first", str(i), ("c", other)) for i in range(6) for other in ("a", "b")]
    strengths = bradley_terry([*votes, vote("first", "x", ("a", "b"))])
    assert list(strengths) == ["c", "a", "b"]
    assert all(math.isfinite(e.high) for e in strengths.values())


def test_alpha_of_a_worked_example():
    """Two observers, ten units: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section A."""
    one, two = "0100000010", "1110010000"
    assert krippendorff_alpha(zip(one, two, strict=True)) == pytest.approx(0.095, abs=0.001)


def test_alpha_of_missing_values():
    """Four observers, twelve units, five categories: the same, section C."""
    units = ["111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11", "3"]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=0.001)


def test_alpha_is_unknown_without_two_votes_on_a_pair():
    assert krippendorff_alpha(["1", "2"]) is None
    assert krippendorff_alpha(["11", "11"]) is None


def test_agreement_is_on_replies_whatever_order_they_had():
    votes = []
    for i in range(6):
        better = "first" if i % 2 else "second"
        other = {"first": "second", "second": "first"}[better]
        votes += [vote(better, str(i), annotator="ann"), vote(other, str(i), ("b", "a"), ("two words", "one"), "bob")]
    results = vote_results(votes)
    assert results.agreement == 1.0 and results.judged_twice == 6


def test_markdown_names_winner_rate_and_votes_left():
    votes = [vote("second", str(i), replies=("x", "y" if i % 2 else "y z")) for i in range(12)]
    text = results_markdown(vote_results([*votes, vote("first", "12")]))
    assert "| b | a | 12 | 0 | 1 | 92.3 % [" in text and "votes by ann 13" in text
