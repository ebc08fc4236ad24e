"""A person, or the policy, drives a run's dream; where the environment is a simulator, that beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.imagination import ImaginedEnv, first_frames_of
from wmpo.io.plain import Json, JsonObject
from wmpo.protocols import Env, HasActionRange, Policy, RewardModel, WorldModel
from wmpo.report.measure import probability
from wmpo.report.media import panorama
from wmpo.types import Observation
from wmpo.web.server import picture_strip


@dataclass
class Play:
    """One dream, and the same actions for real, from the first frames of stored episodes."""

    world_model: WorldModel
    reward_model: RewardModel
    policy: Policy
    store: EpisodeStore
    real: Env | None
    device: torch.device
    temperature: float
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        if not len(self.store):
            raise UserError(f"{self.store.root} holds no episode whose first frame a dream could begin with.")
        self.generator = torch.Generator(device=self.device).manual_seed(0)
        low, high = torch.full((self.store.spec.action_dim,), -1.0), torch.ones(self.store.spec.action_dim)
        if self.real is not None:
            low, high = self.real.spec.action_bounds()
        if isinstance(self.policy, HasActionRange):
            shown = [bound.cpu() for bound in self.policy.action_range()]
            low, high = torch.maximum(low, shown[0]), torch.minimum(high, shown[1])
        self.low, self.high = low, high
        self.seen: Observation | None = None

    def about(self, asked: JsonObject) -> Json:
        return {
            "fps": self.store.spec.fps, "chunk": self.world_model.chunk, "low": self.low.tolist(),
            "high": self.high.tolist(), "real": self.real is not None, "episodes": len(self.store),
            "threshold": probability(self.reward_model.threshold),
        }  # fmt: skip

    def reset(self, asked: JsonObject) -> Json:
        """Begin where episode number `episode` of the store began."""
        [episode] = self.store.episodes([int(asked["episode"]) % len(self.store)])
        spec, number = self.store.spec, episode.initial_state
        first = first_frames_of([episode], spec).to(self.device)
        self.dream = ImaginedEnv(
            self.world_model, self.reward_model, spec, first, [number], generator=self.generator, stop=False
        )
        self.seen = self.dream.reset([number])
        answer: JsonObject = {"instruction": episode.instruction, "initial_state": number}
        answer["dream"] = strip({name: image[:, None] for name, image in self.seen.images.items()})
        if self.real is not None:
            shown = self.real.reset([number]).images
            answer["real"] = strip({name: image[:, None] for name, image in shown.items()})
        return answer

    def step(self, asked: JsonObject) -> Json:
        """One chunk: of `actions`, up to K of them, the last one repeated; or of the policy, without them."""
        if self.seen is None:
            raise UserError("Call reset before step.")
        if (given := asked.get("actions")) is None:
            chunk = self.policy.act(self.seen, temperature=self.temperature, generator=self.generator).chunk
        else:
            chunk = self._chunk(given)
        dreamt = self.dream.step([0], chunk)
        self.seen = dreamt.last(self.seen.instruction)
        scores = [None if math.isnan(score) else probability(score) for score in self.dream.scores[-1][0].tolist()]
        answer: JsonObject = {"dream": strip(dreamt.images), "scores": scores, "actions": chunk[0].tolist()}
        answer["states"] = {"dream": dreamt.state[0].tolist()}
        if self.real is not None:
            real = self.real.step([0], chunk.cpu().clamp(self.low, self.high))
            answer |= {"real": strip(real.images), "success": real.success[0].tolist()}
            answer["states"]["real"] = real.state[0].tolist()
        return answer

    def _chunk(self, given: Sequence[Sequence[float]]) -> Tensor:
        actions = torch.tensor(given, dtype=torch.float32)
        if actions.ndim != 2 or not len(actions) or actions.shape[1] != len(self.low) or not actions.isfinite().all():
            raise UserError(f"actions must be rows of {len(self.low)} finite numbers.")
        K = self.world_model.chunk
        actions = actions[:K].clamp(self.low, self.high)
        return torch.cat([actions, actions[-1:].expand(K - len(actions), -1)])[None].to(self.device)


def strip(images: Mapping[str, Tensor]) -> str:
    """All cameras of (1, T, C, H, W), beside each other."""
    return picture_strip(panorama({name: image[0].permute(0, 2, 3, 1).cpu().numpy() for name, image in images.items()}))
