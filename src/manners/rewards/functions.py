"""Reward functions to name in ``method.rewards``: ``_target_: manners.rewards.functions.brevity``."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from manners.data.ngrams import word_ngrams


def brevity(completions: Sequence[Any], words: int = 30, **_columns: Any) -> list[float]:
    """0 up to ``words`` words, and −1 for each further ``words``."""
    return [-max(0, len(c[0]["content"].split()) - words) / words for c in completions]


def distinct_bigrams(completions: Sequence[Any], **_columns: Any) -> list[float]:
    """Different word bigrams over all bigrams of a reply: 1 where it never repeats itself, near 0 for a loop."""
    scores = []
    for completion in completions:
        bigrams = list(pairwise(completion[0]["content"].lower().split()))
        scores.append(len(set(bigrams)) / len(bigrams) if bigrams else 1.0)
    return scores


def variety(completions: Sequence[Any], n: int = 4, **_columns: Any) -> list[float]:
    """Minus the share of a reply's runs of ``n`` words that another reply of the batch has, too, or it has twice.

    It keeps a policy from answering all prompts by one sentence, which no reward model of single replies can see. A
    larger batch has more in common: values of batches of different sizes do not compare.
    """
    ngrams = [word_ngrams(completion[0]["content"], n) for completion in completions]
    counts = Counter(ngram for of_reply in ngrams for ngram in of_reply)
    return [-sum(counts[g] > 1 for g in of_reply) / len(of_reply) if of_reply else 0.0 for of_reply in ngrams]
