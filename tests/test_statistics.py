import math

import numpy as np
import pytest
import scipy.stats
from numpy.typing import ArrayLike

from experiments.statistics import mean_over_seeds, pearson, spearman
from wmpo.report.statistics import (
    Interval,
    mcnemar_exact,
    normal_quantile,
    paired_difference,
    wilson_interval,
)


def test_wilson_interval_of_published_examples():
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    for successes, trials, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]:
        interval = wilson_interval(successes, trials)
        assert interval.value == successes / trials
        assert interval.low == pytest.approx(low, abs=5e-5)
        assert interval.high == pytest.approx(high, abs=5e-5)
    assert wilson_interval(7, 7).high == 1


def test_rates_that_are_none_are_refused():
    for successes, trials in [(3, 2), (-1, 2), (0, 0)]:
        with pytest.raises(ValueError, match="is not a rate"):
            wilson_interval(successes, trials)


def test_quantiles():
    assert normal_quantile(0.95) == pytest.approx(1.959964, abs=1e-6)
    # Textbook table of Student's t, two-sided 95 %; a mean of N values with spread 1 is known within t / sqrt(N).
    for n, expected in [(2, 12.706), (3, 4.303), (5, 2.776), (31, 2.042)]:
        value = np.arange(n) - (n - 1) / 2
        half = mean_over_seeds(value / value.std(ddof=1)).high
        assert half * math.sqrt(n) == pytest.approx(expected, abs=6e-4)


def outcomes(both, gained, lost, neither):
    before = [1] * both + [0] * gained + [1] * lost + [0] * neither
    after = [1] * both + [1] * gained + [0] * lost + [0] * neither
    return before, after


def test_mcnemar_by_hand():
    # 1 lost against 5 gained: 2 (1 + 6) / 64.
    assert mcnemar_exact(*outcomes(10, 5, 1, 10)) == pytest.approx(14 / 64)
    assert mcnemar_exact(*outcomes(3, 1, 5, 0)) == pytest.approx(14 / 64)
    assert mcnemar_exact(*outcomes(3, 4, 4, 3)) == 1
    assert mcnemar_exact(*outcomes(3, 0, 0, 3)) == 1


def test_paired_difference_by_hand():
    # 20 gained and 10 lost of 100; with half a pair of each kind 20.5 and 10.5 of 102: variance 31/102 - (10/102)^2.
    interval = paired_difference(*outcomes(40, 20, 10, 30))
    half = 1.959964 * math.sqrt((31 / 102 - (10 / 102) ** 2) / 102)
    assert interval == pytest.approx((0.1, 10 / 102 - half, 10 / 102 + half), abs=1e-6)
    # nothing changed in 98: of 100 half a pair gained and half a pair lost
    assert paired_difference(*outcomes(49, 0, 0, 49)) == pytest.approx((0, -0.0196, 0.0196), abs=1e-5)


def bootstrap(before: ArrayLike, after: ArrayLike, resamples: int = 9999) -> Interval:
    difference = np.asarray(after, float) - np.asarray(before, float)
    found = scipy.stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=resamples, random_state=0)
    return Interval(float(difference.mean()), *found.confidence_interval)


def test_paired_difference_agrees_with_the_bootstrap():
    pairs = outcomes(80, 50, 25, 100)
    assert paired_difference(*pairs) == pytest.approx(bootstrap(*pairs), abs=0.006)


def test_intervals_cover_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        before = generator.random(120) < 0.35
        after = np.where(generator.random(120) < 0.5, before, generator.random(120) < 0.6)
        truth = 0.5 * (0.6 - 0.35)
        closed = paired_difference(before, after)
        rate = wilson_interval(int(before.sum()), 120)
        covered.append((closed.low <= truth <= closed.high, rate.low <= 0.35 <= rate.high))
    assert np.mean(covered, axis=0) == pytest.approx([0.95] * 2, abs=0.035)


def test_mean_over_seeds_by_hand():
    # sd of 1, 2, 3 is 1: half width 4.3027 / sqrt(3).
    assert mean_over_seeds([1, 2, 3]) == pytest.approx((2, 2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert mean_over_seeds([0.5]) == mean_over_seeds([0.5, 0.5]) == (0.5, -math.inf, math.inf)


def test_correlations_by_hand():
    assert pearson([1, 2, 3], [2, 4, 6]).value == pytest.approx(1)
    assert pearson([1, 2, 3], [1, 3, 2]) == pytest.approx((0.5, -1, 1))
    assert spearman([1, 2, 300], [1, 9, 10]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 3, 3, 2]) == pytest.approx(1 / 3)  # ranks 1, 2.5, 2.5, 4 and 1, 3.5, 3.5, 2
    assert math.isnan(pearson([1, 1], [1, 2]).value)
    assert math.isnan(spearman([1.0], [2.0]))


def test_pairs_need_equal_lengths():
    with pytest.raises(ValueError, match="one length"):
        paired_difference([1, 0], [1])


def test_interval_of_a_correlation() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 3.0, 2.0, 5.0, 4.0]
    half = 1.959964 / math.sqrt(2)  # Fisher: of atanh(r), for five pairs
    expected = (0.8, math.tanh(math.atanh(0.8) - half), math.tanh(math.atanh(0.8) + half))
    assert pearson(x, y) == pytest.approx(expected, abs=1e-6)
    assert pearson(range(9), range(9)).low > 0.99
