"""Stored episodes, the dream of the same actions beside them, and what the reward model thinks of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.imagination import Replay, replay
from wmpo.io.plain import Json, JsonObject
from wmpo.protocols import RewardModel, WorldModel
from wmpo.report.measure import probability, score_video
from wmpo.report.media import panorama
from wmpo.types import Episode
from wmpo.web.server import picture_strip

DOUBT = 0.15  # a verdict is doubtful where the probability lies as near to the threshold
FRAMES, HEIGHT = 300, 240  # most that a page is sent of an episode
Found = TypeVar("Found")


@dataclass
class View:
    """`models`: a world model and a reward model, where the store belongs to a run that has them."""

    store: EpisodeStore
    models: tuple[WorldModel, RewardModel] | None
    device: torch.device
    labels: bool = True
    """Whether success may be said anew: not of a store that the results of a run follow from."""
    best: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Episode -> the highest probability of success of its real video, and of its dream."""

    def episodes(self, asked: JsonObject) -> Json:
        """A row for each episode. With "score", scores a few more first, so that a page sees all after some calls."""
        self.store.refresh()
        if self.models and asked.get("score"):
            left = (record.index for record in self.store.records() if record.index not in self.best)
            if (index := next(left, None)) is not None:
                self._look(index)
        rows = []
        for record in self.store.records():
            row: JsonObject = {
                "index": record.index, "source": record.source, "task": record.task, "length": record.length,
                "instruction": record.instruction, "initial_state": record.initial_state,
                "success": None if record.unlabelled else record.succeeded,
                "by": record.by, "probability": record.probability,
            }  # fmt: skip
            if found := self.best.get(record.index):
                threshold = probability(self.models[1].threshold) if self.models else 0.5
                row |= {"real": found[0], "dream": found[1]}
                row["doubtful"] = any(abs(score - threshold) < DOUBT for score in found)
                row["disagrees"] = not record.unlabelled and any(
                    (score > threshold) != record.succeeded for score in found
                )
            rows.append(row)
        return {"rows": rows, "models": self.models is not None, "labels": self.labels}

    def episode(self, asked: JsonObject) -> Json:
        """Frames, states of success and scores of episode number `index`."""
        index = int(asked["index"])
        episode, dreamt, scores = self._look(index)
        answer: JsonObject = {"fps": self.store.spec.fps, "real": shown(episode), "success": episode.success.tolist()}
        if dreamt is not None and self.models:
            answer |= {"dream": shown(dreamt), "threshold": probability(self.models[1].threshold)}
            answer["scores"] = {name: [plain(score) for score in line] for name, line in scores.items()}
        return answer

    def label(self, asked: JsonObject) -> Json:
        """Say by hand whether an episode succeeded: then from frame `frame` on, or else nowhere."""
        if not self.labels:
            raise UserError("These episodes belong to a run, whose results follow from their labels: label a copy.")
        index, frame, success = (asked.get(name) for name in ("index", "frame", "success"))
        if type(index) is not int or type(frame) is not int or frame < 0 or type(success) is not bool:
            raise UserError("A label takes an index, a frame, and whether the episode succeeds from there on.")

        def relabel() -> None:
            [frames] = [row.length + 1 for row in self.store.records() if row.index == index] or [0]
            self.store.relabel({index: (np.arange(frames) >= min(frame, frames - 1)) & success})

        self._current(relabel)
        return {}

    def _current(self, work: Callable[[], Found]) -> Found:
        """What `work` finds in the store as it is now; once more where somebody else, `wmpo data label` say, changes it
        meanwhile."""
        self.store.refresh()
        try:
            return work()
        except UserError:
            self.store.refresh()
            return work()

    def _look(self, index: int) -> tuple[Episode, Episode | None, dict[str, np.ndarray]]:
        episode = self._current(lambda: self.store.episode(index))
        if self.models is None:
            return episode, None, {}
        world_model, reward_model = self.models
        dream: Replay = replay(
            world_model, reward_model, self.store.spec, [episode], chunk=world_model.chunk, device=self.device
        )
        video = episode.images[next(iter(self.store.spec.cameras))]
        scores = {"real": score_video(reward_model, video, episode.instruction), "dream": dream.scores[0]}
        real, imagined = (probability(float(np.nanmax(line))) for line in scores.values())
        self.best[index] = real, imagined
        return episode, dream.episodes[0], scores


def plain(logit: float) -> float | None:
    """As a probability; JSON has no NaN."""
    return None if np.isnan(logit) else probability(float(logit))


def shown(episode: Episode) -> Json:
    """A strip of all its frames, or of every n-th of a long one, made smaller where they are large."""
    frames = panorama(episode.images)
    every = -(-len(frames) // FRAMES)
    smaller = -(-frames.shape[1] // HEIGHT)
    frames = frames[::every, ::smaller, ::smaller]
    return {"strip": picture_strip(frames), "count": len(frames), "every": every}
