"""Frame codecs: images <-> the latents in which the denoiser works. `encode` and `decode` treat frames one by one."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Codec(Protocol):
    """Both sides of an image must be multiples of `downsample`."""

    latent_channels: int
    downsample: int
    """How many pixels a position of the latent stands for, in each direction."""
    pixels_per_latent: int
    """How many pixels a position of the latent keeps apart: its channel c describes pixel c modulo this number. 1 where
    all channels describe the position as a whole."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, c, h, w) float32 of about unit spread."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, C, H, W) uint8."""
        ...

    def translate(self, latents: Tensor, motion: Tensor) -> Tensor:
        """(B, c, h, w), (B, N, 2) -> (B, N, c, h, w): latents of the images moved right and down, see `shift_image`."""
        ...


def shift_image(images_BCHW: Tensor, motion_BN2: Tensor) -> Tensor:
    """(B, N, C, H, W): each image moved right and down in N ways, in half image sizes; what comes in at the edge
    repeats it."""
    B, C, H, W = images_BCHW.shape
    N = motion_BN2.shape[1]
    theta = torch.eye(2, device=images_BCHW.device).expand(B * N, 2, 2)
    theta = torch.cat([theta, -motion_BN2.reshape(B * N, 2, 1)], dim=-1)
    grid = F.affine_grid(theta, [B * N, 1, H, W], align_corners=False)
    copies = images_BCHW[:, None].expand(-1, N, -1, -1, -1).flatten(0, 1)
    return F.grid_sample(copies, grid, padding_mode="border", align_corners=False).view(B, N, C, H, W)


class PixelCodec(nn.Module):
    """Pixels, rearranged: each patch of `patch` x `patch` pixels becomes one position with 3*patch^2 channels."""

    def __init__(self, patch: int = 4) -> None:
        super().__init__()
        self.patch = self.downsample = patch
        self.pixels_per_latent, self.latent_channels = patch**2, 3 * patch**2

    def encode(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images.float().div_(127.5).sub_(1.0), self.patch)

    def decode(self, latents: Tensor) -> Tensor:
        pixels = F.pixel_shuffle(latents, self.patch)
        return pixels.add(1.0).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)

    def translate(self, latents: Tensor, motion: Tensor) -> Tensor:
        return F.pixel_unshuffle(shift_image(F.pixel_shuffle(latents, self.patch), motion), self.patch)
