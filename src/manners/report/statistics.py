"""A measure over seeds."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from manners.evaluation.stats import Estimate


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean, with Student's interval at 95 %: mean ± t · s / √n. Of one seed, the number alone (nan for its ends).

    Seeds are few and their spread is estimated from themselves, so that t, and not 1.96, is due (Student 1908).
    """
    mean, n = float(np.mean(values)), len(values)
    if n == 1 or np.ptp(values) == 0:  # of equal numbers the spread is 0, whatever rounding makes of it
        half = math.nan if n == 1 else 0.0
    else:
        half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    return Estimate(mean, float(mean - half), float(mean + half))
