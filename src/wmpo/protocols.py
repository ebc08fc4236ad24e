"""The extension points. Anything that fits one of these plugs in; nothing needs to be subclassed or registered.

`wmpo.contracts` checks an implementation and says in plain words what it gets wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

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


class Trainable(Protocol):
    """What training uses of a network: a `torch.nn.Module` has all of it but the loss."""

    def __call__(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """(scalar loss, {metric: scalar}), means over the batch; random numbers are drawn from `generator`."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object: ...

    def to(self, device: torch.device) -> Self: ...

    def train(self) -> Self: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool) -> Self: ...


class Policy(Trainable, Protocol):
    """Chooses action chunks, and can say again how likely a choice was. As a `Trainable` it imitates."""

    chunk: int  # K

    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        """Sample a chunk; temperature 0 is the greedy choice. Runs without gradients."""
        ...

    def log_prob(self, observation: Observation, trace: Tensor, *, temperature: float) -> Tensor:
        """(B, K, U) log-probabilities of `trace`, differentiable; equal to those at sampling to float tolerance."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write all that `from_pretrained(folder)` of its class needs to make an equal policy."""
        ...


@runtime_checkable
class ChoosesTokens(Protocol):
    """Optional, of a policy: each number of an action is one of some tokens, so that a stored action says which."""

    bins: int
    """Tokens per number; 0 where this policy has another head."""

    def decode_actions(self, tokens_BKD: Tensor) -> Tensor:
        """The actions (B, K, D) of tokens."""
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
    """Says whether a clip shows the accomplished task."""

    clip_length: int  # L
    threshold: float  # a logit; a clip that scores above it counts as success

    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        """(B,) float32 logits of success for uint8 clips of the first camera."""
        ...
