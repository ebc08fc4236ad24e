"""Cameras of any sizes: brought to one size for the networks, and back to each camera's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # (height, width) in pixels


class CommonSize:
    """All cameras in frames of one size that the networks can halve as often as they need.

    With `resize` each camera is scaled to that size; without it each keeps its pixels. What is then missing on the
    right and at the bottom repeats the edge, and is cut off again on the way back.
    """

    def __init__(self, cameras: Mapping[str, Size], resize: Size | None, multiple: int) -> None:
        """`multiple`: of which both sides of the common size must be one."""
        self.own = dict(cameras)
        self.inner = {name: resize or size for name, size in self.own.items()}  # before the edge is repeated
        height, width = (max(size[axis] for size in self.inner.values()) for axis in (0, 1))
        self.size: Size = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)

    def enter(self, name: str, frames: Tensor) -> Tensor:
        """(..., C, H, W) uint8 of one camera in the common size."""
        frames = _scaled(frames, self.inner[name])
        for axis, most in zip((-2, -1), self.size, strict=True):
            if frames.shape[axis] != most:
                index = torch.arange(most, device=frames.device).clamp(max=frames.shape[axis] - 1)
                frames = frames.index_select(axis, index)
        return frames

    def leave(self, name: str, frames: Tensor) -> Tensor:
        """(..., C, H, W) uint8 in the camera's own size."""
        height, width = self.inner[name]
        return _scaled(frames[..., :height, :width], self.own[name])

    def scale_motion(self, name: str, motion: Tensor) -> Tensor:
        """(..., 2) to the right and down, from halves of the camera's own image to halves of the common one."""
        (height, width), (most_high, most_wide) = self.inner[name], self.size
        if (height, width) == self.size:
            return motion
        return motion * torch.tensor([width / most_wide, height / most_high], device=motion.device)


def _scaled(frames: Tensor, size: Size) -> Tensor:
    """(..., C, H, W) uint8, resampled where it is not of this size yet."""
    if frames.shape[-2:] == size:
        return frames
    pixels = frames.reshape(-1, *frames.shape[-3:]).float()
    pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    return pixels.round_().clamp_(0, 255).to(torch.uint8).unflatten(0, frames.shape[:-3])
