"""The robot's kinematics: where its proprioceptive state goes when it acts, and what moves in the picture with it.

That much of a dream is easy to know. It is learned first, in seconds, and the denoiser builds on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.data.clips import VideoBatch
from wmpo.data.normalizer import Normalizer
from wmpo.nn.layers import zero_init
from wmpo.world_models.codecs import shift_image

HIDDEN = 64
MOTION_SCALE = 10.0  # the motion has few weights and far to go: let it learn faster than the rest
MOTION_SAMPLES = 4  # one sample in so many is enough for them


class Kinematics(nn.Module):
    """Poses: the normalised state, P = S numbers; without a state the sum of all actions so far, P = D.

    A change of pose moves what belongs to the robot in the image of each camera, by a linear map. States and actions
    that come in or go out have the units of the data.
    """

    def __init__(self, state_dim: int, action_dim: int, cameras: Sequence[str]) -> None:
        super().__init__()
        self.state_dim, self.cameras = state_dim, tuple(cameras)
        self.pose_dim = state_dim or action_dim
        self.normalizer = Normalizer(action_dim, state_dim)
        self.step = nn.Sequential(
            nn.Linear(state_dim + action_dim, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.SiLU(),
            zero_init(nn.Linear(HIDDEN, state_dim)),
        ) if state_dim else None  # fmt: skip
        self.moves = zero_init(nn.Linear(self.pose_dim, len(self.cameras) * 2, bias=False))

    def travel(self, action: Tensor) -> Tensor:
        """(..., D): what actions, or sums of them, add to a pose without a state. A dimension of which no action is
        near 0 holds positions rather than movements, and adds nothing."""
        low, high = self.normalizer.limits
        return torch.where((low <= 0) & (high >= 0), action / self.normalizer.action_scale, 0.0)

    def pose(self, state: Tensor, travel: Tensor) -> Tensor:
        """(..., S) states and (..., D) sums of the actions so far -> (..., P)."""
        return self.normalizer.normalize_state(state) if self.state_dim else self.travel(travel)

    def state(self, pose: Tensor) -> Tensor:
        """(..., P) -> (..., S)."""
        return self.normalizer.unnormalize_state(pose) if self.state_dim else pose[..., :0]

    def poses(self, batch: VideoBatch) -> tuple[Tensor, Tensor]:
        """(B, P) at the episodes' first frames, (B, 1+K, P) now and after each action."""
        travel = batch.travel[:, None] + F.pad(batch.action.cumsum(1), (0, 0, 1, 0))  # (B, 1+K, D)
        return self.pose(batch.first_state, torch.zeros_like(batch.travel)), self.pose(batch.state, travel)

    def follow(self, pose_BP: Tensor, action_BKD: Tensor) -> Tensor:
        """(B, K, P): the pose after each action."""
        if self.step is None:
            return pose_BP[:, None] + self.travel(action_BKD).cumsum(1)
        poses = [pose_BP]
        for action_BD in self.normalizer.normalize_action(action_BKD).unbind(1):
            poses.append(poses[-1] + self.step(torch.cat([poses[-1], action_BD], dim=-1)))
        return torch.stack(poses[1:], dim=1)

    def motion(self, change_BKP: Tensor) -> Tensor:
        """(B, K, cameras, 2): how far right and down a change of pose moves the robot, in half image sizes."""
        return MOTION_SCALE * self.moves(change_BKP).unflatten(-1, (len(self.cameras), 2))

    def forward(self, batch: VideoBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared errors of poses, and of pictures made by moving others."""
        _, pose = self.poses(batch)
        error = (self.follow(pose[:, 0], batch.action) - pose[:, 1:]).square().mean()
        some = slice(0, max(1, len(pose) // MOTION_SAMPLES))
        motion = self.motion(pose[some, 1:] - pose[some, :1])
        errors = []
        for n, name in enumerate(self.cameras):
            context, first, future = batch.context[name][some], batch.anchor[name][some], batch.future[name][some]
            errors.append(unexplained(context, first, future, motion[..., n, :]))
        picture_error = torch.stack(errors).mean()
        loss = error + picture_error
        return loss, {"loss": loss.detach(), "pose_error": error.detach(), "picture_error": picture_error.detach()}


def unexplained(context: Tensor, first: Tensor, future: Tensor, motion: Tensor) -> Tensor:
    """The error of one camera's future, each pixel taken from the frame that fits best: last, first, or last and moved.

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
