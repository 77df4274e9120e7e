"""How sure a number is: intervals at 95 %, by scipy."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float

    def percent(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def plain(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def proportion(hits: int, of: int) -> Estimate:
    """A proportion, with Wilson's interval (1927), which behaves near 0 and 1 and for few cases."""
    ci = stats.binomtest(hits, of).proportion_ci(0.95, method="wilson")
    return Estimate(hits / of, float(ci.low), float(ci.high))


def bootstrap_ratio(sums: np.ndarray, weights: np.ndarray, seed: int = 0) -> Estimate:
    """Σ sums / Σ weights, with a percentile bootstrap over the pairs (N,): loss a token, over conversations."""
    if len(sums) < 2:
        value = float(sums.sum() / weights.sum())
        return Estimate(value, value, value)
    ci = stats.bootstrap(
        (sums, weights),
        lambda s, w, axis=-1: s.sum(axis) / w.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(float(sums.sum() / weights.sum()), float(ci.low), float(ci.high))


def clustered_proportion(hits: np.ndarray, of: np.ndarray, seed: int = 0) -> Estimate:
    """Σ hits / Σ of, for cases that come in groups (G,), such as the pairs of a prompt: by bootstrap of the groups.

    Where every case hits, or none, a bootstrap would be sure of it; Wilson's interval over the groups is not.
    """
    value = float(hits.sum() / of.sum())
    return proportion(round(value * len(of)), len(of)) if value in (0.0, 1.0) else bootstrap_ratio(hits, of, seed)


def resamples(groups: int, seed: int = 0, times: int = 500) -> np.ndarray:
    """How often a bootstrap draws each group: (1 + times, groups). The first line is the sample itself, each once."""
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=times)
    return np.vstack([np.ones((1, groups)), drawn])


def bootstrap_estimate(values: np.ndarray) -> Estimate | None:
    """From a statistic's value on each line of ``resamples`` (1 + R,), with its percentile interval.

    None where the sample itself gives no number; resamples that give none are left out.
    """
    if not np.isfinite(values[0]):
        return None
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (values[0], values[0])
    return Estimate(float(values[0]), float(low), float(high))


def correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's, of (N,) or (R, N) under each line of ``weights`` (R, N): (R,); nan where x or y does not vary."""
    count = weights.sum(1)
    apart, spread = [], []
    for values in (x, y):
        mean = (weights * values).sum(1) / count
        apart.append(values - mean[:, None])
        far = np.sqrt((weights * apart[-1] ** 2).sum(1))
        # what rounding leaves of a constant is no spread: the bound at which scipy's pearsonr warns
        spread.append(np.where(far <= 1e-13 * np.sqrt(count) * np.abs(mean), np.nan, far))
    return (weights * apart[0] * apart[1]).sum(1) / (spread[0] * spread[1])


def ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks of ``values`` (N,) when each comes as often as a line of ``weights`` says: (R, N). Ties share the middle.

    With these, ``correlation`` under the same weights is Spearman's of each resample, without sorting it anew.
    """
    order = np.argsort(values)
    found, place = np.unique(values, return_inverse=True)
    starts = np.searchsorted(values[order], found)
    as_often = np.add.reduceat(weights[:, order], starts, axis=1)  # (R, different values)
    return (as_often.cumsum(1) - (as_often - 1) / 2)[:, place]
