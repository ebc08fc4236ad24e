"""The networks of the world model as its settings ask for them: the frame codec and the denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict

import torch
from torch import Tensor, nn

from wmpo.config import DIMENSIONS, STATE_DIMENSIONS, Between
from wmpo.data.clips import VideoBatch
from wmpo.world_models.autoencoder import Autoencoder, DiffusersCodec
from wmpo.world_models.cameras import CommonSize
from wmpo.world_models.codecs import PixelCodec
from wmpo.world_models.settings import VideoDiffusionSettings
from wmpo.world_models.transformer import SpaceTimeTransformer
from wmpo.world_models.unet import UNet


@dataclass(frozen=True)
class VideoDiffusionConfig:
    """What a saved world model needs to be built again."""

    settings: VideoDiffusionSettings
    cameras: Mapping[str, tuple[int, int]]  # (height, width) of each, in pixels
    chunk: Annotated[int, Between(1, 1024)]
    action_dim: Annotated[int, DIMENSIONS]
    state_dim: Annotated[int, STATE_DIMENSIONS]


class CodecTraining(nn.Module):
    """Trains the autoencoder on one frame of each camera and clip."""

    def __init__(self, codec: Autoencoder, cameras: CommonSize) -> None:
        super().__init__()
        self.codec, self.cameras = codec, cameras

    def forward(self, batch: VideoBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        frames = [self.cameras.enter(name, frames[:, 0]) for name, frames in batch.future.items()]
        return self.codec(torch.cat(frames), generator)


def build_codec(settings: VideoDiffusionSettings) -> PixelCodec | Autoencoder | DiffusersCodec:
    """The frame codec. Its weights, where it has any, don't change while the denoiser learns."""
    if settings.codec == "pixels":
        return PixelCodec()
    if settings.codec == "diffusers":
        return DiffusersCodec(settings.codec_path)
    downsample = settings.codec_downsample
    return Autoencoder(2 * downsample, downsample, settings.codec_width)


class DenoiserShape(TypedDict):
    """What both denoisers need to know."""

    latent: tuple[int, int, int]
    context: int
    chunk: int
    action_dim: int
    width: int
    depth: int
    anchor: bool
    action_conditioning: Literal["frame", "chunk"]


def build_denoiser(
    config: VideoDiffusionConfig, latent: tuple[int, int, int], mask_logits: int, pose_dim: int
) -> UNet | SpaceTimeTransformer:
    """`mask_logits`: channels per frame that weigh its sources, beside those that describe it."""
    settings = config.settings
    shape = DenoiserShape(
        latent=latent,
        context=settings.context,
        chunk=config.chunk,
        action_dim=config.action_dim + pose_dim + config.state_dim,  # the action, the change of pose, the pose
        width=settings.width,
        depth=settings.depth,
        anchor=settings.anchor,
        action_conditioning=settings.action_conditioning,
    )
    if settings.backbone == "transformer":
        return SpaceTimeTransformer(**shape, heads=settings.heads, checkpointing=settings.checkpointing)
    # It also sees how each frame would look if everything moved along with the robot.
    frames_in = 1 + (1 + int(settings.anchor) if mask_logits else 0)
    return UNet(**shape, channels_in=latent[0] * frames_in, channels_out=latent[0] + mask_logits)
