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


def share(hits: int, of: int) -> Estimate:
    """A proportion, with Wilson's interval (1927), which behaves near 0 and 1 and for few cases."""
    ci = stats.binomtest(hits, of).proportion_ci(0.95, method="wilson")
    return Estimate(hits / of, float(ci.low), float(ci.high))


def ratio(sums: np.ndarray, weights: np.ndarray, seed: int = 0) -> Estimate:
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
