"""The checker finds nothing wrong with honest implementations, and the one thing that is wrong with each broken one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wmpo.config import FitConfig
from wmpo.contracts import check_env, check_policy, check_reward_model, check_world_model, optional
from wmpo.envs import make_env
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.errors import UserError
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.protocols import TrainingStage
from wmpo.rewards.clip_classifier import ClipClassifier
from wmpo.rewards.settings import ConvSettings
from wmpo.types import Decision, EnvSpec, Episode, Observation, Outcome
from wmpo.world_models.settings import VideoDiffusionSettings
from wmpo.world_models.video_diffusion import VideoDiffusionModel

SPEC = EnvSpec(cameras={"front": (4, 4)}, state_dim=2, action_dim=2, horizon=7, fps=5)


class DotEnv:
    """A number that actions add to; the picture shows it."""

    def __init__(self) -> None:
        self.spec = SPEC

    def show(self, position: Tensor) -> Tensor:
        """(...,) -> (..., 3, 4, 4)"""
        return (position * 10 + 100).clamp(0, 255).to(torch.uint8)[..., None, None, None].repeat(1, 3, 4, 4)

    def reset(self, initial_states: Sequence[int]) -> Observation:
        self.position = torch.tensor([float(start) for start in initial_states])
        self.time = torch.zeros(len(initial_states))
        state = torch.stack([self.position, self.time], -1)
        return Observation({"front": self.show(self.position)}, state, ("move the dot",) * len(initial_states))

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        index = torch.as_tensor(list(rows))
        path = self.position[index][:, None] + chunk_AKD.sum(-1).cumsum(1)
        self.position[index] = path[:, -1]
        self.time[index] += chunk_AKD.shape[1]
        images = torch.stack([self.show(path[:, k]) for k in range(path.shape[1])], 1)
        done = self.time[index] >= self.spec.horizon
        return Outcome({"front": images}, torch.stack([path, path], -1), path > 5, done)

    def close(self) -> None: ...


class Dot(nn.Module):
    """Its loss is the square of its only weight's distance from the mean of what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        shown = next(value for value in vars(batch).values() if isinstance(value, Tensor))
        loss = (self.weight - shown.float().mean()).square()
        return loss, {"loss": loss.detach()}


class DotPolicy(nn.Module):
    """Two tokens, minus and plus one, from the mean of the picture."""

    chunk = 3

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, self.chunk * 2 * 2)

    def logits(self, observation: Observation) -> Tensor:
        mean = observation.images["front"].float().mean((1, 2, 3))[:, None] / 255
        return self.head(mean).view(-1, self.chunk, 2, 2)

    @torch.no_grad()
    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        logits = self.logits(observation)
        if temperature == 0:
            tokens = logits.argmax(-1)
            return Decision(2.0 * tokens - 1, tokens, torch.zeros(tokens.shape))
        log_p = (logits / temperature).log_softmax(-1)
        tokens = torch.multinomial(log_p.exp().flatten(0, -2), 1, generator=generator).view(logits.shape[:-1])
        return Decision(2.0 * tokens - 1, tokens, log_p.gather(-1, tokens[..., None])[..., 0])

    def log_prob(self, observation: Observation, trace: Tensor, *, temperature: float) -> Tensor:
        return (self.logits(observation) / temperature).log_softmax(-1).gather(-1, trace[..., None])[..., 0]

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.logits(batch.observation).square().mean()
        return loss, {"loss": loss.detach()}


class DotWorld(Dot):
    """Imagines the dot's brightness: latents are (B, K) brightness, memory is the last one."""

    chunk, context = 3, 1

    def training_stages(self, align: bool) -> list[TrainingStage]:
        return [TrainingStage("dot", self, FitConfig())]

    def begin(self, first: Observation) -> Any:
        return first.images["front"][:, 0, 0, 0].float()

    def imagine(self, memory: Any, chunk_BKD: Tensor, generator: torch.Generator) -> tuple[Any, Any]:
        noise = torch.randn(len(memory), generator=generator)
        path = memory[:, None] + 10 * chunk_BKD.sum(-1).cumsum(1) + 5 * noise[:, None]
        return path[:, -1], path

    def decode(self, latents: Any) -> tuple[dict[str, Tensor], Tensor]:
        frames = latents.clamp(0, 255).to(torch.uint8)[..., None, None, None].repeat(1, 1, 3, 4, 4)
        return {"front": frames}, torch.zeros(*latents.shape, 0)

    def select(self, memory: Any, rows: Sequence[int]) -> Any:
        return memory[list(rows)]


