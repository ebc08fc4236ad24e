import math

import numpy as np
import pytest

from wmpo.losses.statistics import (
    correlation_interval,
    mcnemar_exact,
    mean_over_seeds,
    normal_quantile,
    paired_bootstrap,
    paired_difference,
    pearson,
    spearman,
    student_quantile,
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


@pytest.mark.parametrize("successes", [0, 1, 44, 90])
def test_wilson_interval_against_scipy(successes):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(successes, 90).proportion_ci(0.9, method="wilson")
    interval = wilson_interval(successes, 90, confidence=0.9)
    assert interval[1:] == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_rates_that_are_none_are_refused():
    for successes, trials in [(3, 2), (-1, 2), (0, 0)]:
        with pytest.raises(ValueError, match="is not a rate"):
            wilson_interval(successes, trials)


def test_quantiles():
    assert normal_quantile(0.95) == pytest.approx(1.959964, abs=1e-6)
    # Textbook table of Student's t, two-sided 95 %.
    for freedom, expected in [(1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)]:
        assert student_quantile(0.95, freedom) == pytest.approx(expected, abs=6e-4)


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


def test_mcnemar_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for gained, lost in [(60, 31), (0, 9), (700, 600)]:
        expected = stats.binomtest(gained, gained + lost).pvalue
        assert mcnemar_exact(*outcomes(50, gained, lost, 20)) == pytest.approx(expected, rel=1e-9)


def test_paired_difference_by_hand():
    # 20 gained and 10 lost of 100; with half a pair of each kind 20.5 and 10.5 of 102: variance 31/102 - (10/102)^2.
    interval = paired_difference(*outcomes(40, 20, 10, 30))
    half = 1.959964 * math.sqrt((31 / 102 - (10 / 102) ** 2) / 102)
    assert interval == pytest.approx((0.1, 10 / 102 - half, 10 / 102 + half), abs=1e-6)
    # nothing changed in 98: of 100 half a pair gained and half a pair lost
    assert paired_difference(*outcomes(49, 0, 0, 49)) == pytest.approx((0, -0.0196, 0.0196), abs=1e-5)


def test_bootstrap_agrees_with_the_closed_form_and_repeats():
    pairs = outcomes(80, 50, 25, 100)
    closed = paired_difference(*pairs)
    bootstrap = paired_bootstrap(*pairs, seed=3)
    assert bootstrap == pytest.approx(closed, abs=0.006)
    assert bootstrap == paired_bootstrap(*pairs, seed=3)
    assert bootstrap != paired_bootstrap(*pairs, seed=4)


def test_intervals_cover_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = []
    for seed in range(300):
        before = generator.random(120) < 0.35
        after = np.where(generator.random(120) < 0.5, before, generator.random(120) < 0.6)
        truth = 0.5 * (0.6 - 0.35)
        bootstrap = paired_bootstrap(before, after, resamples=500, seed=seed)
        closed = paired_difference(before, after)
        rate = wilson_interval(int(before.sum()), 120)
        covered.append(
            (
                bootstrap.low <= truth <= bootstrap.high,
                closed.low <= truth <= closed.high,
                rate.low <= 0.35 <= rate.high,
            )
        )
    assert np.mean(covered, axis=0) == pytest.approx([0.95] * 3, abs=0.035)


def test_mean_over_seeds_by_hand():
    # sd of 1, 2, 3 is 1: half width 4.3027 / sqrt(3).
    assert mean_over_seeds([1, 2, 3]) == pytest.approx((2, 2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert mean_over_seeds([0.5]) == mean_over_seeds([0.5, 0.5]) == (0.5, -math.inf, math.inf)


def test_correlations_by_hand():
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert pearson([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert spearman([1, 2, 300], [1, 9, 10]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert math.isnan(pearson([1, 1], [1, 2]))
    assert math.isnan(spearman([1.0], [2.0]))


def test_correlations_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    x = generator.integers(0, 6, 40)  # many ties
    y = x + generator.normal(size=40)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_pairs_need_equal_lengths():
    with pytest.raises(ValueError, match="one length"):
        paired_difference([1, 0], [1])


def test_interval_of_a_correlation() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 3.0, 2.0, 5.0, 4.0]
    expected = stats.pearsonr(x, y).confidence_interval(0.95)
    assert correlation_interval(pearson(x, y), 5) == pytest.approx((0.8, expected.low, expected.high))
    assert correlation_interval(1.0, 9).low > 0.99
    assert correlation_interval(0.9, 3) == (0.9, -1, 1)
