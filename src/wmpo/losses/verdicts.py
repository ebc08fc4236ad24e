"""From scores of clips to verdicts on episodes, and how good those verdicts are.

Scores and thresholds are logits: probabilities near 1 would round to one number, and a threshold could no longer tell
them apart. A score above the threshold, strictly, counts as success, here and wherever a verdict is made.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wmpo.errors import UserError


def verdict_loss(logits_B: Tensor, label_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(binary cross-entropy, metrics) of success logits against labels 0 and 1. [paper: BCE]

    accuracy  share in [0, 1] of verdicts at probability 0.5 that are right.
    """
    logits_B, label_B = logits_B.float(), label_B.float()
    loss = F.binary_cross_entropy_with_logits(logits_B, label_B)
    accuracy = ((logits_B.detach() > 0).float() == label_B).float().mean()
    return loss, {"loss": loss.detach(), "accuracy": accuracy}


def finite_threshold(threshold: float) -> float:
    """The threshold itself. Raises UserError unless it is a finite number."""
    if not math.isfinite(threshold):
        raise UserError(f"The reward model's threshold is {threshold}; it must be a finite number: train it again.")
    return float(threshold)


def matching_threshold(score_N: Tensor, rate: float) -> float:
    """The threshold that a share of the scores as near to `rate` as possible is above; equal scores go together.

    Raises UserError where none can do its work: with a rate of 0 or 1, with scores that are all the same, and with
    scores that are no finite numbers, nobody would succeed, or everybody would, and GRPO would have no group to learn
    from.
    """
    _check_scores(score_N)
    if not 0 < rate < 1:
        often = "never" if rate <= 0 else "always"
        raise UserError(
            f"The policy {often} succeeded in its real rollouts, so that no threshold can make imagined success as "
            "frequent and leave something to learn: collect more episodes (collect.episodes), or begin from a "
            f"policy that {'succeeds' if rate <= 0 else 'fails'} at times (policy.fit.steps)."
        )
    level_M, count_M = score_N.detach().unique(return_counts=True)  # ascending
    if len(level_M) < 2:
        raise UserError(
            f"The reward model gives all {len(score_N)} imagined episodes one score, {float(level_M[0]):.4g}, so that "
            "no threshold can tell successes from failures: train it longer (reward.fit.steps)."
        )
    above_M = (len(score_N) - count_M.cumsum(0))[:-1]  # scores above each level but the last, which nothing exceeds
    return float(level_M[int((above_M - rate * len(score_N)).abs().argmin())])


class Curve(NamedTuple):
    """How likely success is at a score: a logistic curve."""

    middle: float
    spread: float
    steepness: float
    """Above 0 where higher scores mean success more often."""
    offset: float

    def probability(self, score: float) -> float:
        """Of success, in [0, 1]."""
        return float(scipy.special.expit(self.steepness * (score - self.middle) / self.spread + self.offset))

    @property
    def crossing(self) -> float:
        """The score at which it is 1/2."""
        return self.middle - self.spread * self.offset / self.steepness


FLAT = 1e-3  # steepness of a curve that tells nothing


