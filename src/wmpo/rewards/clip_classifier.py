"""The success classifier for small machines: does this clip show the accomplished task?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.config import Between
from wmpo.errors import UserError
from wmpo.losses.verdicts import finite_threshold, verdict_loss
from wmpo.nn.layers import Film, ResidualBlock, Resize, common_size, resized
from wmpo.nn.text import SentenceEncoder
from wmpo.rewards.settings import ConvSettings
from wmpo.training.checkpoint import load_config, load_module, save_module
from wmpo.types import EnvSpec

if TYPE_CHECKING:
    from wmpo.data.clips import RewardBatch

TEXT_WIDTH = 32
SMALLEST = 4  # pixels: the stem's stride


@dataclass(frozen=True)
class ClipClassifierConfig:
    """What a saved classifier needs to be built again. The threshold, a logit, travels with it."""

    clip_length: Annotated[int, Between(1, 1024)]
    width: Annotated[int, Between(8, 65536)]
    canvas: tuple[int, int]  # (height, width) that frames are brought to
    threshold_logit: float = 0.0
    resize: Resize = "pad"


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
        name, size = next(iter(spec.cameras.items()))
        canvas = common_size({name: size}, config.image_size)
        if min(canvas) < SMALLEST:
            raise UserError(
                f"The conv reward model needs frames of {SMALLEST}x{SMALLEST} pixels or more, and the camera {name!r} "
                f"gives {canvas[0]}x{canvas[1]}: set reward.image_size, to which they are enlarged."
            )
        return cls(ClipClassifierConfig(config.clip_length, config.width, canvas, resize=config.resize))

    def with_threshold(self, threshold: float) -> ClipClassifier:
        """The same weights, judged by another threshold, a finite logit."""
        threshold = finite_threshold(threshold)
        other = ClipClassifier(replace(self.config, threshold_logit=threshold))
        other.load_state_dict(self.state_dict())
        return other.to(next(self.parameters()).device)

    def logits(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        """(B,) logits of success."""
        frames = resized(clips_BLCHW.to(self.stem.weight.device), self.config.canvas, self.config.resize)
        x = frames.flatten(1, 2).float().div_(127.5).sub_(1.0)
        x = self.block1(self.stem(x))
        x = self.block2(self.down(x), self.film(self.text(instruction)))
        return self.head(F.silu(x).amax(dim=(2, 3))).squeeze(-1)

    @torch.no_grad()
    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        """(B,) logits of success, without gradients."""
        return self.logits(clips_BLCHW, instruction)

    def forward(self, batch: RewardBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Binary cross-entropy on balanced clips."""
        return verdict_loss(self.logits(batch.clips, batch.instruction), batch.label)

    def save_pretrained(self, folder: Path) -> None:
        save_module(folder, self, self.config)

    @classmethod
    def from_pretrained(cls, folder: Path) -> ClipClassifier:
        model = cls(load_config(folder, ClipClassifierConfig))
        load_module(folder, model)
        return model.eval()
