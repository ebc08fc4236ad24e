"""Convolutional pieces that the policy, the denoiser and the success classifier share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """A layer whose output is 0 at first, so that the block around it begins as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def modulate(x_BCHW: Tensor, film: tuple[Tensor, Tensor]) -> Tensor:
    """Scale and shift each channel; `film` is (scale, shift), (B, C) each."""
    return x_BCHW * (1 + film[0][:, :, None, None]) + film[1][:, :, None, None]


class ResidualBlock(nn.Module):
    """norm, modulate, SiLU, conv, norm, SiLU, conv, plus the input. Modulation is FiLM: scale and shift per channel."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels_out)
        self.conv2 = zero_init(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)
        self.act = nn.SiLU()

    def forward(self, x_BCHW: Tensor, film: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """`film`: (scale, shift), each (B, channels_out), applied after the second norm."""
        h = self.norm2(self.conv1(self.act(self.norm1(x_BCHW))))
        if film is not None:
            h = modulate(h, film)
        return self.skip(x_BCHW) + self.conv2(self.act(h))


class Film(nn.Module):
    """(B, width) -> scale and shift of `channels` channels; both 0 at first."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = zero_init(nn.Linear(width, 2 * channels))

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.linear(embedding).chunk(2, dim=-1)
        return scale, shift


Resize = Literal["pad", "stretch"]


def resized(image: Tensor, size: tuple[int, int], how: Resize) -> Tensor:
    """(..., C, H, W) uint8 to (..., C, *size): float32 in [0, 255], or the image itself where it has that size.

    pad: as large as fits in its own shape, in the middle, black around; stretch: to both sides.
    """
    height, width = image.shape[-2:]
    if (height, width) == size:
        return image
    scale = min(size[0] / height, size[1] / width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale))) if how == "pad" else size
    flat = image.flatten(0, -4) if image.ndim > 3 else image[None]
    flat = F.interpolate(flat.float(), size=inner, mode="bilinear", antialias=True)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    flat = F.pad(flat, (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top))
    return flat.reshape(*image.shape[:-2], *size)


def stack_cameras(
    images: Mapping[str, Tensor], cameras: tuple[str, ...], size: tuple[int, int], how: Resize = "pad"
) -> Tensor:
    """camera -> (..., C, H, W) uint8 becomes (..., N*C, *size) float32 in [-1, 1]."""
    parts = [resized(images[name], size, how) for name in cameras]
    return torch.cat(parts, dim=-3).float().div_(127.5).sub_(1.0)


def common_size(cameras: Mapping[str, tuple[int, int]], side: int) -> tuple[int, int]:
    """What pictures are brought to: (side, side), or with 0 the greatest height and the greatest width of them."""
    if side:
        return side, side
    return max(height for height, _ in cameras.values()), max(width for _, width in cameras.values())
