"""Success in the real environment, on initial states that nothing was learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from wmpo.data.store import EpisodeStore
from wmpo.protocols import CountsEvents, Env, Policy
from wmpo.rollout import rollout
from wmpo.types import Episode


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
    size = env.spec.max_batch
    for begin in range(0, len(initial_states), size):
        some = list(initial_states[begin : begin + size])
        generator = torch.Generator().manual_seed(seed + begin)
        played = rollout(env, policy, some, temperature=temperature, generator=generator, horizon=limit)
        result.initial_states += some
        result.task += map(task, some)
        result.finish_step += torch.where(played.success, played.finish_step, 0).tolist()
        result.events += [dict(row) for row in env.events] if isinstance(env, CountsEvents) else [{} for _ in some]
        result.steps += int(played.length.sum())
    return result


def shuffled(policies: Sequence[str], initial_states: Sequence[int], seed: int) -> list[tuple[str, int]]:
    """Who plays from where, one after another: the scene changes as seldom as it can, and the policies come in another
    order at each, so that nobody who resets or judges can tell which it is."""
    rng = np.random.default_rng(seed)
    return [(policies[i], number) for number in initial_states for i in rng.permutation(len(policies))]


def evaluate_blind(
    env: Env,
    policies: Mapping[str, Policy],
    initial_states: Sequence[int],
    store: EpisodeStore,
    *,
    temperature: float,
    seed: int,
    task: Callable[[int], str] = lambda initial_state: "",
    time_factor: float = 1.0,
    on_episode: Callable[[], None] = lambda: None,
) -> dict[str, Evaluation]:
    """Like `evaluate`, of several policies in `shuffled` order, one episode at a time, for a robot and those around it.

    Each episode is in `store`, by its policy's name, when it ends; what is there already is not played again.
    """
    limit = time_limit(env.spec.horizon, time_factor)
    place = {(record.source, record.initial_state): record.index for record in store.records()}
    for turn, (name, number) in enumerate(shuffled(list(policies), initial_states, seed)):
        if (name, number) not in place:
            generator = torch.Generator().manual_seed((seed << 32) + turn)
            rollout(
                env, policies[name], [number], temperature=temperature, generator=generator, record=name, task=task,
                on_episode=lambda episode: store.append([episode]), horizon=limit,
            )  # fmt: skip
            place[name, number] = len(store) - 1
        on_episode()
    results = {name: Evaluation(env.spec.horizon, limit) for name in policies}
    for name, result in results.items():
        for episode in store.without_pictures([place[name, number] for number in initial_states]):
            result.add(episode)
    return results
