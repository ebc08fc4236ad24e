"""A convolutional denoiser for small machines: one U-Net pass over the K stacked frames.

All K frames of the chunk travel together as channels; each frame owns a slice of every level's channels,
and that slice is modulated by the frame's own action and the diffusion time (frame-level action control).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.nn.layers import ResidualBlock, zero_init


def time_embedding(t_B: Tensor, width: int) -> Tensor:
    """(B,) in [0, 1] -> (B, width) sines and cosines."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000), width // 2, device=t_B.device))
    angles = t_B[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class FrameFilm(nn.Module):
    """(B, K, width) -> scale and shift of `channels` channels, where frame k owns the k-th of K slices.

    Slices are equal where K divides the channels, else they differ by one; where there are more frames than channels,
    neighbouring frames add up in the channel that they have in common.
    """

    slots: Tensor | None

    def __init__(self, width: int, channels: int, chunk: int) -> None:
        super().__init__()
        per_frame = -(-channels // chunk)
        self.linear = zero_init(nn.Linear(width, 2 * per_frame))
        slots = None
        if channels % chunk:
            slots = torch.zeros(chunk, per_frame, channels)  # 1 where this number of the frame goes to this channel
            for k in range(chunk):
                first, after = k * channels // chunk, (k + 1) * channels // chunk
                for number, channel in enumerate(range(first, max(after, first + 1))):
                    slots[k, number, channel] = 1
            slots = slots.flatten(0, 1)
        self.register_buffer("slots", slots, persistent=False)

    def forward(self, embedding_BKE: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = (part.flatten(1) for part in self.linear(embedding_BKE).chunk(2, dim=-1))
        return (scale, shift) if self.slots is None else (scale @ self.slots, shift @ self.slots)


class UNet(nn.Module):
    """A fine level of `width` channels that keeps detail, a coarse one of 4 * `width` that does the thinking.

    `depth` residual blocks at the coarse level, where a convolution costs as much as one at the fine level but sees
    twice as far and holds four times as much.
    """

    def __init__(
        self,
        *,
        latent: tuple[int, int, int],  # (c, h, w)
        context: int,
        chunk: int,
        action_dim: int,
        width: int = 32,
        depth: int = 4,
        anchor: bool = True,
        action_conditioning: Literal["frame", "chunk"] = "frame",
        channels_in: int = 0,  # per frame, where more than the noisy latent comes in
        channels_out: int = 0,  # per frame, where more than a latent is wanted
    ) -> None:
        super().__init__()
        channels, height, breadth = latent
        self.per_frame = action_conditioning == "frame"
        self.anchor = anchor
        self.embedding_width = 128
        action_features = action_dim if self.per_frame else chunk * action_dim
        self.embed = nn.Sequential(
            nn.Linear(action_features + 2 * self.embedding_width, self.embedding_width),
            nn.SiLU(),
            nn.Linear(self.embedding_width, self.embedding_width),
            nn.SiLU(),
        )
        frames_seen = context + int(anchor)
        coarse = 4 * width
        self.look_back = nn.Conv2d(frames_seen * channels, width, 3, padding=1)
        self.noisy_in = nn.Conv2d(chunk * (channels_in or channels), width, 1)
        self.position = nn.Parameter(torch.zeros(width, height, breadth))
        self.shrink = nn.Conv2d(width, coarse, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList([ResidualBlock(coarse, coarse) for _ in range(depth)])
        self.films = nn.ModuleList([FrameFilm(self.embedding_width, coarse, chunk) for _ in range(depth)])
        self.grow = nn.Conv2d(coarse, 4 * width, 1)  # then each coarse position becomes 2 x 2 fine ones
        self.merge = ResidualBlock(2 * width, 2 * width)
        self.merge_film = FrameFilm(self.embedding_width, 2 * width, chunk)
        self.norm = nn.GroupNorm(8, 2 * width)
        self.out = zero_init(nn.Conv2d(2 * width, chunk * (channels_out or channels), 1))

    def remember(self, context_Bcchw: Tensor, anchor_Bchw: Tensor | None, context_t_B: Tensor) -> list[Tensor]:
        """What is kept of the past, however often a chunk is denoised: its features, and the time of its noise.
        context_t in [0, 1]: 0 is noise, 1 is data."""
        seen = context_Bcchw.flatten(1, 2)
        if self.anchor:
            assert anchor_Bchw is not None
            seen = torch.cat([seen, anchor_Bchw], dim=1)
        return [self.look_back(seen) + self.position, time_embedding(context_t_B, self.embedding_width)]

    def forward(self, noisy_BKchw: Tensor, t_B: Tensor, past: Sequence[Tensor], action_BKD: Tensor) -> Tensor:
        """(B, K, channels_out, h, w): the raw output for the K frames. t in [0, 1]: 0 is noise, 1 is data."""
        B, K = noisy_BKchw.shape[:2]
        features, context_time = past
        times = torch.cat([time_embedding(t_B, self.embedding_width), context_time], dim=-1)
        times = times[:, None].expand(B, K, -1)
        actions = action_BKD if self.per_frame else action_BKD.flatten(1)[:, None].expand(B, K, -1)
        embedding_BKE = self.embed(torch.cat([actions, times], dim=-1))

        fine = features + self.noisy_in(noisy_BKchw.flatten(1, 2))
        x = self.shrink(F.silu(fine))
        for block, film in zip(self.blocks, self.films, strict=True):
            x = block(x, film(embedding_BKE))
        x = torch.cat([fine, F.pixel_shuffle(self.grow(x), 2)], dim=1)
        x = self.merge(x, self.merge_film(embedding_BKE))
        return self.out(F.silu(self.norm(x))).unflatten(1, (K, -1))
