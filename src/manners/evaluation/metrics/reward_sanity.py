"""Sanity check of a reward model: does it score corrupted replies below the originals? PPO exploits what it misses."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from manners.data.corruptions import CORRUPTIONS, corrupted_replies
from manners.data.types import Message, ScoredReply
from manners.errors import MannersError
from manners.evaluation.stats import Estimate, clustered_proportion, proportion

MAX_REPLIES = 100  # original replies that are corrupted, in nine ways each: two of them are four times as long

Score = Callable[[list[tuple[list[Message], str]]], list[float]]


@dataclass(frozen=True)
class SanityExample:
    """An original and a corrupted reply with their scores."""

    prompt: str  # the last turn before the reply; "" for a text without a prompt
    original: str
    corrupted: str
    original_score: float
    corrupted_score: float


@dataclass(frozen=True)
class CorruptionResult:
    """The result for one kind of corruption."""

    accuracy: Estimate  # fraction of the corrupted replies that score below the original
    count: int
    worst: SanityExample  # with the largest margin of the corrupted reply over the original


@dataclass(frozen=True)
class SanityResult:
    """The result of the sanity check."""

    accuracy: Estimate  # fraction of all corrupted replies that score below the original
    count: int
    by_corruption: dict[str, CorruptionResult]

    def metrics(self, prefix: str) -> dict[str, float]:
        """The values for the tracker, as ``prefix``/name."""
        values = {f"{prefix}/sanity": self.accuracy.value}
        return values | {f"{prefix}/sanity_{name}": r.accuracy.value for name, r in self.by_corruption.items()}


def check_sanity(
    score: Score, rows: Sequence[ScoredReply], train_rows: Sequence[ScoredReply], seed: int
) -> SanityResult:
    """Corrupt good held-out ``rows`` in every way, and compare the scores of the corrupted and the original replies.

    Good replies score at or above the mean of ``train_rows``, which also lend words to some corruptions. An equal score
    counts as a failure, and so does nan. Raises MannersError where no reply is good.
    """
    originals = good_replies(rows, train_rows, seed)
    corrupted = corrupted_replies(originals, train_rows, f"sanity/{seed}")  # (kind, original, corrupted), N of them
    replies = [(r.messages, r.reply) for r in [*originals, *(reply for _, _, reply in corrupted)]]
    scores = np.array(score(replies), float)
    index = {id(r): i for i, r in enumerate(originals)}
    original_ids = np.array([index[id(r)] for _, r, _ in corrupted])  # (N,)
    original_scores, corrupted_scores = scores[original_ids], scores[len(originals) :]
    is_correct = corrupted_scores < original_scores
    margins = np.nan_to_num(corrupted_scores - original_scores, nan=np.inf)
    by_corruption = {}
    for name in CORRUPTIONS:
        of_kind = np.array([i for i, (kind, _, _) in enumerate(corrupted) if kind == name], dtype=int)
        if not len(of_kind):
            continue
        worst = of_kind[margins[of_kind].argmax()]
        _, original, reply = corrupted[worst]
        by_corruption[name] = CorruptionResult(
            proportion(int(is_correct[of_kind].sum()), len(of_kind)),
            len(of_kind),
            SanityExample(
                prompt=original.messages[-1]["content"] if original.messages else "",
                original=original.reply,
                corrupted=reply.reply,
                original_score=float(original_scores[worst]),
                corrupted_score=float(corrupted_scores[worst]),
            ),
        )
    totals = np.bincount(original_ids)
    correct = np.bincount(original_ids, is_correct)[totals > 0]
    return SanityResult(clustered_proportion(correct, totals[totals > 0], seed), len(corrupted), by_corruption)


def good_replies(rows: Sequence[ScoredReply], train_rows: Sequence[ScoredReply], seed: int) -> list[ScoredReply]:
    """Return at most ``MAX_REPLIES`` of the ``rows`` that score at or above the mean of ``train_rows``, at random.

    Raises MannersError where there are none.
    """
    mean = sum(r.score for r in train_rows) / len(train_rows)
    good = [r for r in rows if r.score >= mean and r.reply.strip()]
    if not good:
        raise MannersError(
            f"none of the {len(rows)} held-out replies scores at or above the training mean, {mean:.3g}: there is no "
            "good reply to corrupt for the sanity check. Hold out more rows: dataset.validation_share."
        )
    return random.Random(seed).sample(good, MAX_REPLIES) if len(good) > MAX_REPLIES else good
