"""Settings of the built-in success classifiers; light, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wmpo.config import Ranges, RewardConfig
from wmpo.errors import require_multiple, require_package


@dataclass(frozen=True)
class ConvSettings(RewardConfig):
    """The small convolutional classifier."""

    width: int = 32
    """Channels of the first stage."""

    RANGES: ClassVar[Ranges] = {
        "width": (8, 65536),
    }

    def check(self) -> None:
        require_multiple("reward.width", self.width, 8)


@dataclass(frozen=True)
class VideoMAESettings(RewardConfig):
    """VideoMAE with a linear head. [paper: VideoMAE-base, 12 layers of 12 heads, 768 wide]"""

    width: int = 32
    """Hidden size."""
    depth: int = 4
    """Layers."""
    heads: int = 0
    """Attention heads; 0: one for every 32 of the width."""

    RANGES: ClassVar[Ranges] = {
        "width": (32, 65536),
        "depth": (1, 1000),
        "heads": (0, 1024),
    }

    def check(self) -> None:
        require_multiple("reward.width", self.width, self.heads or 32)
        require_multiple("reward.clip_length", self.clip_length, 2)
        require_package("reward.family is videomae", "transformers", "hub")
