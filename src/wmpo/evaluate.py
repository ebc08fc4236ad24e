"""Success in the real environment, on initial states that nothing was learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from wmpo.protocols import CountsEvents, Env, Policy
from wmpo.rollout import rollout
from wmpo.types import Episode

BATCH = 128  # episodes that advance together


@dataclass
class Evaluation:
    """What became of an episode from each initial state; those of equal `initial_states` can be compared in pairs."""

    horizon: int
    """In actions; what is done within it counts as success."""
    time_limit: int
    """Actions after which an episode without success was ended; those beyond the horizon show who is only slow."""
    initial_states: list[int] = field(default_factory=list)
    finish_step: list[int] = field(default_factory=list)
    """Frame of the first success, even one after the horizon; 0 where there was none."""
    task: list[str] = field(default_factory=list)
    """Of each initial state."""
    events: list[Mapping[str, int]] = field(default_factory=list)
    """What the environment counted in each, if it counts."""
    steps: int = 0
    """Real actions that the evaluation took."""

    @property
    def success(self) -> list[bool]:
        return [0 < frame <= self.horizon for frame in self.finish_step]

    @property
    def rate(self) -> float:
        return sum(self.success) / len(self.success)

    def add(self, episode: Episode) -> None:
        """One that was recorded."""
        self.initial_states.append(episode.initial_state)
        self.finish_step.append(episode.finish_step if episode.succeeded else 0)
        self.task.append(episode.task)
        self.events.append({name: int(count) for name, count in episode.meta.items() if count.isdecimal()})
        self.steps += episode.length


def time_limit(horizon: int, time_factor: float) -> int:
    """Actions that an episode of an evaluation may take, see `EvaluateConfig.time_factor`."""
    return round(horizon * time_factor)


def evaluate(
    env: Env,
    policy: Policy,
    initial_states: Sequence[int],
    *,
    temperature: float,
    seed: int,
    task: Callable[[int], str] = lambda initial_state: "",
    time_factor: float = 1.0,
) -> Evaluation:
    """Play one episode from each initial state; `task` names the task of each."""
    limit = time_limit(env.spec.horizon, time_factor)
    result = Evaluation(env.spec.horizon, limit)
    for begin in range(0, len(initial_states), BATCH):
        some = list(initial_states[begin : begin + BATCH])
        generator = torch.Generator().manual_seed(seed + begin)
        played = rollout(env, policy, some, temperature=temperature, generator=generator, horizon=limit)
        result.initial_states += some
        result.task += map(task, some)
        result.finish_step += torch.where(played.success, played.finish_step, 0).tolist()
        result.events += [dict(row) for row in env.events] if isinstance(env, CountsEvents) else [{} for _ in some]
        result.steps += int(played.length.sum())
    return result
