"""The word splitter, and the n-gram metrics by hand."""

import pytest

from manners.data.ngrams import distinct_2, repeated_ngrams, split_words, texts_with_commonest_sentence, word_ngrams


def test_split_words_at_spaces_and_punctuation():
    words = ["don't", "well-known", "café", "42", "x", "y"]
    assert split_words("Don’t—well-known Café, 42 😀 (x_y)!") == words
    assert split_words("Cafe\u0301") == split_words("Café")


def test_word_ngrams_are_runs_of_words():
    assert word_ngrams("A b, c!", 2) == [("a", "b"), ("b", "c")]
    assert word_ngrams("a", 2) == []


def test_distinct_2_pools_the_bigrams_of_all_texts():
    assert distinct_2(["a b, a b", "A B c."]) == pytest.approx(3 / 5)  # ab ba ab | ab bc
    assert distinct_2(["one", ""]) == 0.0


def test_repeated_ngrams_is_the_fraction_seen_before():
    # "a b c d a b c d": five 4-grams, of which the last is repeated
    assert repeated_ngrams("A b c d. A b, c d!", 4) == pytest.approx(1 / 5)
    assert repeated_ngrams("no " * 10, 4) == pytest.approx(6 / 7)
    assert repeated_ngrams("a b c a b c", 4) == 0  # three different 4-grams
    assert repeated_ngrams("no no no", 4) == 0
    assert repeated_ngrams("a b A b a", 2) == 0.5


def test_commonest_sentence_by_hand():
    texts = ["Why is that? I ask.", "why is THAT", "I ask. I ask. Who?", "No.", "Why is that, then?", ""]
    assert texts_with_commonest_sentence(texts) in (
        [True, True, False, False, False, False],
        [True, False, True, False, False, False],
    )
    assert texts_with_commonest_sentence([*texts, "Why is that!"]) == [True, True, False, False, False, False, True]
    assert texts_with_commonest_sentence(["", "…"]) == [False, False]
    assert texts_with_commonest_sentence([]) == []
    assert texts_with_commonest_sentence(["One two.", "Two one."]) == [False, False]


def test_numbered_lists_and_numbers_share_no_sentence():
    assert texts_with_commonest_sentence(["1. Buy 3.14 eggs.", "1. Sell 3.14 cows.\n2. Rest now."]) == [False, False]
    assert texts_with_commonest_sentence(["Rest now\nBuy eggs", "Rest now."]) == [True, True]
