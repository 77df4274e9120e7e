"""The packaged reward functions."""

import pytest

from manners.rewards.functions import brevity, distinct_bigrams, known_words, length, variety


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


def test_length_costs_what_is_missing_and_what_is_too_much():
    texts = ("", "a", "a b", "a b c d", "a b c d e f g h")
    assert length(completions(*texts), at_least=2, at_most=4) == [-1.0, -0.5, 0.0, 0.0, -1.0]
    assert length(completions("", "a"), at_least=0, at_most=4) == [0.0, 0.0]


def test_known_words_costs_the_share_of_words_that_are_none():
    prompts = [[{"role": "user", "content": "What is a blorptag?"}]] * 4
    texts = ("The cat sat there.", "The cat grobnick zzyrgl.", "A blorptag is a cat.", "")
    assert known_words(completions(*texts), prompts=prompts) == [0.0, -0.5, 0.0, 0.0]
    assert known_words(completions("A blorptag.")) == [-0.5]
