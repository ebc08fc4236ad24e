"""The extension points. Anything that fits one of these plugs in; nothing needs to be subclassed or registered.

`wmpo.contracts` checks an implementation and says in plain words what it gets wrong; `wmpo.families` finds it by name.
What a family needs beside these methods (`build`, `Settings`) stands in docs/own_env.md and its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from wmpo.config import FitConfig, PolicyConfig
from wmpo.data.latents import Encoder
from wmpo.types import Decision, EnvSpec, Episode, Observation, Outcome

if TYPE_CHECKING:
    from wmpo.data.normalizer import Normalizer

Metrics = dict[str, Tensor]
Memory = Any
"""What a world model knows of B videos; opaque to everybody else."""
Latents = Any
"""K imagined frames of B videos, before they are decoded; opaque likewise."""
State = Any
"""A saved episode of an environment; opaque likewise."""


class Env(Protocol):
    """A batch of episodes that advance one action chunk at a time: a simulator, a robot, or a dream."""

    spec: EnvSpec

    def reset(self, initial_states: Sequence[int]) -> Observation:
        """Begin B = len(initial_states) episodes. Equal numbers mean equal initial states."""
        ...

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        """Execute one chunk in the A given rows of the batch; the other rows stand still and cost nothing."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Demonstrates(Protocol):
    """An environment with a scripted expert."""

    def demonstrate(
        self, initial_states: Sequence[int], noise: float, seed: int, min_pace: float = 1.0
    ) -> Iterable[Episode]:
        """One episode per initial state, in their order, failures included; see `wmpo.config.DemonstrationConfig`."""
        ...


@runtime_checkable
class NamesTasks(Protocol):
    """An environment of several tasks."""

    tasks: Sequence[str]

    def task_of(self, initial_state: int) -> str:
        """The task of the episode that begins there, one of `tasks`."""
        ...


@runtime_checkable
class Restorable(Protocol):
    """An environment whose episodes can be saved and continued, bit for bit."""

    def get_state(self, rows: Sequence[int]) -> list[State]: ...

    def reset_to(self, states: Sequence[State]) -> Observation: ...


@runtime_checkable
class CountsEvents(Protocol):
    """An environment that counts what happens in an episode, for reports."""

    events: Sequence[Mapping[str, int]]  # per row: event -> how often so far


@runtime_checkable
class LimitsActions(Protocol):
    """An environment that may do less than it is asked for: a robot, whose commands are limited."""

    executed: Tensor  # (A, K, D) what was done in the last step


class Trainable(Protocol):
    """What the training loops ask of a network; every `torch.nn.Module` with such a `forward` has it."""

    def __call__(self, batch: Any, generator: torch.Generator | None = None) -> tuple[Tensor, Metrics]:
        """(scalar loss, metrics), means over the batch; random numbers come from `generator`."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object: ...

    def requires_grad_(self, requires_grad: bool = True) -> Self: ...

    def to(self, device: torch.device) -> Self: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...


class Policy(Trainable, Protocol):
    """Chooses action chunks, and can say again how likely a choice was. Its loss is on `data.clips.ImitationBatch`."""

    chunk: int  # K

    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        """Sample a chunk; temperature 0 is the greedy choice. Runs without gradients."""
        ...

    def log_prob(self, observation: Observation, trace: Tensor, *, temperature: float) -> Tensor:
        """(B, K, U) log-probabilities of `trace`, differentiable; equal to those at sampling to float tolerance."""
        ...

    def set_normalizer(self, normalizer: Normalizer) -> None:
        """Take over what actions and states mean in the data: keep a copy, which is saved with the weights."""
        ...

    def save_pretrained(self, folder: Path) -> None: ...


@runtime_checkable
class HasActionRange(Protocol):
    """Optional, of a policy: what it can do at all."""

    def action_range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest action that it can choose, (D,) each, in the units of the data."""
        ...