class DotJudge(Dot):
    clip_length = 2
    threshold = 0.5

    def with_threshold(self, threshold: float) -> DotJudge:
        other = DotJudge()
        other.threshold = threshold
        return other

    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        return clips_BLCHW[:, -1].float().mean((1, 2, 3)) / 255


FIRST = Observation(
    {"front": torch.tensor([90, 120, 150], dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4)},
    torch.zeros(3, 2),
    ("move the dot",) * 3,
)
CHUNK = torch.linspace(-1, 1, 18).view(3, 3, 2)
CLIPS = torch.arange(2 * 2 * 48, dtype=torch.float32).view(2, 2, 3, 4, 4).to(torch.uint8)


def test_honest_implementations_pass() -> None:
    assert check_env(DotEnv()) == []
    assert check_policy(DotPolicy(), FIRST, action_dim=2) == []
    assert check_world_model(DotWorld(), FIRST, CHUNK, SPEC) == []
    assert check_reward_model(DotJudge(), CLIPS, ("a", "b")) == []


def test_our_own_implementations_pass() -> None:
    config = TabletopSettings(image_size=32, workers=0, renderer="rays")
    with closing(make_env(config)) as env:
        assert check_env(env) == []
        first = env.reset([0, 1, 2])
        torch.manual_seed(0)
        policy = MiniVLA.build(MiniVLASettings(chunk=2, width=8, hidden=16), env.spec).eval()
        assert check_policy(policy, first, env.spec.action_dim) == []
        dream = VideoDiffusionModel.build(VideoDiffusionSettings(width=8, depth=1), env.spec, chunk=2).eval()
        judge = ClipClassifier.build(ConvSettings(clip_length=2, width=8), env.spec).eval()
        for module in (dream, judge):  # some layers begin at zero; nothing may hide behind that
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
        actions = torch.rand(3, 2, env.spec.action_dim) * 2 - 1
        assert check_world_model(dream, first, actions, env.spec) == []
        clips = torch.randint(0, 256, (3, 2, 3, 32, 32), dtype=torch.uint8)
        assert check_reward_model(judge, clips, first.instruction) == []


class FloatPictures(DotEnv):
    def show(self, position: Tensor) -> Tensor:
        return super().show(position).float() / 255


class Moody(DotEnv):
    """Begins elsewhere every time."""

    resets = 0

    def reset(self, initial_states: Sequence[int]) -> Observation:
        self.resets += 1
        return super().reset([start + self.resets for start in initial_states])


class Positional(DotEnv):
    """The place in the batch decides, not the initial-state number."""

    def reset(self, initial_states: Sequence[int]) -> Observation:
        return super().reset(range(len(initial_states)))


class Slippery(DotEnv):
    """Its actions have effects that nobody asked for."""

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        return super().step(rows, chunk_AKD + torch.rand(1))


class Entangled(DotEnv):
    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        return super().step(rows, chunk_AKD + chunk_AKD.mean())


class Forgetful(DotEnv):
    """Answers with all rows where some were asked for."""

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        every = torch.zeros(len(self.position), *chunk_AKD.shape[1:])
        every[list(rows)] = chunk_AKD
        return super().step(range(len(self.position)), every)


class Nan(DotEnv):
    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        outcome = super().step(rows, chunk_AKD)
        return replace(outcome, state=outcome.state / 0)


class OtherCamera(DotEnv):
    def reset(self, initial_states: Sequence[int]) -> Observation:
        seen = super().reset(initial_states)
        return Observation({"side": seen.images["front"]}, seen.state, seen.instruction)


class Broken(DotEnv):
    def reset(self, initial_states: Sequence[int]) -> Observation:
        raise RuntimeError("no power")


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        (FloatPictures(), "type torch.float32; it must be torch.uint8"),
        (Moody(), "equal numbers must be equal"),
        (Positional(), "depends on what else is in the batch"),
        (Slippery(), "The same actions from the same initial-state numbers lead to different"),
        (Entangled(), "changes the outcome of another row"),
        (Forgetful(), "shape"),
        (Nan(), "NaN"),
        (OtherCamera(), "gives the cameras ['side']"),
        (Broken(), "It raised RuntimeError: no power (test_contracts.py, line "),
    ],
)
def test_broken_environments_are_told(env: DotEnv, complaint: str) -> None:
    assert complaint in " ".join(check_env(env))


