"""World models: the built-in one is `video_diffusion`; others plug in by name (docs/own_world_model.md)."""

from __future__ import annotations

from pathlib import Path

from wmpo.config import WorldModelConfig
from wmpo.families import build, family_class, saved_family
from wmpo.protocols import WorldModel
from wmpo.training.checkpoint import opening
from wmpo.types import EnvSpec


def build_world_model(config: WorldModelConfig, spec: EnvSpec, chunk: int) -> WorldModel:
    """The untrained world model of a recipe, which imagines `chunk` frames at a time."""
    model: WorldModel = build("world_model", config, spec, chunk)
    return model


def load_world_model(folder: Path) -> WorldModel:
    """The world model that a folder holds, of any family. Raises UserError where it holds none."""
    family = saved_family("world_model", folder, "video_diffusion")
    with opening(folder):
        model: WorldModel = family_class("world_model", family).from_pretrained(Path(folder))
    return model
