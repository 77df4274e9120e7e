"""Quality of a reward model: errors and correlations with the true scores, pair accuracy, calibration.

Replies to the same prompt are not independent: every interval is a bootstrap over prompts, not over rows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from manners.data.types import Message
from manners.evaluation.stats import (
    Estimate,
    bootstrap_estimate,
    bootstrap_ratio,
    clustered_proportion,
    correlation,
    ranks,
    resamples,
)

MIN_ROWS_PER_BIN = 10  # of the calibration


@dataclass(frozen=True)
class Bin:
    """Rows with similar predictions."""

    predicted: float  # mean
    true: Estimate  # mean
    count: int


@dataclass(frozen=True)
class RegressionQuality:
    """Metrics in the units of the dataset. None where undefined, such as the correlation of constant predictions."""

    rows: int
    prompts: int
    mse: Estimate
    mae: Estimate
    r2: Estimate | None  # 1 - mse / variance of the held-out true scores
    pearson: Estimate | None
    spearman: Estimate | None
    policy_replies: int = 0  # a policy's own replies, which count for the next line alone
    policy_spearman: Estimate | None = None  # over a policy's own replies: what PPO will ask about
    pair_accuracy: Estimate | None = None  # over pairs of replies to one prompt; ties count half
    pairs: int = 0
    error_length: Estimate | None = (
        None  # Spearman's rho of predicted - true and length: above 0, long replies are overrated
    )
    bins: list[Bin] = field(default_factory=list)  # calibration, by increasing prediction
    baseline: dict[str, Estimate] = field(default_factory=dict)  # mse, mae, r2 of predicting the training mean

    def metrics(self, prefix: str) -> dict[str, float]:
        """The values for the tracker, as ``prefix``/name."""
        names = ("mse", "mae", "r2", "pearson", "spearman", "policy_spearman", "pair_accuracy", "error_length")
        values = {f"{prefix}/{name}": e.value for name in names if (e := getattr(self, name))}
        return values | {f"{prefix}/baseline_{name}": e.value for name, e in self.baseline.items()}


@dataclass(frozen=True)
class PairwiseQuality:
    """Metrics on preference pairs."""

    pairs: int
    prompts: int
    accuracy: Estimate  # fraction of the pairs whose chosen reply scores higher; ties count half
    margin: Estimate  # mean of chosen - rejected, in the units of the scores

    def metrics(self, prefix: str) -> dict[str, float]:
        """The values for the tracker, as ``prefix``/name."""
        return {f"{prefix}/pair_accuracy": self.accuracy.value, f"{prefix}/margin": self.margin.value}


def prompt_ids(conversations: Sequence[list[Message]]) -> np.ndarray:
    """Return an id for each of N prompts (N,), equal for equal prompts. A text without a prompt gets its own id."""
    keys = [json.dumps(c, sort_keys=True) if c else str(i) for i, c in enumerate(conversations)]
    return np.unique(keys, return_inverse=True)[1]


def regression_quality(
    predicted: Sequence[float] | np.ndarray,
    true: Sequence[float] | np.ndarray,
    groups: Sequence[int] | np.ndarray | None = None,
    lengths: Sequence[int] | np.ndarray | None = None,
    mean: float | None = None,
    seed: int = 0,
    bins: int = 10,
) -> RegressionQuality:
    """Compare ``predicted`` with ``true`` scores (N,), both in the units of the dataset.

    ``groups`` (N,) are ids of the prompts (see ``prompt_ids``); without them every row has its own prompt, and there
    are no pairs. ``lengths`` (N,) are those of the replies, in tokens or words. ``mean`` is the mean training
    score, which the baseline predicts.
    """
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    group = group_ids(groups, len(true))
    weights = resamples(group.max() + 1, seed)[:, group]  # (1 + R, N)
    error = predicted - true
    errors = error_metrics(error, true, weights)
    correct, pairs = count_correct_pairs(predicted, true, group)
    has_pairs = pairs > 0
    baseline = {} if mean is None else error_metrics(mean - true, true, weights)
    return RegressionQuality(
        rows=len(true),
        prompts=int(group.max() + 1),
        mse=errors["mse"],
        mae=errors["mae"],
        r2=errors.get("r2"),
        pearson=bootstrap_estimate(correlation(predicted, true, weights)),
        spearman=bootstrap_estimate(correlation(ranks(predicted, weights), ranks(true, weights), weights)),
        pair_accuracy=clustered_proportion(correct[has_pairs], pairs[has_pairs], seed) if has_pairs.any() else None,
        pairs=int(pairs.sum()),
        error_length=None
        if lengths is None
        else bootstrap_estimate(correlation(ranks(error, weights), ranks(np.asarray(lengths), weights), weights)),
        bins=calibration_bins(predicted, true, weights, min(bins, max(1, len(true) // MIN_ROWS_PER_BIN))),
        baseline=baseline,
    )


def pairwise_quality(
    chosen: Sequence[float] | np.ndarray,
    rejected: Sequence[float] | np.ndarray,
    groups: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
) -> PairwiseQuality:
    """Compare the scores (N,) of the chosen and the rejected replies; ``groups`` as in ``regression_quality``."""
    margins = np.asarray(chosen, float) - np.asarray(rejected, float)
    group = group_ids(groups, len(margins))
    counts = np.bincount(group)
    correct = np.bincount(group, pair_credit(margins))
    return PairwiseQuality(
        pairs=len(margins),
        prompts=len(counts),
        accuracy=clustered_proportion(correct, counts, seed),
        margin=bootstrap_ratio(np.bincount(group, margins), counts, seed),
    )


def group_ids(groups: Sequence[int] | np.ndarray | None, rows: int) -> np.ndarray:
    """Return groups as consecutive ids from 0 (N,); without groups, every row has its own."""
    return np.arange(rows) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]


def error_metrics(error: np.ndarray, true: np.ndarray, weights: np.ndarray) -> dict[str, Estimate]:
    """Return ``mse``, ``mae`` and, where the true scores vary, ``r2``.

    ``error`` and ``true`` are (N,), and ``weights`` (1 + R, N) those of the bootstrap resamples.
    """

    def average(values: np.ndarray) -> np.ndarray:  # (N,) → (1 + R,)
        return weights @ values / weights.sum(1)

    shifted = true - true[0]  # exactly 0 for constant scores
    variance = average(shifted**2) - average(shifted) ** 2
    mse = average(error**2)
    varies = variance > 1e-12 * (shifted**2).max()
    r2 = 1 - np.divide(mse, variance, out=np.full_like(mse, np.nan), where=varies)
    estimates = {
        "mse": bootstrap_estimate(mse),
        "mae": bootstrap_estimate(average(np.abs(error))),
        "r2": bootstrap_estimate(r2),
    }
    return {name: e for name, e in estimates.items() if e}


def count_correct_pairs(predicted: np.ndarray, true: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count, of each group's pairs with different true scores, those ordered correctly (G,), and all of them (G,).

    ``predicted``, ``true`` and ``group`` are (N,).
    """
    correct, pairs = np.zeros(group.max() + 1), np.zeros(group.max() + 1, dtype=int)
    for g, rows in enumerate(np.split(np.argsort(group, kind="stable"), np.bincount(group).cumsum()[:-1])):
        i, j = rows[np.array(np.triu_indices(len(rows), 1))]
        order, margin = np.sign(true[i] - true[j]), predicted[i] - predicted[j]
        correct[g], pairs[g] = pair_credit(margin * order)[order != 0].sum(), (order != 0).sum()
    return correct, pairs


def pair_credit(margins: np.ndarray) -> np.ndarray:
    """Return 1 for a positive margin (N,), ½ for a tie, 0 for a negative one: (N,)."""
    return (np.sign(margins) + 1) / 2


def calibration_bins(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray, count: int) -> list[Bin]:
    """Sort the rows (N,) into ``count`` bins of equal size; equal predictions share a bin, so there may be fewer.

    The interval is that of the mean true score of a fixed bin: the edges are not resampled. ``weights`` is (1 + R, N).
    """
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, count + 1)[1:-1]))
    bin_ids = np.searchsorted(edges, predicted, side="right")
    bins = []
    for bin_id in np.unique(bin_ids):
        in_bin = bin_ids == bin_id
        bin_weights = weights[:, in_bin]
        total = bin_weights.sum(1)
        means = np.divide(bin_weights @ true[in_bin], total, out=np.full_like(total, np.nan), where=total > 0)
        if estimate := bootstrap_estimate(means):
            bins.append(Bin(float(predicted[in_bin].mean()), estimate, int(in_bin.sum())))
    return bins