class Degrees(DotEnv):
    """Refuses what is out of its bounds."""

    def __init__(self, max_batch: int = 128) -> None:
        self.spec = replace(SPEC, action_low=(-90.0, 90.0), action_high=(0.0, 150.0), max_batch=max_batch)
        self.widest = torch.zeros(2)

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        low, high = self.spec.action_bounds()
        if (chunk_AKD < low).any() or (chunk_AKD > high).any():
            raise UserError("Out of bounds.")
        self.widest = torch.maximum(self.widest, chunk_AKD.amax((0, 1)) - chunk_AKD.amin((0, 1)))
        return super().step(rows, chunk_AKD / 100)


@pytest.mark.parametrize("max_batch", [128, 1])
def test_actions_are_tried_between_the_bounds(max_batch: int) -> None:
    env = Degrees(max_batch)
    assert check_env(env) == []
    assert (env.widest > (torch.tensor([60.0, 40.0]) if max_batch > 1 else torch.tensor([1.0, 1.0]))).all()
    assert Degrees().spec == SPEC and "action_low" not in repr(env.spec)  # what stores compare, and tell


def test_an_environment_may_take_any_action() -> None:
    env = DotEnv()
    env.spec = replace(SPEC, action_low=(0.0, float("-inf")), action_high=float("inf"))
    assert check_env(env) == []


class Whole(DotEnv):
    """With everything that is optional."""

    tasks: Sequence[str] = ("even", "odd")
    events: Sequence[dict[str, int]] = ()

    def reset(self, initial_states: Sequence[int]) -> Observation:
        self.events = [{"moves": 0} for _ in initial_states]
        return super().reset(initial_states)

    def task_of(self, initial_state: int) -> str:
        return ("even", "odd")[initial_state % 2]

    def demonstrate(
        self, initial_states: Sequence[int], noise: float, seed: int, min_pace: float = 1.0
    ) -> Iterable[Episode]:
        for number in initial_states:
            yield Episode(
                {"front": np.zeros((3, 4, 4, 3), np.uint8)}, np.zeros((3, 2), np.float32), np.zeros((2, 2), np.float32),
                np.zeros(3, bool), "move the dot", number, "even", "expert",
            )  # fmt: skip

    def get_state(self, rows: Sequence[int]) -> list[Any]:
        return [(float(self.position[row]), float(self.time[row])) for row in rows]

    def reset_to(self, states: Sequence[Any]) -> Observation:
        seen = self.reset(range(len(states)))
        self.position, self.time = (torch.tensor([state[i] for state in states]) for i in range(2))
        state = torch.stack([self.position, self.position], -1)
        return Observation({"front": self.show(self.position)}, state, seen.instruction)


class Ragged(Whole):
    def demonstrate(self, *args: Any, **settings: Any) -> Iterable[Episode]:
        return [replace(episode, actions=episode.actions[:1]) for episode in super().demonstrate(*args, **settings)]


class Twice(Whole):
    def demonstrate(self, *args: Any, **settings: Any) -> Iterable[Episode]:
        return [*super().demonstrate(*args, **settings)] * 2


class Amnesia(Whole):
    """Restored, it begins anew."""

    def reset_to(self, states: Sequence[Any]) -> Observation:
        return self.reset(range(len(states)))


class HiddenForce(Whole):
    """What a saved state lacks, and no picture shows."""

    force = 1.0

    def reset(self, initial_states: Sequence[int]) -> Observation:
        self.force = 1.0
        return super().reset(initial_states)

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        outcome = super().step(rows, chunk_AKD * self.force)
        self.force *= 2
        return outcome


class Unnamed(Whole):
    tasks = ("even",)


class Uncounted(Whole):
    def reset(self, initial_states: Sequence[int]) -> Observation:
        seen = super().reset(initial_states)
        self.events = self.events[:1]
        return seen


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        (Ragged(), "has images"),
        (Twice(), "demonstrate gives 2 episodes for one"),
        (Amnesia(), "does not look as it did when get_state was called"),
        (HiddenForce(), "After an episode is restored, the same actions lead to different"),
        (Unnamed(), "task_of names 'odd'"),
        (Uncounted(), "events has 1 entries for 3"),
    ],
)
def test_optional_methods_are_tried(env: DotEnv, complaint: str) -> None:
    assert complaint in " ".join(check_env(env))


def test_what_was_tried_is_told() -> None:
    assert check_env(Whole()) == []
    assert optional.tried(Whole()) == "demonstrate: tried, get_state: tried, tasks: tried, events: tried"
    assert optional.tried(DotEnv()) == "demonstrate: absent, get_state: absent, tasks: absent, events: absent"


