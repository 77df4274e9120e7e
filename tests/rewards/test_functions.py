"""The packaged reward functions."""

import pytest

from manners.rewards.functions import brevity, distinct_bigrams, variety


def completions(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_brevity_costs_one_for_each_further_limit():
    assert brevity(completions("a b", "a b c d e f"), words=2) == [0.0, -2.0]


def test_distinct_bigrams_is_low_for_a_loop():
    assert distinct_bigrams(completions("a b c", "a b a b a b")) == [1.0, pytest.approx(2 / 5)]


def test_variety_is_lost_by_a_sentence_that_another_reply_has():
    same, other = "How would you show that it is so?", "Which of the two came first, and how do you know?"
    assert variety(completions(same, same, other)) == [-1.0, -1.0, 0.0]
    assert variety(completions(same, "How would you show that to me?")) == [
        pytest.approx(-2 / 5),
        pytest.approx(-2 / 4),
    ]


def test_variety_is_lost_by_a_sentence_said_twice():
    assert variety(completions("What would you do? What would you do?")) == [pytest.approx(-2 / 5)]
    assert variety(completions("No.", "")) == [0.0, 0.0]
