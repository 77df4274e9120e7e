"""How near a reward model comes to the true scores, and whether it ranks replies as they do.

Replies to the same prompt are no independent cases: every interval is a bootstrap over prompts, not over rows.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

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

FEWEST = 10  # rows to a bin of the calibration


@dataclass(frozen=True)
class Bin:
    """Rows with nearly the same prediction."""

    predicted: float  # their mean prediction
    true: Estimate  # their mean true score
    count: int


@dataclass(frozen=True)
class RegressionQuality:
    """In the dataset's units. None where there is no such number: of constant predictions, say, no correlation."""

    rows: int
    prompts: int
    mse: Estimate
    mae: Estimate
    r2: Estimate | None  # 1 - mse / variance of the true scores held out
    pearson: Estimate | None
    spearman: Estimate | None
    pair_accuracy: Estimate | None = None  # of two replies to a prompt, the better one scores higher; ties count half
    pairs: int = 0
    error_length: Estimate | None = None  # Spearman's, of predicted - true with length: above 0, long replies gain
    bins: list[Bin] = field(default_factory=list)  # calibration, by rising prediction
    baseline: dict[str, Estimate] = field(default_factory=dict)  # the same measures of predicting the training mean

    def metrics(self, when: str) -> dict[str, float]:
        names = ("mse", "mae", "r2", "pearson", "spearman", "pair_accuracy", "error_length")
        found = {f"{when}/{name}": e.value for name in names if (e := getattr(self, name))}
        return found | {f"{when}/baseline_{name}": e.value for name, e in self.baseline.items()}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "RegressionQuality":
        maybe = ("r2", "pearson", "spearman", "pair_accuracy", "error_length")
        estimates = {name: Estimate(**saved[name]) if saved[name] else None for name in maybe}
        return cls(
            **saved
            | estimates
            | {
                "mse": Estimate(**saved["mse"]),
                "mae": Estimate(**saved["mae"]),
                "bins": [Bin(b["predicted"], Estimate(**b["true"]), b["count"]) for b in saved["bins"]],
                "baseline": {name: Estimate(**e) for name, e in saved["baseline"].items()},
            }
        )


@dataclass(frozen=True)
class PairwiseQuality:
    pairs: int
    prompts: int
    accuracy: Estimate  # share of the pairs whose chosen reply scores higher; ties count half
    margin: Estimate  # mean of chosen - rejected, in the units of the scores

    def metrics(self, when: str) -> dict[str, float]:
        return {f"{when}/pair_accuracy": self.accuracy.value, f"{when}/margin": self.margin.value}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "PairwiseQuality":
        return cls(**saved | {name: Estimate(**saved[name]) for name in ("accuracy", "margin")})


