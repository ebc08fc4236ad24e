"""How sure one may be: intervals and tests for success rates, differences and correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """An estimate and where the truth lies with the stated confidence."""

    value: float
    low: float
    high: float


def normal_quantile(confidence: float) -> float:
    """Half width, in standard deviations, of the central `confidence` of a normal distribution: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def student_quantile(confidence: float, freedom: int) -> float:
    """The same for Student's t: 4.30 for 0.95 and 2 degrees of freedom.

    With t = sqrt(freedom) tan(angle) the density is cos(angle)^(freedom - 1), smooth on a bounded range.
    """
    angle = np.linspace(0, math.pi / 2, 20001)
    density = np.cos(angle).clip(min=0) ** (freedom - 1)
    mass = np.concatenate([[0.0], ((density[1:] + density[:-1]) / 2).cumsum()])
    return math.sqrt(freedom) * math.tan(float(np.interp(confidence, mass / mass[-1], angle)))


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Success rate with Wilson's score interval (1927), sound near 0 and 1 and for few trials."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials is not a rate")
    rate, z = successes / trials, normal_quantile(confidence)
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    # The bounds at 0 and N successes are exactly 0 and 1; rounding must not put the rate outside.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(rate, low, high)


def _pairs(before_N: ArrayLike, after_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    before, after = np.asarray(before_N, dtype=np.float64), np.asarray(after_N, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"pairs need two lists of one length, not shapes {before.shape} and {after.shape}")
    return before, after


def mcnemar_exact(before_N: ArrayLike, after_N: ArrayLike) -> float:
    """Two-sided p-value of McNemar's exact test that two 0/1 outcomes of the same trials are equally likely.

    Only the trials whose outcome changed count: under the hypothesis each went either way with probability 1/2.
    """
    before, after = _pairs(before_N, after_N)
    gained, lost = int((after > before).sum()), int((after < before).sum())
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)  # whole numbers up to the division: exact for any N


def paired_difference(before_N: ArrayLike, after_N: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of after - before over the same trials of outcomes 0 or 1, with Agresti and Min's interval (2005).

    That is the plain one, mean +- z * sd / sqrt(N), with half a pair of each of the four kinds added: sound for few
    trials too, and not of width 0 where no outcome has changed.
    """
    before, after = _pairs(before_N, after_N)
    difference = after - before
    trials = len(difference) + 2
    centre = float(difference.sum()) / trials
    variance = (float(difference @ difference) + 1) / trials - centre**2
    half = normal_quantile(confidence) * math.sqrt(variance / trials)
    return Interval(float(difference.mean()), max(centre - half, -1.0), min(centre + half, 1.0))


def paired_bootstrap(
    before_N: ArrayLike, after_N: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of after - before with the percentile interval over trials drawn again with replacement."""
    before, after = _pairs(before_N, after_N)
    difference = after - before
    size = len(difference)
    # How often each distinct difference is drawn is all that matters: a multinomial, far cheaper than N indices.
    value, count = np.unique(difference, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(size, count / size, size=resamples)
    low, high = np.quantile(drawn @ value / size, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(difference.mean()), float(low), float(high))


def mean_over_seeds(value_N: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over independent runs with Student's t interval.

    Of a single run, or of runs that all ended alike, as at a floor, nothing is known of their spread: (-inf, inf).
    """
    value = np.asarray(value_N, dtype=np.float64)
    mean = float(value.mean())
    if len(value) < 2 or np.ptp(value) == 0:
        return Interval(mean, -math.inf, math.inf)
    half = student_quantile(confidence, len(value) - 1) * float(value.std(ddof=1)) / math.sqrt(len(value))
    return Interval(mean, mean - half, mean + half)


def pearson(x_N: ArrayLike, y_N: ArrayLike) -> float:
    """Linear correlation in [-1, 1]; NaN where one side does not vary or there are fewer than two pairs."""
    x, y = _pairs(x_N, y_N)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y / math.sqrt((x @ x) * (y @ y))).clip(-1, 1))


def correlation_interval(r: float, pairs: int, confidence: float = 0.95) -> Interval:
    """A linear correlation with Fisher's interval (1915), for independent pairs; of three or fewer nothing is known."""
    if pairs < 4 or r != r:
        return Interval(r, -1.0, 1.0)
    half = normal_quantile(confidence) / math.sqrt(pairs - 3)
    middle = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12))
    return Interval(r, math.tanh(middle - half), math.tanh(middle + half))


def spearman(x_N: ArrayLike, y_N: ArrayLike) -> float:
    """Rank correlation in [-1, 1], ties sharing their mean rank; NaN as in `pearson`."""
    x, y = _pairs(x_N, y_N)
    return pearson(_ranks(x), _ranks(y))


def _ranks(x_N: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, count = np.unique(x_N, return_inverse=True, return_counts=True)
    last = count.cumsum()
    return (last - (count - 1) / 2)[inverse]
