"""The success classifier for small machines: does this clip show the accomplished task?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.losses.verdicts import finite_threshold, verdict_loss
from wmpo.nn.layers import Film, ResidualBlock
from wmpo.nn.text import SentenceEncoder
from wmpo.rewards.settings import ConvSettings
from wmpo.training.checkpoint import load_config, load_module, save_module
from wmpo.types import EnvSpec

TEXT_WIDTH = 32


@dataclass(frozen=True)
class ClipClassifierConfig:
    """What a saved classifier needs to be built again. The threshold, a logit, travels with it."""

    clip_length: int
    width: int
    image_size: tuple[int, int]
    threshold_logit: float = 0.0


class ClipClassifier(nn.Module):
    """Fulfils `wmpo.protocols.RewardModel`; `forward` is the loss.

    The L frames are stacked as channels. What matters is local (this cube, in that zone), so features are
    max-pooled over space; flattening them instead overfits to where things happened to be.
    """

    def __init__(self, config: ClipClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.clip_length = config.clip_length
        self.threshold = config.threshold_logit
        c = config.width
        self.text = SentenceEncoder(TEXT_WIDTH)
        self.stem = nn.Conv2d(3 * config.clip_length, c, kernel_size=4, stride=4)
        self.block1 = ResidualBlock(c, c)
        self.down = nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        self.block2, self.film = ResidualBlock(2 * c, 2 * c), Film(TEXT_WIDTH, 2 * c)
        self.head = nn.Sequential(nn.Linear(2 * c, 2 * c), nn.SiLU(), nn.Linear(2 * c, 1))

    @classmethod
    def build(cls, config: ConvSettings, spec: EnvSpec) -> ClipClassifier:
        size = next(iter(spec.cameras.values()))
        return cls(ClipClassifierConfig(config.clip_length, config.width, size))

    def with_threshold(self, threshold: float) -> ClipClassifier:
        """The same weights, judged by another threshold, a finite logit."""
        threshold = finite_threshold(threshold, "The reward model")
        other = ClipClassifier(replace(self.config, threshold_logit=threshold))
        other.load_state_dict(self.state_dict())
        return other.to(next(self.parameters()).device)

    def logits(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        """(B,) logits of success."""
        x = clips_BLCHW.to(self.stem.weight.device).flatten(1, 2).float().div_(127.5).sub_(1.0)
        x = self.block1(self.stem(x))
        x = self.block2(self.down(x), self.film(self.text(instruction)))
        return self.head(F.silu(x).amax(dim=(2, 3))).squeeze(-1)

    @torch.no_grad()
    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        """(B,) logits of success, without gradients."""
        return self.logits(clips_BLCHW, instruction)

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Binary cross-entropy on balanced clips. `batch`: `wmpo.data.clips.RewardBatch`."""
        return verdict_loss(self.logits(batch.clips, batch.instruction), batch.label)

    def save_pretrained(self, folder: Path) -> None:
        save_module(folder, self, self.config)

    @classmethod
    def from_pretrained(cls, folder: Path) -> ClipClassifier:
        config, _ = load_config(folder, ClipClassifierConfig)
        finite_threshold(config.threshold_logit, str(folder))
        model = cls(config)
        load_module(folder, model)
        return model.eval()