@runtime_checkable
class Widens(Protocol):
    """Optional, of a policy from a folder: its actions may go beyond what was demonstrated where it was trained."""

    def widen(self, action_ND: Tensor) -> None:
        """Let all of these be in its reach, in the units of the data."""
        ...


@runtime_checkable
class TakesSettings(Protocol):
    """Optional, of a policy from a folder: settings of the run that it is not built from."""

    def prepare(self, config: PolicyConfig) -> None: ...


@runtime_checkable
class ChoosesTokens(Protocol):
    """Optional, of a policy: each number of an action is one of some tokens, so that a stored action says which."""

    bins: int
    """Tokens per number; 0 where this policy has another head."""

    def decode_actions(self, tokens_BKD: Tensor) -> Tensor:
        """The actions (B, K, D) of tokens."""
        ...


@runtime_checkable
class HasUnits(Protocol):
    """Optional, of a network: large parts of it, of which ranks that share its weights gather one at a time."""

    def units(self) -> Sequence[nn.Module]:
        """Parts that share no weights, and whose weights are used only where they themselves are called."""
        ...


@dataclass(frozen=True)
class TrainingStage:
    """One supervised training of a world model, or of a part of it."""

    name: str
    module: Trainable
    """Its loss is on `data.clips.VideoBatch`; it learns where that has gradients."""
    fit: FitConfig
    encoder: Encoder | None = None
    """Where given, no frame is shown to `module`, but its latents of this encoder, float16: each frame of the data is
    encoded once (`data.latents`)."""
    chunks: int = 1
    """Clips go on for so many chunks: `future` and `action` have chunks x K rows."""
    begin: Callable[[], object] = bool
    """Called before it, when the stages before have ended: may set weights from theirs. By default nothing happens."""


class WorldModel(Protocol):
    """Continues a video, given actions. Memory and latents are opaque to the caller and stay on the device."""

    chunk: int  # K
    context: int  # frames of history that a batch of clips should hold

    def begin(self, first: Observation) -> Memory:
        """The memory of B videos that begin with `first`."""
        ...

    def imagine(self, memory: Memory, chunk_BKD: Tensor, generator: torch.Generator) -> tuple[Memory, Latents]:
        """(new memory, latents of the K next frames)."""
        ...

    def decode(self, latents: Latents) -> tuple[dict[str, Tensor], Tensor]:
        """Frames of latents: camera -> (B, K, C, H, W) uint8, and states (B, K, S)."""
        ...

    def select(self, memory: Memory, rows: Sequence[int]) -> Memory:
        """The memory of some of the videos."""
        ...

    def training_stages(self, align: bool) -> Sequence[TrainingStage]:
        """What is trained, in this order: on demonstrations, or (`align`) on the policy's own rollouts."""
        ...

    def set_normalizer(self, normalizer: Normalizer) -> None:
        """Take over how the actions and states of the demonstrations are normalised."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def to(self, device: torch.device) -> Self: ...

    def eval(self) -> Self: ...

    def save_pretrained(self, folder: Path) -> None: ...


@runtime_checkable
class DecodesSome(Protocol):
    """Optional, of a world model whose decoding costs: only what somebody looks at."""

    def decode_some(self, latents: Latents, frames: Mapping[str, slice]) -> tuple[dict[str, Tensor], Tensor]:
        """Camera -> some of the K frames, and all states (B, K, S)."""
        ...


class RewardModel(Trainable, Protocol):
    """Says how likely a clip shows the accomplished task. Its loss is on `data.clips.RewardBatch`."""

    clip_length: int  # L
    threshold: float  # a logit; a clip that scores above it counts as success

    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        """(B,) float32 logits of success for uint8 clips of the first camera."""
        ...

    def with_threshold(self, threshold: float) -> RewardModel:
        """The same weights, judged by another threshold."""
        ...

    def save_pretrained(self, folder: Path) -> None: ...
