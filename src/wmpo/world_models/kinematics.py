"""The robot's own body: where its proprioceptive state goes when it is told what to do, and what moves in the picture
when it does.

That much of a dream is easy to know. It is learned first, in seconds, and the denoiser builds on it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.nn.layers import zero_init
from wmpo.world_models.codecs import shift_image

HIDDEN = 64
MOTION_SCALE = 10.0  # the motion has few weights and far to go: let it learn faster than the rest
MOTION_SHARE = 4  # one sample in four is enough for them


class Kinematics(nn.Module):
    """Poses: the state of S numbers, each scaled to unit spread. Without a state, the sum of all actions so far.

    A change of pose moves what belongs to the robot in the image of each camera, by a linear map.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, state_dim: int, action_dim: int, cameras: tuple[str, ...]) -> None:
        super().__init__()
        self.state_dim, self.cameras = state_dim, cameras
        self.pose_dim = state_dim or action_dim
        self.register_buffer("mean", torch.zeros(state_dim))
        self.register_buffer("std", torch.ones(state_dim))
        self.step = nn.Sequential(
            nn.Linear(state_dim + action_dim, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.SiLU(),
            zero_init(nn.Linear(HIDDEN, state_dim)),
        ) if state_dim else None  # fmt: skip
        self.moves = zero_init(nn.Linear(self.pose_dim, len(cameras) * 2, bias=False))

    def set_statistics(self, state_mean: Tensor, state_std: Tensor) -> None:
        self.mean.copy_(state_mean)
        self.std.copy_(state_std.clamp(min=1e-3))

    def pose(self, state: Tensor, travel: Tensor) -> Tensor:
        """(..., S) states and (..., D) sums of the actions so far -> (..., P)."""
        return (state - self.mean) / self.std if self.state_dim else travel

    def state(self, pose: Tensor) -> Tensor:
        """(..., P) -> (..., S) in the units of the data."""
        return pose * self.std + self.mean if self.state_dim else pose[..., :0]

    def poses(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Of a `wmpo.data.clips.VideoBatch`: (B, P) at the first frame, (B, 1+K, P) now and later."""
        travel = batch.travel[:, None] + F.pad(batch.action.cumsum(1), (0, 0, 1, 0))  # (B, 1+K, D)
        return self.pose(batch.first_state, torch.zeros_like(batch.travel)), self.pose(batch.state, travel)

    def follow(self, pose_BP: Tensor, action_BKD: Tensor) -> Tensor:
        """(B, K, P): the pose after each action."""
        if self.step is None:
            return pose_BP[:, None] + action_BKD.cumsum(1)
        poses = [pose_BP]
        for action_BD in action_BKD.unbind(1):
            poses.append(poses[-1] + self.step(torch.cat([poses[-1], action_BD], dim=-1)))
        return torch.stack(poses[1:], dim=1)

    def motion(self, change_BKP: Tensor) -> Tensor:
        """(B, K, cameras, 2): how far right and down a change of pose moves the robot, in half image sizes."""
        return MOTION_SCALE * self.moves(change_BKP).unflatten(-1, (len(self.cameras), 2))

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared errors of poses, and of pictures made by moving others. `batch`: `wmpo.data.clips.VideoBatch`."""
        _, pose = self.poses(batch)
        error = (self.follow(pose[:, 0], batch.action) - pose[:, 1:]).square().mean()
        some = slice(0, max(1, len(pose) // MOTION_SHARE))
        motion = self.motion(pose[some, 1:] - pose[some, :1])
        apart = []
        for n, name in enumerate(self.cameras):
            context, first, future = batch.context[name][some], batch.anchor[name][some], batch.future[name][some]
            apart.append(unexplained(context, first, future, motion[..., n, :]))
        picture_error = torch.stack(apart).mean()
        loss = error + picture_error
        return loss, {"loss": loss.detach(), "pose_error": error.detach(), "picture_error": picture_error.detach()}


def unexplained(context: Tensor, first: Tensor, future: Tensor, motion: Tensor) -> Tensor:
    """What is left of one camera's future when each place stood still, or came back to light, or moved along.

    Blurred pictures are compared too, since they still overlap where the guess is far off.
    Shapes: (B, c, C, H, W), (B, C, H, W), (B, K, C, H, W) uint8 and (B, K, 2).
    """
    losses = []
    for blur in (5, 1):
        last, anchor, true = (
            F.avg_pool2d(frames.float().div(127.5).flatten(0, -4), blur, 1, blur // 2).view(frames.shape)
            for frames in (context[:, -1], first, future)
        )
        guesses = (last[:, None], anchor[:, None], shift_image(last, motion))
        losses.append(torch.stack([(guess - true).square().mean(2) for guess in guesses]).amin(0).mean())
    return losses[0] + losses[1]
