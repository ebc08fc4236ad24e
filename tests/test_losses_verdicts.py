import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmpo.losses.verdicts import (
    auroc,
    best_f1_threshold,
    expected_calibration_error,
    first_hit,
    matching_threshold,
    precision_recall_f1,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(0, 7), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.integers(0, 10**6))
def test_first_hit_against_brute_force(batch, steps, threshold, seed):
    score = torch.randint(0, 11, (batch, steps), generator=torch.Generator().manual_seed(seed)) / 10
    expected = [next((t for t in range(steps) if row[t] > torch.tensor(threshold)), steps) for row in score]
    got = first_hit(score, threshold)
    assert got.dtype == torch.long
    assert got.tolist() == expected
    assert first_hit(score > threshold).tolist() == expected


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
    threshold, f1 = best_f1_threshold(score, torch.zeros(2))
    assert f1 == 0
    assert not (score > threshold).any()
    threshold, f1 = best_f1_threshold(score, torch.ones(2))
    assert f1 == 1
    assert (score > threshold).all()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=12),
)
def test_best_threshold_against_brute_force(pairs):
    score = torch.tensor([pair[0] for pair in pairs])
    label = torch.tensor([pair[1] for pair in pairs])
    threshold, f1 = best_f1_threshold(score, label)
    # Read back as used: a python float compared with float32 scores.
    assert precision_recall_f1(score > threshold, label).f1 == pytest.approx(f1)
    for cut in [-1.0, *score.tolist()]:
        assert precision_recall_f1(score > cut, label).f1 <= f1 + 1e-9


def test_threshold_between_neighbouring_floats():
    for low in torch.linspace(0.1, 0.9, 20):
        high = torch.nextafter(low, torch.tensor(1.0))
        threshold, f1 = best_f1_threshold(torch.stack([low, high]), torch.tensor([0, 1]))
        assert f1 == 1
        assert (torch.stack([low, high]) > threshold).tolist() == [False, True]


def test_scores_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        best_f1_threshold(torch.tensor([0.1, math.nan]), torch.tensor([0, 1]))


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
    error, bins = expected_calibration_error(probability, label, bins=10)
    # Bin 0 holds 0.0 and 0.1 (its upper edge), bin 1 holds 0.15, bin 9 the other two.
    assert [b.predictions for b in bins] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert bins[0][:2] == (0.0, 0.1)
    assert bins[9].confidence == pytest.approx(0.975)
    assert bins[9].frequency == pytest.approx(0.5)
    assert math.isnan(bins[4].confidence)
    assert error == pytest.approx((2 * 0.05 + 1 * 0.85 + 2 * 0.475) / 5)


def test_matching_threshold_lets_the_given_share_pass() -> None:
    scores = torch.tensor([0.1, 0.9, 0.4, 0.7, 0.2])
    for successes, expected in ((0, 0.9), (1, 0.7), (2, 0.4), (4, 0.1)):
        threshold = matching_threshold(scores, successes / 5)
        assert threshold == pytest.approx(expected)
        assert int((scores > threshold).sum()) == successes
    assert (scores > matching_threshold(scores, 1.0)).all()
    assert int((torch.ones(4) > matching_threshold(torch.ones(4), 0.5)).sum()) == 0  # ties fall below
