import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmpo.errors import UserError
from wmpo.losses.verdicts import (
    auroc,
    best_f1_threshold,
    calibrated_threshold,
    expected_calibration_error,
    logistic_curve,
    matching_threshold,
    precision_recall_f1,
)


def test_quality_by_hand():
    predicted = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0], dtype=torch.bool)
    label = torch.tensor([1, 1, 0, 1, 1, 0, 0, 0], dtype=torch.bool)
    assert precision_recall_f1(predicted, label) == (2 / 3, 1 / 2, 4 / 7, 5 / 8)
    nothing = torch.zeros(3, dtype=torch.bool)
    assert precision_recall_f1(nothing, nothing) == (0, 0, 0, 1)


def test_best_threshold_by_hand():
    score = torch.tensor([0.9, 0.8, 0.6, 0.4, 0.2])
    label = torch.tensor([1, 1, 0, 1, 0])
    # Accepting 2: 4/5; accepting 4: 6/7, the best.
    threshold, f1 = best_f1_threshold(score, label)
    assert threshold == pytest.approx(0.3)
    assert f1 == pytest.approx(6 / 7)


def test_tied_scores_stand_or_fall_together():
    threshold, f1 = best_f1_threshold(torch.tensor([0.5, 0.5, 0.1]), torch.tensor([1, 0, 0]))
    assert threshold == pytest.approx(0.3)
    assert f1 == pytest.approx(2 / 3)


def test_of_equal_thresholds_the_strictest():
    score, label = torch.tensor([0.9, 0.7, 0.5, 0.3]), torch.tensor([1, 0, 0, 1])
    # Accepting 1, 2, 3, 4 gives 2/3, 2/4, 2/5, 4/6: the first equals the last.
    threshold, f1 = best_f1_threshold(score, label)
    assert threshold == pytest.approx(0.8)
    assert f1 == pytest.approx(2 / 3)


def test_threshold_when_nothing_or_everything_is_a_success():
    score = torch.tensor([0.2, 0.7])
    with pytest.raises(UserError, match="None of the 2 held-out episodes succeeded"):
        best_f1_threshold(score, torch.zeros(2))
    threshold, f1 = best_f1_threshold(score, torch.ones(2))
    assert f1 == 1
    assert (score > threshold).all()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-90, 90, width=32), st.booleans()), min_size=1, max_size=12),
)
def test_best_threshold_against_brute_force(pairs):
    pairs = [(0.0, True), *pairs]
    score = torch.tensor([pair[0] for pair in pairs])
    label = torch.tensor([pair[1] for pair in pairs])
    threshold, f1 = best_f1_threshold(score, label)
    # Read back as used: a python float compared with float32 scores.
    assert precision_recall_f1(score > threshold, label).f1 == pytest.approx(f1)
    for cut in [-91.0, *score.tolist()]:
        assert precision_recall_f1(score > cut, label).f1 <= f1 + 1e-9


def test_threshold_between_neighbouring_floats():
    for low in torch.linspace(0.1, 0.9, 20):
        high = torch.nextafter(low, torch.tensor(1.0))
        threshold, f1 = best_f1_threshold(torch.stack([low, high]), torch.tensor([0, 1]))
        assert f1 == 1
        assert (torch.stack([low, high]) > threshold).tolist() == [False, True]


def test_scores_must_be_finite():
    for choose in (lambda score: best_f1_threshold(score, torch.tensor([0, 1])), lambda s: matching_threshold(s, 0.5)):
        for odd in (math.nan, -math.inf):
            with pytest.raises(UserError, match="no finite numbers"):
                choose(torch.tensor([0.1, odd]))
        with pytest.raises(UserError, match="at least one"):
            choose(torch.zeros(0))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12))
def test_auroc_counts_pairs(pairs):
    positives = [s for s, y in pairs if y]
    negatives = [s for s, y in pairs if not y]
    got = auroc(torch.tensor([s for s, _ in pairs]) / 5, torch.tensor([y for _, y in pairs], dtype=torch.bool))
    if not positives or not negatives:
        assert math.isnan(got)
    else:
        wins = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
        assert got == pytest.approx(np.mean(wins))


def test_calibration_by_hand():
    probability = torch.tensor([0.0, 0.1, 0.15, 0.95, 1.0], dtype=torch.float64)
    label = torch.tensor([0, 0, 1, 1, 0])
    error = expected_calibration_error(probability, label, bins=10)
    # Bin 0 holds 0.0 and 0.1 (its upper edge), bin 1 holds 0.15, bin 9 the other two.
    assert error == pytest.approx((2 * 0.05 + 1 * 0.85 + 2 * 0.475) / 5)


def test_matching_threshold_lets_the_given_share_pass() -> None:
    scores = torch.tensor([0.1, 0.9, 0.4, 0.7, 0.2])
    for successes, expected in ((1, 0.7), (2, 0.4), (4, 0.1)):
        threshold = matching_threshold(scores, successes / 5)
        assert threshold == pytest.approx(expected)
        assert int((scores > threshold).sum()) == successes


def test_equal_scores_go_together_and_some_are_always_on_either_side() -> None:
    scores = torch.tensor([3.0, 3.0, 3.0, 1.0, 0.0])
    assert matching_threshold(scores, 2 / 5) == 1.0  # 3 are nearer to 2 than 4
    assert matching_threshold(scores, 1 / 5) == 1.0  # none, as near as 3 is not, would teach nothing
    assert matching_threshold(scores, 0.99) == 0.0


