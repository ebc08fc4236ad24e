"""Success classifiers. Anything that fits `wmpo.protocols.RewardModel` plugs in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wmpo.io.files import read_json
from wmpo.training.checkpoint import CONFIG, check_fits

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


def load_reward_model(folder: Path, spec: EnvSpec) -> ClipClassifier | VideoMAEClassifier:
    """The classifier that a folder holds, of either kind, if it can judge what `spec` shows; else UserError."""
    described = read_json(folder / CONFIG)
    if isinstance(described, dict) and described.get("config_type") == "VideoMAEConfig":
        from wmpo.rewards.videomae import VideoMAEClassifier

        return VideoMAEClassifier.from_pretrained(folder)  # resizes what it sees
    from wmpo.rewards.clip_classifier import ClipClassifier

    model = ClipClassifier.from_pretrained(folder)
    check_fits(model.config, spec, folder)
    return model
