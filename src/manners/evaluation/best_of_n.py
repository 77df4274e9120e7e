"""Best of n: what a reward model gains by choosing among n sampled replies, without any training.

It is the simplest thing that optimizes a reward, and how far another measure follows as n grows shows whether the
reward can be trusted (Gao et al. 2023, arXiv 2210.10760, section 2 and figure 1).
"""

import math
from dataclasses import dataclass

import numpy as np

from manners.evaluation.stats import Estimate, mean


@dataclass(frozen=True)
class BestOfN:
    """What the best of ``n`` replies are like, on average over all choices of n from those that were sampled."""

    n: int
    kl: float  # to the policy that they were sampled from, nats per reply
    reward: Estimate
    style_accuracy: Estimate | None


def best_of_n(scores: np.ndarray, fits: np.ndarray | None, clusters: np.ndarray | None = None) -> list[BestOfN]:
    """The best of 1, 2, 4, ... and of all N, from the ``scores`` (P, N) of N replies to each of P prompts.

    ``fits`` (P, N) say which replies fit; None without a style judge. Intervals are over prompts, or their
    ``clusters`` (P,).
    """
    total = scores.shape[1]
    counts = sorted({*(2**i for i in range(total.bit_length()) if 2**i <= total), total})
    curve = []
    for n in counts:
        chances = chances_of_best(scores, n)
        reward = mean((chances * scores).sum(1), clusters)
        style_accuracy = None if fits is None else mean((chances * fits).sum(1), clusters)
        curve.append(BestOfN(n, best_of_n_kl(n), reward, style_accuracy))
    return curve


def chances_of_best(scores: np.ndarray, n: int) -> np.ndarray:
    """How likely each of N replies is to be the best of n that are drawn without replacement: (P, N) → (P, N).

    The reply of rank r, counted from 0 at the lowest score, is the best where the n - 1 others are among the r below
    it: C(r, n - 1) / C(N, n). Averages under these chances are unbiased (Nakano et al. 2021, arXiv 2112.09332,
    appendix I). Of equal scores the first counts as higher, as it is the one that ``argmax`` chooses.
    """
    total = scores.shape[1]
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)  # 0 for the best
    chances = np.array([math.comb(r, n - 1) / math.comb(total, n) for r in range(total)])
    return chances[total - 1 - ranks]


def best_of_n_kl(n: int) -> float:
    """The KL of choosing the best of n replies, an upper bound where scores are equal: log n - (n - 1)/n nats.

    Stiennon et al. 2020 (arXiv 2009.01325), appendix G.3; Beirami et al. 2024 (arXiv 2401.01879) prove the bound.
    """
    return math.log(n) - (n - 1) / n
