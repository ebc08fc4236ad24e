"""Success labels for the episodes that no person has labelled, by a reward model that learns from the others.

The labelled episodes are dealt into folds, and one classifier is trained without each. How it scores the fold that it
has not seen tells two things: how many of its verdicts are right, and, by a logistic curve through all these scores,
how likely success is at a score. An episode without a label gets the mean of what all classifiers say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from wmpo.data.cache import FrameCache
from wmpo.data.clips import RewardBatch, RewardClips
from wmpo.data.records import EpisodeRecord, initial_states_of
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.losses.verdicts import FLAT, Curve, Quality, logistic_curve, precision_recall_f1
from wmpo.protocols import RewardModel
from wmpo.report.measure import score_video
from wmpo.rewards import build_reward_model
from wmpo.run import Purpose, Run

FOLDS = 5
TRIES = 3  # at storing labels while a person gives others
LEAST, FEW = 2, 10  # labelled episodes of a kind, without which there is no model, or one that is not to be trusted


@dataclass
class Labels:
    """What a reward model says of the episodes that no person has labelled."""

    successes: int
    """Labelled episodes that it has learned from."""
    failures: int
    quality: Quality
    """Of the verdicts on these, each by a classifier that has not seen it."""
    success: dict[int, np.ndarray] = field(default_factory=dict)
    """Episode -> (T+1,) bool, the frames that show success."""
    probability: dict[int, float] = field(default_factory=dict)
    """Episode -> of success."""

    def lines(self) -> list[str]:
        """For a person."""
        known, found = self.successes + self.failures, len(self.success)
        hits = sum(bool(shown.any()) for shown in self.success.values())
        wrong = sum(min(p, 1 - p) for p in self.probability.values())
        lines = [
            f"learned from {known} labelled episodes, {self.successes} successes and {self.failures} failures; "
            f"{self.quality.accuracy:.0%} of these are told right by a model that has not seen them, "
            f"F1 {self.quality.f1:.2f}",
            f"labelled {found} episodes, {hits} of them successes; about {wrong:.0f} of these labels will be wrong",
        ]
        if min(self.successes, self.failures) < FEW:
            lines.append(
                f"WARNING: figures from fewer than {FEW} successes, or {FEW} failures, say little, and so do the labels"
            )
        return lines


def label_rest(run: Run) -> Labels:
    """Labels for the episodes of the run's store that no person has labelled; nothing is stored.

    Raises UserError where none is left, and where those that are labelled are too few to learn from.
    """
    records = run.store.records()
    left = [record.index for record in records if record.unlabelled or record.by == "model"]
    known = [record for record in records if record.index not in left]
    if not left:
        raise UserError(
            f"All {len(known)} episodes of {run.store.root} are labelled: there is nothing for a model to do."
        )
    fold_of = folds(known, str(run.store.root))
    cache, seed = FrameCache(run.store), run.seed(Purpose.LABEL)
    models = [train(run, cache, [i for i, own in fold_of.items() if own != fold], seed, fold)
              for fold in sorted(set(fold_of.values()))]  # fmt: skip
    scores: dict[int, np.ndarray] = {}
    frames_NCHW = next(iter(cache.images.values()))  # as they were: files of a store that is labelled are replaced
    with run.log.progress("look at episodes", len(records)) as bar:
        for record in records:
            span = slice(record.first_frame, record.first_frame + record.length + 1)
            video = frames_NCHW[span].transpose(0, 2, 3, 1)
            judges = models if record.index in left else [models[fold_of[record.index]]]
            scores[record.index] = np.stack([score_video(model, video, record.instruction) for model in judges])
            bar.update(1)
    curve, quality = calibrated(known, {i: best(scores[i]) for i in fold_of}, str(run.store.root))
    hits = sum(record.succeeded for record in known)
    labels = Labels(hits, len(known) - hits, quality)
    for index in left:
        labels.probability[index] = p = curve.probability(best(scores[index]))
        labels.success[index] = success_frames(scores[index].mean(0), curve.crossing) & (p > 0.5)
    return labels


def keep(store: EpisodeStore, labels: Labels) -> None:
    """Store the labels of the episodes that no person has labelled meanwhile."""
    for tries in reversed(range(TRIES)):
        store.refresh()
        records = store.records()
        fresh = {i: shown for i, shown in labels.success.items() if records[i].unlabelled or records[i].by == "model"}
        try:
            return store.relabel(fresh, labels.probability)
        except UserError:  # somebody has labelled one just now
            if not tries:
                raise


def folds(known: Sequence[EpisodeRecord], where: str) -> dict[int, int]:
    """Episode -> fold; those of one initial state go together, and each fold leaves successes and failures to learn
    from. Raises UserError where there aren't as many."""
    groups: dict[int, list[EpisodeRecord]] = {}
    for record, number in zip(known, initial_states_of(known), strict=True):
        groups.setdefault(number, []).append(record)
    hits = {number for number, group in groups.items() if any(record.succeeded for record in group)}
    misses = {number for number, group in groups.items() if not all(record.succeeded for record in group)}
    if min(len(hits), len(misses)) < LEAST:
        succeeded = sum(record.succeeded for record in known)
        raise UserError(
            f"Of the {len(known)} episodes of {where} that are labelled, {succeeded} succeed and "
            f"{len(known) - succeeded} fail, of {len(hits)} and {len(misses)} initial states: a model needs {LEAST} of "
            f"each, better {FEW}; label more by hand, with `wmpo view {where}`."
        )
    order = sorted(groups, key=lambda number: (number not in hits, number))
    dealt = {number: place % min(FOLDS, len(order)) for place, number in enumerate(order)}
    return {record.index: dealt[number] for number, group in groups.items() for record in group}


def train(run: Run, cache: FrameCache, episodes: Sequence[int], seed: int, fold: int) -> RewardModel:
    """A classifier that has seen these episodes."""
    cfg = run.recipe.reward
    torch.manual_seed(seed)
    model = build_reward_model(cfg, run.store.spec)
    clips = RewardClips(cache, episodes, cfg.clip_length, shift=cfg.shift)

    def sample(step: int) -> RewardBatch:
        return clips.sample(cfg.fit.batch_size, seed, step)

    return run.fit(model, sample, cfg.fit, f"labels-fold-{fold}", seed)


def best(score_MT: np.ndarray) -> float:
    """The highest score of a frame, on average over the models; the first frame has none."""
    return float(score_MT[:, 1:].max(1).mean())


def calibrated(known: Sequence[EpisodeRecord], score: Mapping[int, float], where: str) -> tuple[Curve, Quality]:
    """How likely success is at a score, and how many verdicts are right, from the scores of labelled episodes."""
    label = torch.tensor([record.succeeded for record in known])
    curve = logistic_curve(torch.tensor([score[record.index] for record in known]), label, balanced=False)
    if curve.steepness <= FLAT:
        raise UserError(
            f"From the {len(known)} labelled episodes of {where} a model can't tell success from failure yet: label "
            f"more by hand, with `wmpo view {where}`."
        )
    verdict = torch.tensor([curve.probability(score[record.index]) > 0.5 for record in known])
    return curve, precision_recall_f1(verdict, label)


def success_frames(score_T: np.ndarray, threshold: float) -> np.ndarray:
    """(T+1,) bool: from the first frame on that scores above the threshold, or else from the one that scores best."""
    score_T = np.nan_to_num(score_T, nan=-np.inf)
    above = score_T > threshold
    return np.arange(len(score_T)) >= int(above.argmax() if above.any() else score_T.argmax())