def logistic_curve(score_N: Tensor, label_N: Tensor, balanced: bool) -> Curve:
    """The logistic curve through labelled scores (Platt). `balanced`: successes and failures weigh alike, however many
    there are of each.

    Raises UserError where one kind is missing, and where scores are no finite numbers.
    """
    _check_scores(score_N)
    label = label_N.bool().cpu().numpy()
    if label.all() or not label.any():
        kind = "failure" if label.all() else "success"
        raise UserError(
            f"None of the {len(label)} judged episodes is a {kind}, so that no threshold can tell the two apart: "
            "collect more episodes (collect.episodes)."
        )
    score = score_N.detach().double().cpu().numpy()
    middle, spread = score.mean(), score.std() or 1.0
    x = (score - middle) / spread
    count = np.array([(~label).sum(), label.sum()])
    target = np.where(label, (count[1] + 1) / (count[1] + 2), 1 / (count[0] + 2))  # Platt's, against overconfidence
    weight = 1 / count[label.astype(int)] if balanced else np.full(len(label), 1 / len(label))

    def loss(curve: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = curve[0] * x + curve[1]
        slope = weight * (scipy.special.expit(z) - target)
        return float(weight @ (np.logaddexp(0, z) - target * z)), np.array([slope @ x, slope.sum()])

    steepness, offset = scipy.optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    return Curve(float(middle), float(spread), float(steepness), float(offset))


def calibrated_threshold(score_N: Tensor, label_N: Tensor) -> float:
    """The score at which success is as likely as failure, see `logistic_curve`.

    Raises UserError where one kind is missing, where scores are no finite numbers, and where higher scores don't mean
    success more often.
    """
    curve = logistic_curve(score_N, label_N, balanced=True)
    if curve.steepness <= FLAT:
        raise UserError(
            "The reward model gives successes no higher scores than failures in imagined replays of episodes that it "
            "was not trained on: train it, or the world model, longer."
        )
    return curve.crossing


class Quality(NamedTuple):
    """How well predicted successes match real ones; each in [0, 1], and 0 where its denominator is."""

    precision: float
    """Share of the predicted successes that are real."""
    recall: float
    """Share of the real successes that are predicted."""
    f1: float
    """Harmonic mean of both."""
    accuracy: float
    """Share of all verdicts that are right."""


def precision_recall_f1(predicted_N: Tensor, label_N: Tensor) -> Quality:
    """Both bool."""
    predicted_N, label_N = predicted_N.bool(), label_N.bool()
    hits = int((predicted_N & label_N).sum())
    predicted, real, total = int(predicted_N.sum()), int(label_N.sum()), len(label_N)
    return Quality(
        precision=hits / predicted if predicted else 0.0,
        recall=hits / real if real else 0.0,
        f1=2 * hits / (predicted + real) if predicted + real else 0.0,
        accuracy=int((predicted_N == label_N).sum()) / total if total else 0.0,
    )


def best_f1_threshold(score_N: Tensor, label_N: Tensor) -> tuple[float, float]:
    """(threshold, F1): the threshold with the best F1 when scores above it count as success.

    Candidates lie midway between neighbouring scores, and just below the lowest. Of equally good ones the highest is
    taken: a false success is what a policy learns to exploit, a missed one only slows it down. Raises UserError for
    scores that are no finite numbers, and without a positive label, where no threshold is better than another.
    """
    _check_scores(score_N)
    if not bool(label_N.bool().any()):
        raise UserError(
            f"None of the {len(label_N)} held-out episodes succeeded, so that no threshold of the reward model can be "
            "chosen by F1: collect more episodes, or keep more of them out of training."
        )
    order_N = score_N.argsort(descending=True)
    score = score_N[order_N].detach().cpu().numpy()
    label = label_N.bool()[order_N].cpu().numpy()
    # Accepting the n highest scores, n = 1 ... N; possible only where the next score differs (ties go together).
    hits_N = label.cumsum()
    f1_N = 2 * hits_N / (np.arange(1, len(score) + 1) + label.sum())
    f1_N[:-1][score[:-1] == score[1:]] = -1
    last = int(f1_N.argmax())
    lowest = score[last]
    if last + 1 == len(score):
        return float(np.nextafter(lowest, np.array(-np.inf, lowest.dtype))), float(f1_N[last])
    below = score[last + 1]
    # In the scores' own precision; between neighbouring floats the midpoint may round up to the accepted score.
    middle = below + (lowest - below) / 2
    return float(middle if middle < lowest else below), float(f1_N[last])


def _check_scores(score_N: Tensor) -> None:
    if len(score_N) == 0:
        raise UserError("A threshold needs at least one scored episode, and there is none.")
    if not bool(torch.isfinite(score_N).all()):
        raise UserError("The reward model gives scores that are no finite numbers: train it again, at a lower rate.")


def auroc(score_N: Tensor, label_N: Tensor) -> float:
    """Chance that a random positive scores above a random negative, ties counting half; NaN with one class only."""
    score, label = score_N.detach().double().cpu().numpy(), label_N.bool().cpu().numpy()
    if label.all() or not label.any():
        return math.nan
    better = scipy.stats.mannwhitneyu(score[label], score[~label]).statistic
    return float(better / (label.sum() * (~label).sum()))


def expected_calibration_error(probability_N: Tensor, label_N: Tensor, bins: int = 10) -> float:
    """In [0, 1]: the gap between confidence and frequency, averaged over predictions.

    Bins are of equal width over [0, 1] and hold their upper edge (arXiv 1706.04599, eq. 3); the first holds 0 too.
    """
    probability_N = probability_N.detach().double().cpu()
    label_N = label_N.double().cpu()
    bin_N = (probability_N * bins).ceil().long().clamp(1, bins) - 1
    confidence, frequency = (torch.bincount(bin_N, each, minlength=bins) for each in (probability_N, label_N))
    return float((confidence - frequency).abs().sum() / max(len(label_N), 1))  # count * |mean - mean|, over all
