"""Best of n against an enumeration of all choices of n replies, and against draws from a known distribution."""

from itertools import combinations

import numpy as np
import pytest

from manners.evaluation.best_of_n import best_of_n, best_of_n_kl, chances_of_best

SCORES = np.random.default_rng(0).normal(size=(5, 6))
SCORES[0, 2] = SCORES[0, 4] = SCORES[0].max() + 1  # a tie at the top


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_chances_count_the_choices_that_a_reply_wins(n):
    choices = [list(c) for c in combinations(range(6), n)]
    for scores, chances in zip(SCORES, chances_of_best(SCORES, n), strict=True):
        wins = np.bincount([c[int(scores[c].argmax())] for c in choices], minlength=6)
        np.testing.assert_allclose(chances, wins / len(choices), atol=1e-12)


def test_best_of_all_is_the_reply_with_the_highest_score():
    fits = np.arange(30).reshape(5, 6) % 4 == 0
    last = best_of_n(SCORES, fits)[-1]
    assert last.n == 6
    assert last.reward.value == pytest.approx(SCORES.max(1).mean())
    assert last.style_accuracy.value == pytest.approx(
        np.mean([f[s.argmax()] for f, s in zip(fits, SCORES, strict=True)])
    )


def test_best_of_n_has_powers_of_two_and_rises():
    curve = best_of_n(np.random.default_rng(1).normal(size=(40, 12)), None)
    assert [b.n for b in curve] == [1, 2, 4, 8, 12]
    rewards = [b.reward.value for b in curve]
    assert rewards == sorted(rewards)
    assert all(b.style_accuracy is None for b in curve)
    assert curve[0].kl == 0


def test_scores_that_say_nothing_gain_nothing():
    """Fits that are independent of the score have the same rate for every n, within chance."""
    rng = np.random.default_rng(2)
    fits = rng.random((400, 16)) < 0.3
    assert all(abs(b.style_accuracy.value - 0.3) < 0.06 for b in best_of_n(rng.normal(size=(400, 16)), fits))


@pytest.mark.parametrize("n", [2, 5])
def test_kl_is_that_of_the_best_of_n_of_a_continuous_score(n):
    """The best of n uniform numbers has density n u^(n-1): its KL to the uniform one by numerical integration."""
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = n * u ** (n - 1)
    assert best_of_n_kl(n) == pytest.approx(np.mean(density * np.log(density)), abs=1e-4)