def prompt_ids(conversations: Sequence[list[Message]]) -> np.ndarray:
    """The same number for the same prompt, (N,). A plain text answers nobody: it is a group of its own."""
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
    """``predicted`` and ``true`` scores in the dataset's units, (N,) each.

    ``groups`` (N,) tell the prompt of each row (see ``prompt_ids``); without them no two rows share one, and there
    are no pairs. ``lengths`` (N,) are tokens or words of the reply. ``mean`` is that of the training scores, the
    baseline.
    """
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    group = group_ids(groups, len(true))
    weights = resamples(group.max() + 1, seed)[:, group]  # (1 + R, N)
    error = predicted - true
    own = error_sizes(error, true, weights)
    right, pairs = ordered_pairs(predicted, true, group)
    by_prompt = pairs > 0
    baseline = {} if mean is None else error_sizes(mean - true, true, weights)
    return RegressionQuality(
        rows=len(true),
        prompts=int(group.max() + 1),
        mse=own["mse"],
        mae=own["mae"],
        r2=own.get("r2"),
        pearson=bootstrap_estimate(correlation(predicted, true, weights)),
        spearman=bootstrap_estimate(correlation(ranks(predicted, weights), ranks(true, weights), weights)),
        pair_accuracy=clustered_proportion(right[by_prompt], pairs[by_prompt], seed) if by_prompt.any() else None,
        pairs=int(pairs.sum()),
        error_length=None
        if lengths is None
        else bootstrap_estimate(correlation(ranks(error, weights), ranks(np.asarray(lengths), weights), weights)),
        bins=calibration_bins(predicted, true, weights, min(bins, max(1, len(true) // FEWEST))),
        baseline=baseline,
    )


def pairwise_quality(
    chosen: Sequence[float] | np.ndarray,
    rejected: Sequence[float] | np.ndarray,
    groups: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
) -> PairwiseQuality:
    """The scores of the better and of the worse replies, (N,) each; ``groups`` as in ``regression_quality``."""
    margins = np.asarray(chosen, float) - np.asarray(rejected, float)
    group = group_ids(groups, len(margins))
    counts = np.bincount(group)
    right = np.bincount(group, pair_credit(margins))
    return PairwiseQuality(
        pairs=len(margins),
        prompts=len(counts),
        accuracy=clustered_proportion(right, counts, seed),
        margin=bootstrap_ratio(np.bincount(group, margins), counts, seed),
    )


def group_ids(groups: Sequence[int] | np.ndarray | None, rows: int) -> np.ndarray:
    """Groups as numbers from 0 without gaps, (N,); each row its own where there are none."""
    return np.arange(rows) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]


def error_sizes(error: np.ndarray, true: np.ndarray, weights: np.ndarray) -> dict[str, Estimate]:
    """``mse``, ``mae`` and, where the true scores vary, ``r2``."""

    def average(values: np.ndarray) -> np.ndarray:
        return weights @ values / weights.sum(1)

    apart = true - true[0]  # exactly 0 for scores that are all the same
    variance = average(apart**2) - average(apart) ** 2
    mse = average(error**2)
    varies = variance > 1e-12 * (apart**2).max()
    r2 = 1 - np.divide(mse, variance, out=np.full_like(mse, np.nan), where=varies)
    found = {
        "mse": bootstrap_estimate(mse),
        "mae": bootstrap_estimate(average(np.abs(error))),
        "r2": bootstrap_estimate(r2),
    }
    return {name: e for name, e in found.items() if e}


def ordered_pairs(predicted: np.ndarray, true: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each group's pairs whose true scores differ: how many are ordered rightly, and how many there are: (G,)."""
    right, pairs = np.zeros(group.max() + 1), np.zeros(group.max() + 1, dtype=int)
    for g, rows in enumerate(np.split(np.argsort(group, kind="stable"), np.bincount(group).cumsum()[:-1])):
        one, other = rows[np.array(np.triu_indices(len(rows), 1))]
        truth, guess = np.sign(true[one] - true[other]), predicted[one] - predicted[other]
        right[g], pairs[g] = pair_credit(guess * truth)[truth != 0].sum(), (truth != 0).sum()
    return right, pairs


def pair_credit(margins: np.ndarray) -> np.ndarray:
    """1 for a pair in the right order, ½ for a tie."""
    return (np.sign(margins) + 1) / 2


def calibration_bins(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray, count: int) -> list[Bin]:
    """``count`` bins of as many rows each; equal predictions share a bin, so that there may be fewer.

    The interval is that of the mean true score, of the bin as it stands: its edges are not drawn anew.
    """
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, count + 1)[1:-1]))
    which = np.searchsorted(edges, predicted, side="right")
    found = []
    for b in np.unique(which):
        inside = which == b
        drawn = weights[:, inside]
        total = drawn.sum(1)
        means = np.divide(drawn @ true[inside], total, out=np.full_like(total, np.nan), where=total > 0)
        if spread := bootstrap_estimate(means):
            found.append(Bin(float(predicted[inside].mean()), spread, int(inside.sum())))
    return found