class Unteachable(DotPolicy):
    def forward(self, batch: Any, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().forward(batch, generator)
        return loss.detach(), metrics


class NoForward(DotPolicy):
    forward = None  # type: ignore[assignment]


class LossOfEach(DotPolicy):
    def forward(self, batch: Any, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        return self.logits(batch.observation).square().mean((1, 2, 3)), {}


class OtherTemperature(DotPolicy):
    def log_prob(self, observation: Observation, trace: Tensor, *, temperature: float) -> Tensor:
        return super().log_prob(observation, trace, temperature=1.0)


class Dropout(DotPolicy):
    def logits(self, observation: Observation) -> Tensor:
        return nn.functional.dropout(super().logits(observation), 0.5)


class OwnDice(DotPolicy):
    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        return super().act(observation, temperature=temperature, generator=torch.default_generator)


class WithoutGradient(DotPolicy):
    @torch.no_grad()
    def log_prob(self, observation: Observation, trace: Tensor, *, temperature: float) -> Tensor:
        return super().log_prob(observation, trace, temperature=temperature)


class ShortChunk(DotPolicy):
    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        decision = super().act(observation, temperature=temperature, generator=generator)
        return replace(decision, chunk=decision.chunk[:, :2])


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        (Unteachable(), "The loss of the policy has no gradient"),
        (NoForward(), "raised TypeError"),
        (LossOfEach(), "must be a tensor of a single number"),
        (OtherTemperature(), "At temperature 1.6: log_prob differs"),
        (Dropout(), "differs"),
        (OwnDice(), "equal generators give different choices"),
        (WithoutGradient(), "no gradient"),
        (ShortChunk(), "it must be (3, 3, 2)"),
    ],
)
def test_broken_policies_are_told(policy: DotPolicy, complaint: str) -> None:
    torch.manual_seed(0)
    assert complaint in " ".join(check_policy(policy, FIRST, action_dim=2))


class InPlace(DotWorld):
    def imagine(self, memory: Any, chunk_BKD: Tensor, generator: torch.Generator) -> tuple[Any, Any]:
        new, path = super().imagine(memory, chunk_BKD, generator)
        memory.copy_(new)
        return memory, path


class OwnNoise(DotWorld):
    def imagine(self, memory: Any, chunk_BKD: Tensor, generator: torch.Generator) -> tuple[Any, Any]:
        return super().imagine(memory, chunk_BKD, torch.default_generator)


class SortedSelect(DotWorld):
    def select(self, memory: Any, rows: Sequence[int]) -> Any:
        return memory[sorted(rows, reverse=True)]


class IgnoredSelect(DotWorld):
    def select(self, memory: Any, rows: Sequence[int]) -> Any:
        return memory


class FromTheStart(DotWorld):
    """Remembers which rows of the first batch it has, and counts rows from there."""

    def begin(self, first: Observation) -> Any:
        self.all = super().begin(first)
        return self.all

    def select(self, memory: Any, rows: Sequence[int]) -> Any:
        if len(memory) == len(self.all):
            self.now = memory
        return self.now[list(rows)]


class WrongSize(DotWorld):
    def decode(self, latents: Any) -> tuple[dict[str, Tensor], Tensor]:
        images, state = super().decode(latents)
        return {"front": images["front"][..., :2]}, state


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (InPlace(), "imagine changes the memory"),
        (OwnNoise(), "Equal generators give different videos"),
        (SortedSelect(), "select"),
        (IgnoredSelect(), "select of one row leaves more than one video"),
        (FromTheStart(), "select twice is not the same"),
        (WrongSize(), "it must be (3, 3, 3, 4, 4)"),
    ],
)
def test_broken_world_models_are_told(model: DotWorld, complaint: str) -> None:
    assert complaint in " ".join(check_world_model(model, FIRST, CHUNK, SPEC))


class Infinite(DotJudge):
    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        return super().score(clips_BLCHW, instruction) / 0


class Column(DotJudge):
    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        return super().score(clips_BLCHW, instruction)[:, None]


class Relative(DotJudge):
    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        score = super().score(clips_BLCHW, instruction)
        return score / score.max()


class Vandal(DotJudge):
    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        score = super().score(clips_BLCHW, instruction)
        clips_BLCHW.zero_()
        return score


class Undecided(DotJudge):
    threshold = float("nan")


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (Infinite(), "score holds NaN or infinity"),
        (Column(), "score has the shape (2, 1); it must be (2,)"),
        (Relative(), "depends on what else is in the batch"),
        (Vandal(), "changes the clips"),
        (Undecided(), "threshold is nan"),
    ],
)
def test_broken_reward_models_are_told(model: DotJudge, complaint: str) -> None:
    assert complaint in " ".join(check_reward_model(model, CLIPS.clone(), ("a", "b")))
