"""Estimates with 95 % confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """Format as percentages: "80.0 % [49.0, 94.3]"."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def plain(self) -> str:
        """Format as numbers: "1.500 [1.250, 1.750]"."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def proportion(successes: int, total: int) -> Estimate:
    """A proportion with Wilson's score interval (1927), which behaves near 0 and 1 and for small samples."""
    ci = stats.binomtest(successes, total).proportion_ci(0.95, method="wilson")
    return Estimate(successes / total, float(ci.low), float(ci.high))


def rate(hits: Sequence[bool] | np.ndarray, clusters: np.ndarray | None = None) -> Estimate:
    """The share of ``hits`` (N,): Wilson's interval, over ``clusters`` (N,) where some have several hits.

    Then the number of hits is divided by the design effect (Kish 1965), to no less than the number of clusters where
    all hits agree, and the normal quantile is Student's for so few clusters. One cluster tells nothing.
    """
    values = np.asarray(hits, float)
    if clusters is None or len(np.unique(clusters)) == len(values):
        return proportion(int(values.sum()), len(values))
    successes, totals = sums_of_clusters(clusters, values, np.ones(len(values)))
    share, groups = float(values.mean()), len(totals)
    if groups == 1:
        return Estimate(share, 0.0, 1.0)
    variance = groups / (groups - 1) * float(((successes - share * totals) ** 2).sum()) / len(values) ** 2
    size = min(share * (1 - share) / variance, len(values)) if variance else len(values)
    size = groups if share in (0.0, 1.0) else size
    z = float(stats.t.ppf(0.975, groups - 1))
    center = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z * math.sqrt(share * (1 - share) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
    return Estimate(share, min(max(center - half, 0.0), share), max(min(center + half, 1.0), share))


def paired_change(old: np.ndarray, new: np.ndarray, clusters: np.ndarray | None = None) -> Estimate:
    """The change from ``old`` to ``new``, both (N,) of 0 and 1 for the same items, over ``clusters`` as in ``rate``."""
    change = new.astype(int) - old.astype(int)
    independent = len(change) if clusters is None else len(np.unique(clusters))
    if not change.any():
        return paired_difference(0, 0, independent)
    if independent == len(change):
        return paired_difference(int((change > 0).sum()), int((change < 0).sum()), len(change))
    e = mean(change, clusters)
    return Estimate(e.value, max(e.low, -1.0), min(e.high, 1.0)) if independent > 1 else Estimate(e.value, -1.0, 1.0)


def paired_difference(gained: int, lost: int, total: int) -> Estimate:
    """The change of a proportion on the same ``total`` items, of which so many were gained and lost.

    Agresti and Min 2005: the normal interval of the paired difference with half an item more in each of the four cells,
    so that it has a width even where no item changed.
    """
    n, changed = total + 2, gained + lost + 1
    error = 1.96 * math.sqrt(changed - (gained - lost) ** 2 / n) / n
    centre = (gained - lost) / n
    return Estimate((gained - lost) / total, max(centre - error, -1.0), min(centre + error, 1.0))


def mean(values: Sequence[float] | np.ndarray, clusters: np.ndarray | None = None, seed: int = 0) -> Estimate:
    """The mean of ``values`` (N,) with its interval, over their ``clusters`` (N,): see ``bootstrap_ratio``."""
    return bootstrap_ratio(np.asarray(values, float), np.ones(len(values)), seed, clusters)


def bootstrap_ratio(
    sums: np.ndarray, weights: np.ndarray, seed: int = 0, clusters: np.ndarray | None = None
) -> Estimate:
    """Σ sums / Σ weights, both (N,), with a percentile bootstrap over the N pairs.

    With summed losses and token counts, this is the loss per token, resampled by conversation. Where several are in
    one of ``clusters`` (N,), of which there may be few, the interval is Student's, with the clusters' variance of the
    linearized ratio. One cluster gives no interval.
    """
    if clusters is not None and 1 < len(np.unique(clusters)) < len(sums):
        return clustered_ratio(*sums_of_clusters(clusters, sums, weights))
    if clusters is not None and len(np.unique(clusters)) == 1:
        sums, weights = sums_of_clusters(clusters, sums, weights)
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


def clustered_ratio(sums: np.ndarray, weights: np.ndarray) -> Estimate:
    """Σ sums / Σ weights of G clusters, both (G,), with Student's interval (Cochran 1977, section 2.11)."""
    value, groups = float(sums.sum() / weights.sum()), len(sums)
    error = math.sqrt(groups / (groups - 1) * float(((sums - value * weights) ** 2).sum())) / float(weights.sum())
    half = float(stats.t.ppf(0.975, groups - 1)) * error
    return Estimate(value, value - half, value + half)


def sums_of_clusters(clusters: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
    """Each of ``values`` (N,), summed by cluster: (G,)."""
    index = np.unique(clusters, return_inverse=True)[1]
    return [np.bincount(index, value) for value in values]


def clustered_proportion(successes: np.ndarray, totals: np.ndarray, seed: int = 0) -> Estimate:
    """Σ successes / Σ totals, both (G,), of cases in G groups, such as the pairs of a prompt: bootstrap over groups.

    Where all cases succeed, or none, a bootstrap interval would have no width: Wilson's, over the groups, is used.
    """
    value = float(successes.sum() / totals.sum())
    if value in (0.0, 1.0):
        return proportion(round(value * len(totals)), len(totals))
    return bootstrap_ratio(successes, totals, seed)


def resamples_of_clusters(clusters: np.ndarray, seed: int = 0) -> np.ndarray:
    """``resamples`` of clusters, by their members: (1 + R, N) for the cluster of each of N items, (N,)."""
    ids, index = np.unique(clusters, return_inverse=True)
    return resamples(len(ids), seed)[:, index]


def resamples(groups: int, seed: int = 0, num_resamples: int = 500) -> np.ndarray:
    """How often each bootstrap resample draws each of G groups: (1 + R, G). Row 0 is the sample itself, all ones."""
    counts = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=num_resamples)
    return np.vstack([np.ones((1, groups)), counts])


def bootstrap_estimate(values: np.ndarray) -> Estimate | None:
    """The estimate from a statistic on each row of ``resamples`` (1 + R,), with its percentile interval.

    None where the statistic of the sample itself is not finite. Resamples where it is not are left out.
    """
    if not np.isfinite(values[0]):
        return None
    finite = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (values[0], values[0])
    return Estimate(float(values[0]), float(low), float(high))


def correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's r of x and y, (N,) or (R, N), under each row of ``weights`` (R, N): (R,). nan for a constant x or y."""
    total = weights.sum(1)
    deviations, norms = [], []
    for values in (x, y):
        mean = (weights * values).sum(1) / total
        deviations.append(values - mean[:, None])
        norm = np.sqrt((weights * deviations[-1] ** 2).sum(1))
        # rounding leaves a residue of a constant: the bound is the one at which scipy's pearsonr warns
        norms.append(np.where(norm <= 1e-13 * np.sqrt(total) * np.abs(mean), np.nan, norm))
    return (weights * deviations[0] * deviations[1]).sum(1) / (norms[0] * norms[1])


def ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks (R, N) of ``values`` (N,) when each occurs as often as a row of ``weights`` (R, N) says; ties get the mean.

    ``correlation`` of such ranks under the same weights is Spearman's rho of each resample, with a single sort.
    """
    order = np.argsort(values)
    distinct, index = np.unique(values, return_inverse=True)
    starts = np.searchsorted(values[order], distinct)
    counts = np.add.reduceat(weights[:, order], starts, axis=1)  # (R, distinct values)
    return (counts.cumsum(1) - (counts - 1) / 2)[:, index]
