"""The extension points. Anything that fits one of these plugs in; nothing needs to be subclassed or registered.

`wmpo.contracts` checks an implementation and says in plain words what it gets wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from wmpo.types import Decision, EnvSpec, Observation, Outcome


class Env(Protocol):
    """A batch of episodes that advance one action chunk at a time: a simulator, a robot, or a dream."""

    spec: EnvSpec

    def reset(self, initial_states: Sequence[int]) -> Observation:
        """Begin B = len(initial_states) episodes. Equal initial-state numbers give equal initial states."""
        ...

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        """Execute one chunk in the A given rows of the batch; the other rows stand still and cost nothing."""
        ...

    def close(self) -> None: ...


class Policy(Protocol):
    """Chooses action chunks, and can say again how likely a choice was."""

    chunk: int  # K

    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        """Sample a chunk; temperature 0 is the greedy choice. Runs without gradients."""
        ...

    def log_prob(self, observation: Observation, trace: Tensor, *, temperature: float) -> Tensor:
        """(B, K, U) log-probabilities of `trace`, differentiable; equal to those at sampling to float tolerance."""
        ...


class WorldModel(Protocol):
    """Continues a video, given actions. Memory and latents are opaque to the caller and stay on the device."""

    def begin(self, first: Observation) -> Any:
        """The memory of B videos that begin with `first`."""
        ...

    def imagine(self, memory: Any, chunk_BKD: Tensor, generator: torch.Generator) -> tuple[Any, Any]:
        """(new memory, latents of the K next frames)."""
        ...

    def decode(self, latents: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Frames of latents: camera -> (B, K, C, H, W) uint8, and states (B, K, S)."""
        ...

    def select(self, memory: Any, rows: Sequence[int]) -> Any:
        """The memory of some of the videos."""
        ...


class RewardModel(Protocol):
    """Says how likely a clip shows the accomplished task."""

    clip_length: int  # L
    threshold: float  # a clip that scores above it counts as success

    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        """(B,) probabilities in [0, 1] for uint8 clips of the first camera."""
        ...
