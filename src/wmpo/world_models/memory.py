"""What the world model remembers of the videos that it goes on with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """What the model knows of B videos; stays on the device between chunks."""

    context: Tensor  # (B, c, channels, h, w) latents of the last frames
    anchor: Tensor  # (B, channels, h, w) latent of the first frame
    pose: Tensor  # (B, P) of the robot, see `Kinematics`
    first_pose: Tensor  # (B, P)

    def rows(self, index: Tensor | slice) -> Memory:
        return Memory(self.context[index], self.anchor[index], self.pose[index], self.first_pose[index])

    def then(self, latents_BKchw: Tensor, pose_BP: Tensor) -> Memory:
        """The memory after K more frames, at the end of which the robot has this pose."""
        context = torch.cat([self.context, latents_BKchw], dim=1)[:, -self.context.shape[1] :]
        return Memory(context, self.anchor, pose_BP, self.first_pose)

    def beside(self, other: Memory) -> Memory:
        """The memory of these videos and of others."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Memory(*(torch.cat(pair) for pair in pairs))
