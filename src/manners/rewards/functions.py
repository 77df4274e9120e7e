"""Reward functions to name in ``method.rewards``: ``_target_: manners.rewards.functions.brevity``."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any


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
