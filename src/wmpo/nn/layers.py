"""Convolutional pieces that the policy, the denoiser and the success classifier share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """A layer that begins by saying nothing, so that the block around it begins as the identity."""
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


def stack_cameras(images: dict[str, Tensor], cameras: tuple[str, ...]) -> Tensor:
    """camera -> (..., C, H, W) uint8 becomes (..., N*C, H, W) float32 in [-1, 1]."""
    return torch.cat([images[name] for name in cameras], dim=-3).float().div_(127.5).sub_(1.0)