def test_sure_scores_are_still_told_apart() -> None:
    """As probabilities in float32 they would all be 1."""
    logits = torch.tensor([20.0, 25.0, 30.0, 35.0])
    assert logits.sigmoid().unique().tolist() == [1.0]
    assert int((logits > matching_threshold(logits, 0.5)).sum()) == 2


@pytest.mark.parametrize(
    ("scores", "rate", "complaint"),
    [
        ([0.0, 1.0], 0.0, "never succeeded"),
        ([0.0, 1.0], 1.0, "always succeeded"),
        ([2.5, 2.5], 0.5, "all 2 imagined episodes one score, 2.5"),
    ],
)
def test_a_threshold_that_cannot_do_its_work_is_refused(scores: list[float], rate: float, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        matching_threshold(torch.tensor(scores), rate)


def test_calibrated_threshold_by_hand():
    """With two scores the curve meets both of Platt's targets: (n + 1) / (n + 2) of successes, 1 / (n + 2) of failures;
    it crosses a half where the line through their logits crosses zero."""
    score, label = torch.tensor([3.0, 5.0]), torch.tensor([False, True])
    assert calibrated_threshold(score, label) == pytest.approx(4.0, abs=1e-4)  # both targets are 2 of 3
    low, high = math.log(1 / 10), math.log(2)  # logits of 1/11 for nine failures, of 2/3 for one success
    nine = torch.tensor([3.0] * 9 + [5.0]), torch.tensor([False] * 9 + [True])
    assert calibrated_threshold(*nine) == pytest.approx(3 + 2 * -low / (high - low), abs=1e-3)


def overlapping(successes, failures):
    """Scores about 1 of successes and about -1 of failures, as evenly spread as can be."""
    normal = torch.distributions.Normal(0, 1)
    hits, misses = (normal.icdf((torch.arange(n) + 0.5) / n) for n in (successes, failures))
    return torch.cat([hits + 1, misses - 1]), torch.arange(successes + failures) < successes


@pytest.mark.parametrize(("successes", "failures"), [(300, 300), (3000, 300), (300, 3000)])
def test_calibrated_threshold_weighs_both_kinds_alike(successes, failures):
    """Two normal distributions of spread 1 are equally likely half way; one of ten times the number doesn't move it,
    which would be by log(10) / 2."""
    assert calibrated_threshold(*overlapping(successes, failures)) == pytest.approx(0.0, abs=0.05)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 1000), st.floats(-1000, 1000))
def test_calibrated_threshold_follows_the_scale_of_scores(scale, shift):
    score, label = torch.tensor([-1.0, 0.5, 0.2, 2.0, 3.0]).double(), torch.tensor([0, 0, 1, 1, 1])
    expected = scale * calibrated_threshold(score, label) + shift
    assert calibrated_threshold(scale * score + shift, label) == pytest.approx(expected, abs=1e-3 * scale)


def test_calibrated_threshold_rises_with_the_scores():
    score, label = torch.tensor([-1.0, 0.5, 0.2, 2.0, 3.0]), torch.tensor([0, 0, 1, 1, 1])
    found = [calibrated_threshold(score + 0.3 * k * (label == kind), label) for kind in (0, 1) for k in range(3)]
    assert found[0] < found[1] < found[2] and found[3] < found[4] < found[5]
    assert 0 < calibrated_threshold(torch.tensor([-40.0, -30.0, 30.0, 50.0]), torch.tensor([0, 0, 1, 1])) + 30 < 60


def test_calibrated_threshold_needs_both_kinds_and_scores_that_tell_them_apart():
    score = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(UserError, match=r"None of the 3 judged episodes is a success.*collect\.episodes"):
        calibrated_threshold(score, torch.zeros(3))
    with pytest.raises(UserError, match="None of the 3 judged episodes is a failure"):
        calibrated_threshold(score, torch.ones(3))
    for label in ([1, 1, 0], [1, 0, 1]):  # the other way round, and neither
        with pytest.raises(UserError, match="no higher scores than failures"):
            calibrated_threshold(score, torch.tensor(label))
    with pytest.raises(UserError, match="no higher scores than failures"):
        calibrated_threshold(torch.ones(4), torch.tensor([0, 1, 0, 1]))
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError):
            calibrated_threshold(torch.tensor([1.0, bad]), torch.tensor([0, 1]))


def test_a_curve_gives_back_the_probabilities_that_labels_were_drawn_from() -> None:
    generator = torch.Generator().manual_seed(0)
    score = 3 * torch.randn(20000, generator=generator)
    label = torch.rand(len(score), generator=generator) < (1.5 * score - 2).sigmoid()
    curve = logistic_curve(score, label, balanced=False)
    for at in (-2.0, 0.0, 4 / 3, 3.0):
        assert curve.probability(at) == pytest.approx(1 / (1 + math.exp(2 - 1.5 * at)), abs=0.02)
    assert curve.crossing == pytest.approx(4 / 3, abs=0.05)
    assert logistic_curve(score, label, balanced=True).crossing < curve.crossing  # failures are more frequent here
    with pytest.raises(UserError, match="None of the 3 judged episodes is a failure"):
        logistic_curve(score[:3], torch.ones(3), balanced=False)
