"""Settings of the built-in success classifiers; light, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from wmpo.config import Between, RewardConfig
from wmpo.errors import UserError, require_multiple, require_package


@dataclass(frozen=True)
class ConvSettings(RewardConfig):
    """The small convolutional classifier."""

    width: Annotated[int, Between(8, 65536)] = 32
    """Channels of the first stage."""
    image_size: Annotated[int, Between(0, 4096)] = 0
    """Height and width that frames are brought to, in pixels; 0: those of the first camera."""
    resize: Literal["pad", "stretch"] = "pad"
    """How frames of another size are brought to it: pad keeps their shape, black around; stretch does not."""

    def check(self) -> None:
        require_multiple("reward.width", self.width, 8)


@dataclass(frozen=True)
class VideoMAESettings(RewardConfig):
    """VideoMAE with a linear head. The paper's is VideoMAE-base."""

    width: Annotated[int, Between(32, 65536)] = 32
    """Hidden size. [paper 768]"""
    depth: Annotated[int, Between(1, 1000)] = 4
    """Layers. [paper 12]"""
    heads: Annotated[int, Between(0, 1024)] = 0
    """Attention heads; 0: one for every 32 of the width. [paper 12]"""
    image_size: Annotated[int, Between(0, 4096)] = 0
    """Height and width that frames are stretched to, in pixels; 0: the greater side of the first camera's, rounded up
    to whole patches. VideoMAE-base was made for 224."""
    pretrained: str = ""
    """Folder of a pretrained VideoMAE (config.json and .safetensors) to begin from, whose sizes count; empty: from
    scratch."""

    def check(self) -> None:
        require_multiple("reward.width", self.width, self.heads or 32)
        if self.pretrained and not (Path(self.pretrained) / "config.json").is_file():
            raise UserError(
                f"reward.pretrained, {self.pretrained!r}, is no folder with a VideoMAE: it has no config.json."
            )
        require_multiple("reward.clip_length", self.clip_length, 2)
        require_package("reward.family is videomae", "transformers", "hub")
