"""The data that flows through wmpo. One legend of shape letters serves the whole project:

B  batch (episodes that advance together)   A  the rows of a batch that are still active
T  time, in frames                          K  action chunk, in frames
D  action dimensions                        S  proprioceptive state dimensions (0 without one)
C H W  image channels, height, width        G  group of rollouts from one initial state
L  frames of a reward clip                  U  independently sampled units of one action step
M  action chunks of an episode              N  episodes
c h w  channels, height, width of a latent  (lower case: after the frame codec)

Images are uint8 in [0, 255], RGB: channel-first in tensors, channel-last in stored episodes.
Actions are float32, in the robot's units. Times count frames: frame 0 is the initial frame, action t leads from
frame t to frame t+1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from wmpo.batches import to_device


@dataclass(frozen=True)
class EnvSpec:
    """What an environment shows and accepts."""

    cameras: Mapping[str, tuple[int, int]]
    """Camera name -> (height, width) in pixels."""
    state_dim: int
    """S, 0 when the policy sees no proprioceptive state."""
    action_dim: int
    """D. Which of them make sense, data says (`wmpo.data.normalizer`)."""
    horizon: int
    """Longest episode, in actions."""
    fps: int
    """Control frequency in Hz; one frame per action."""
    max_batch: int = 128
    """Episodes that may be under way at once; 1 for a robot."""
    action_low: float | tuple[float, ...] | None = field(default=None, compare=False, repr=False)
    """The least action that is accepted, one number or D; None: -1. No store keeps it: `check_env` tries actions."""
    action_high: float | tuple[float, ...] | None = field(default=None, compare=False, repr=False)
    """The greatest likewise; None: 1."""

    def action_bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest action, (D,) each."""
        low, high = (
            torch.as_tensor(default if bound is None else bound, dtype=torch.float32).expand(self.action_dim)
            for bound, default in ((self.action_low, -1.0), (self.action_high, 1.0))
        )
        return low, high


@dataclass(frozen=True)
class Observation:
    """What the policy sees: one frame of B episodes."""

    images: Mapping[str, Tensor]  # camera -> (B, C, H, W) uint8
    state: Tensor  # (B, S) float32
    instruction: tuple[str, ...]  # B sentences

    def __len__(self) -> int:
        return len(self.instruction)

    def __getitem__(self, rows: Sequence[int]) -> Observation:
        index = torch.as_tensor(rows, dtype=torch.long)
        return Observation(
            {name: image[index.to(image.device)] for name, image in self.images.items()},
            self.state[index.to(self.state.device)],
            tuple(self.instruction[row] for row in index.tolist()),
        )

    def to(self, device: torch.device | str) -> Observation:
        return to_device(self, device)


@dataclass(frozen=True)
class Outcome:
    """What one action chunk led to, for the A rows that took it."""

    images: Mapping[str, Tensor]  # camera -> (A, K, C, H, W) uint8, the frames after each action
    state: Tensor  # (A, K, S) float32
    success: Tensor  # (A, K) bool, True on the frames at which the task counts as accomplished
    done: Tensor  # (A,) bool, the episode needs no further chunk

    def first(self, count: int) -> Outcome:
        """Without what comes after so many frames."""
        images = {name: image[:, :count] for name, image in self.images.items()}
        return Outcome(images, self.state[:, :count], self.success[:, :count], self.done)

    def last(self, instruction: tuple[str, ...]) -> Observation:
        """The last frame of the chunk, as the policy sees it next."""
        images = {name: image[:, -1] for name, image in self.images.items()}
        return Observation(images, self.state[:, -1], instruction)


@dataclass(frozen=True)
class Decision:
    """What a policy chose for B observations, with all that is needed to ask again how likely it was."""

    chunk: Tensor  # (B, K, D) float32
    trace: Tensor  # (B, ...) what `Policy.log_prob` needs, e.g. the sampled action tokens (B, K, D)
    log_prob: Tensor  # (B, K, U) float32


@dataclass
class Episode:
    """One whole episode of T actions and T+1 frames, on the CPU."""

    images: dict[str, np.ndarray]  # camera -> (T+1, H, W, 3) uint8
    state: np.ndarray  # (T+1, S) float32
    actions: np.ndarray  # (T, D) float32
    success: np.ndarray  # (T+1,) bool, True on frames at which the task counts as accomplished
    instruction: str
    initial_state: int
    """Identifies the initial state: an equal number means an equal initial state."""
    task: str
    source: str
    """Who acted: "expert", or the name of a policy."""
    meta: dict[str, str] = field(default_factory=dict)
    """Facts worth keeping, e.g. which renderer drew the frames."""
    labels: np.ndarray | None = None
    """(T, D) float32, what an imitator should do at each frame; None: the actions themselves."""

    @property
    def length(self) -> int:
        """T, the number of actions."""
        return len(self.actions)

    def first(self, actions: int) -> Episode:
        """Its first so many actions; itself where it has no more."""
        if self.length <= actions:
            return self
        return replace(
            self,
            images={name: frames[: actions + 1] for name, frames in self.images.items()},
            state=self.state[: actions + 1],
            actions=self.actions[:actions],
            success=self.success[: actions + 1],
            labels=None if self.labels is None else self.labels[:actions],
        )

    @property
    def succeeded(self) -> bool:
        return bool(self.success.any())

    @property
    def finish_step(self) -> int:
        """The first frame at which the task counts as accomplished; T where it never does."""
        return int(self.success.argmax()) if self.succeeded else self.length
