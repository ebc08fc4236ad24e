"""How sure one may be of means over seeds and of correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import ArrayLike

from wmpo.report.statistics import Interval, paired


def mean_over_seeds(value_N: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over independent runs with Student's t interval.

    Of a single run, or of runs that all ended alike, as at a floor, nothing is known of their spread: (-inf, inf).
    """
    value = np.asarray(value_N, dtype=np.float64)
    mean = float(value.mean())
    if len(value) < 2 or np.ptp(value) == 0:
        return Interval(mean, -math.inf, math.inf)
    quantile = float(scipy.special.stdtrit(len(value) - 1, (1 + confidence) / 2))
    half = quantile * float(value.std(ddof=1)) / math.sqrt(len(value))
    return Interval(mean, mean - half, mean + half)


def pearson(x_N: ArrayLike, y_N: ArrayLike, confidence: float = 0.95) -> Interval:
    """Linear correlation with Fisher's interval (1915), for independent pairs; of three or fewer nothing is known.

    NaN, in (-1, 1), where one side does not vary or there are fewer than two pairs.
    """
    x, y = paired(x_N, y_N)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Interval(math.nan, -1.0, 1.0)
    found = scipy.stats.pearsonr(x, y)
    with np.errstate(divide="ignore"):  # of a perfect correlation
        bounds = found.confidence_interval(confidence)
    return Interval(float(found.statistic), float(bounds.low), float(bounds.high))


def spearman(x_N: ArrayLike, y_N: ArrayLike) -> float:
    """Rank correlation in [-1, 1], ties sharing their mean rank; NaN as in `pearson`."""
    x, y = paired(x_N, y_N)
    return pearson(scipy.stats.rankdata(x), scipy.stats.rankdata(y)).value


def difference_of_shares(first: Interval, second: Interval) -> Interval:
    """The second minus the first, of independent episodes, with Newcombe's hybrid score interval (1998)."""
    value = second.value - first.value
    below = math.hypot(second.value - second.low, first.high - first.value)
    above = math.hypot(second.high - second.value, first.value - first.low)
    return Interval(value, value - below, value + above)
