"""What a report shows besides numbers: videos and the reward model's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from wmpo.report.video import Frames
from wmpo.types import Episode


@dataclass(frozen=True)
class Clip:
    """A video of one episode, (T, H, W, 3) uint8."""

    frames: Frames
    success_at: int | None = None
    """The first successful frame, if any."""

    @staticmethod
    def of(episode: Episode) -> Clip:
        """What all cameras saw of an episode."""
        return Clip(panorama(episode.images), episode.finish_step if episode.succeeded else None)


def panorama(images: Mapping[str, Frames]) -> Frames:
    """What all cameras see, beside each other in one video; black between them, and below a lower picture."""
    height = max(frames.shape[1] for frames in images.values())
    parts = [np.pad(frames, ((0, 0), (0, height - frames.shape[1]), (0, 1), (0, 0))) for frames in images.values()]
    return np.concatenate(parts, axis=2)[:, :, :-1]


@dataclass(frozen=True)
class Pair:
    """Two videos to compare, shown in step."""

    left: Clip
    right: Clip
    left_label: str
    right_label: str
    caption: str = ""


@dataclass(frozen=True)
class ScoreCurve:
    """The reward model's scores over one real episode."""

    scores: Sequence[float]  # probabilities
    """Per frame, of the clip that ends there; NaN where none does."""
    success_at: int | None
    """The frame at which the episode really succeeded, if it did."""
    caption: str = ""


@dataclass
class Media:
    """All of it may be empty."""

    dreams: list[Pair] = field(default_factory=list)
    """Real beside imagined video of the same actions."""
    policies: list[Pair] = field(default_factory=list)
    """Two policies from the same initial state, both real."""
    scores: list[ScoreCurve] = field(default_factory=list)
    fps: int = 10
