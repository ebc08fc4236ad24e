"""Success classifiers. Anything that fits `wmpo.protocols.RewardModel` plugs in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wmpo.config import RewardConfig
    from wmpo.rewards.clip_classifier import ClipClassifier
    from wmpo.rewards.videomae import VideoMAEClassifier
    from wmpo.types import EnvSpec


def build_reward_model(config: RewardConfig, spec: EnvSpec) -> ClipClassifier | VideoMAEClassifier:
    """The untrained classifier of a recipe."""
    if config.backbone == "videomae":
        from wmpo.rewards.videomae import VideoMAEClassifier

        return VideoMAEClassifier.build(config, spec)
    from wmpo.rewards.clip_classifier import ClipClassifier

    return ClipClassifier.build(config, spec)
