"""How sure one may be: intervals and tests for success rates and their differences."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are imported when they are first used: scipy.stats takes a second
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """An estimate and where the truth lies with the stated confidence."""

    value: float
    low: float
    high: float


def normal_quantile(confidence: float) -> float:
    """Half width, in standard deviations, of the central `confidence` of a normal distribution: 1.96 for 0.95."""
    return float(scipy.special.ndtri((1 + confidence) / 2))


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Success rate with Wilson's score interval (1927), sound near 0 and 1 and for few trials."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials is not a rate")
    bounds = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(successes / trials, float(bounds.low), float(bounds.high))


def fisher_exact(table: ArrayLike) -> float:
    """Chance, at equal rates, of a second row with so few hits: Fisher's one-sided test of ((hits, misses), (hits,
    misses))."""
    return float(scipy.stats.fisher_exact(table, alternative="greater").pvalue)


def paired(before_N: ArrayLike, after_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    before, after = np.asarray(before_N, dtype=np.float64), np.asarray(after_N, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"pairs need two lists of one length, not shapes {before.shape} and {after.shape}")
    return before, after


def mcnemar_exact(before_N: ArrayLike, after_N: ArrayLike) -> float:
    """Two-sided p-value of McNemar's exact test that two 0/1 outcomes of the same trials are equally likely.

    Only the trials whose outcome changed count: under the hypothesis each went either way with probability 1/2.
    """
    before, after = paired(before_N, after_N)
    changed = int((after != before).sum())
    return float(scipy.stats.binomtest(int((after > before).sum()), changed).pvalue) if changed else 1.0


def paired_difference(before_N: ArrayLike, after_N: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of after - before over the same trials of outcomes 0 or 1, with Agresti and Min's interval (2005).

    That is the plain one, mean +- z * sd / sqrt(N), with half a pair of each of the four kinds added: sound for few
    trials too, and not of width 0 where no outcome has changed. SciPy has no interval for paired proportions but the
    bootstrap, whose width is 0 there, and which it agrees with elsewhere.
    """
    before, after = paired(before_N, after_N)
    difference = after - before
    trials = len(difference) + 2
    centre = float(difference.sum()) / trials
    variance = (float(difference @ difference) + 1) / trials - centre**2
    half = normal_quantile(confidence) * math.sqrt(variance / trials)
    return Interval(float(difference.mean()), max(centre - half, -1.0), min(centre + half, 1.0))
