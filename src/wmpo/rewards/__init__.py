"""Success classifiers: conv and videomae are built in; others plug in by name (docs/own_reward_model.md)."""

from __future__ import annotations

from pathlib import Path

from wmpo.config import RewardConfig
from wmpo.families import build, family_class, saved_family
from wmpo.protocols import RewardModel
from wmpo.training.checkpoint import opening
from wmpo.types import EnvSpec


def build_reward_model(config: RewardConfig, spec: EnvSpec) -> RewardModel:
    """The untrained classifier of a recipe."""
    model: RewardModel = build("reward", config, spec)
    return model


def load_reward_model(folder: Path) -> RewardModel:
    """The classifier that a folder holds, of any family. Raises UserError where it holds none."""
    family = saved_family("reward", folder, "conv")
    with opening(folder):
        model: RewardModel = family_class("reward", family).from_pretrained(Path(folder))
    return model
