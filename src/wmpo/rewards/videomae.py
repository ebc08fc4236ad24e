"""The paper's success classifier: VideoMAE with a linear head, from transformers, at any size.

Departures from the paper's code, which are repairs: one logit, in training, in choosing the threshold and in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.config import Between
from wmpo.errors import UserError, optional
from wmpo.losses.verdicts import finite_threshold, verdict_loss
from wmpo.rewards.settings import VideoMAESettings
from wmpo.training.checkpoint import load_config, load_module, save_module
from wmpo.types import EnvSpec

if TYPE_CHECKING:
    from wmpo.data.clips import RewardBatch

# Mean and standard deviation of ImageNet's red, green and blue in [0, 1]: what VideoMAE was pretrained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class VideoMAEConfig:
    """What a saved classifier needs to be built again; the defaults are VideoMAE-base."""

    clip_length: Annotated[int, Between(1, 1024)] = 8
    """L: frames per clip, a multiple of `tubelet`."""
    image_size: Annotated[int, Between(1, 4096)] = 224
    """Frames are resized to this height and width, in pixels."""
    patch: Annotated[int, Between(1, 4096)] = 16
    """Height and width of a patch, in pixels."""
    tubelet: Annotated[int, Between(1, 1024)] = 2
    """Frames that share one token."""
    width: Annotated[int, Between(32, 65536)] = 768
    """Hidden size; the MLPs are four times as wide."""
    depth: Annotated[int, Between(1, 1000)] = 12
    """Layers."""
    heads: Annotated[int, Between(1, 1024)] = 12
    """Attention heads."""
    threshold_logit: float = 0.0
    """A clip that scores above it counts as success."""


class VideoMAEClassifier(nn.Module):
    """Fulfils `wmpo.protocols.RewardModel`; `forward` is the loss. It sees the clip only, not the instruction."""

    def __init__(self, config: VideoMAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VideoMAEConfig()
        if config.clip_length % config.tubelet:
            raise UserError(f"VideoMAE needs clips of a multiple of {config.tubelet} frames, not {config.clip_length}.")
        if config.image_size % config.patch or config.width % config.heads:
            raise UserError(
                f"VideoMAE needs an image size ({config.image_size}) that divides by its patch ({config.patch}) and a "
                f"width ({config.width}) that divides by its heads ({config.heads})."
            )
        self.clip_length, self.threshold = config.clip_length, config.threshold_logit
        transformers = _transformers()
        self.network: nn.Module = transformers.VideoMAEForVideoClassification(
            transformers.VideoMAEConfig(
                image_size=config.image_size,
                patch_size=config.patch,
                num_frames=config.clip_length,
                tubelet_size=config.tubelet,
                hidden_size=config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                intermediate_size=4 * config.width,
                num_labels=1,
            )
        )
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None], persistent=False)

    @classmethod
    def build(cls, config: VideoMAESettings, spec: EnvSpec) -> VideoMAEClassifier:
        """One from scratch, at the first camera's size unless the settings name another; or a pretrained one."""
        if config.pretrained:
            return cls.from_transformers(Path(config.pretrained), config.clip_length)
        size = config.image_size or max(next(iter(spec.cameras.values())))
        patch = 16 if size >= 128 else 8
        return cls(
            VideoMAEConfig(
                clip_length=config.clip_length,
                image_size=-(-size // patch) * patch,
                patch=patch,
                width=config.width,
                depth=config.depth,
                heads=config.heads or max(1, config.width // 32),
            )
        )

    @classmethod
    def from_transformers(cls, folder: Path, clip_length: int = 8) -> VideoMAEClassifier:
        """Begin from a pretrained VideoMAE in a local folder (config.json and .safetensors), with a fresh head.

        Its positions are fixed sines, so it may be pretrained on clips of another length.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise UserError(f"{folder} is not a VideoMAE folder: it needs config.json and .safetensors weights.")
        transformers = _transformers()
        try:
            network = transformers.VideoMAEForVideoClassification.from_pretrained(
                str(folder),
                num_frames=clip_length,
                num_labels=1,
                ignore_mismatched_sizes=True,  # the head of another task
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
            )
        except Exception as error:  # transformers, safetensors and json each raise their own kinds
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{folder} can't be loaded as a VideoMAE: {reason}") from error
        found = network.config
        own = cls(
            VideoMAEConfig(
                clip_length=clip_length,
                image_size=_side(found.image_size),
                patch=_side(found.patch_size),
                tubelet=found.tubelet_size,
                width=found.hidden_size,
                depth=found.num_hidden_layers,
                heads=found.num_attention_heads,
            )
        )
        try:
            own.network.load_state_dict(network.state_dict())
        except RuntimeError as error:
            raise UserError(
                f"{folder} holds a VideoMAE of another make: {str(error).splitlines()[-1].strip()}"
            ) from error
        return own

    def with_threshold(self, threshold: float) -> VideoMAEClassifier:
        """The same weights, judged by another threshold, a finite logit."""
        threshold = finite_threshold(threshold)
        other = VideoMAEClassifier(replace(self.config, threshold_logit=threshold))
        other.load_state_dict(self.state_dict())
        return other.to(self.mean.device).train(self.training)

    def logits(self, clips_BLCHW: Tensor, instruction: tuple[str, ...] = ()) -> Tensor:
        """(B,) logits of success, for uint8 clips of any height and width."""
        size = self.config.image_size
        frames = clips_BLCHW.flatten(0, 1).float()
        if frames.shape[-2:] != (size, size):
            frames = F.interpolate(frames, size=(size, size), mode="bilinear", antialias=True)
        pixels_BLCHW = ((frames - self.mean) / self.std).unflatten(0, clips_BLCHW.shape[:2])
        return self.network(pixel_values=pixels_BLCHW).logits.squeeze(-1)

    @torch.no_grad()
    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...] = ()) -> Tensor:
        """(B,) float32 logits of success, without gradients."""
        return self.logits(clips_BLCHW, instruction).float()

    def forward(self, batch: RewardBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Binary cross-entropy on balanced clips."""
        return verdict_loss(self.logits(batch.clips), batch.label)

    def save_pretrained(self, folder: Path) -> None:
        save_module(folder, self, self.config)

    @classmethod
    def from_pretrained(cls, folder: Path) -> VideoMAEClassifier:
        """One that `save_pretrained` wrote; for weights from transformers see `from_transformers`."""
        model = cls(load_config(folder, VideoMAEConfig))
        load_module(folder, model)
        return model.eval()


def _transformers() -> ModuleType:
    return optional("transformers", "The VideoMAE reward model needs")


def _side(size: int | Sequence[int]) -> int:
    """Of a number, or of equal height and width."""
    if isinstance(size, int):
        return size
    height, width = size
    if height != width:
        raise UserError(f"this VideoMAE sees {height}x{width} images; wmpo takes square ones.")
    return int(height)
