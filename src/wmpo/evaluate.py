"""Success in the real environment, on initial states that nothing was learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from wmpo.protocols import Env, Policy
from wmpo.rollout import rollout

BATCH = 128  # episodes that advance together


@dataclass
class Evaluation:
    """One 0/1 outcome per initial state; evaluations on equal `initial_states` can be compared pair by pair."""

    initial_states: list[int]
    success: list[bool]
    finish_step: list[int]
    steps: int
    """Real actions that the evaluation took."""
    task: list[str] = field(default_factory=list)
    """Of each initial state."""

    @property
    def rate(self) -> float:
        return sum(self.success) / len(self.success)


def evaluate(
    env: Env,
    policy: Policy,
    initial_states: Sequence[int],
    *,
    temperature: float,
    seed: int,
    task: Callable[[int], str] = lambda initial_state: "",
) -> Evaluation:
    """Play one episode from each initial state; `task` names the task of each."""
    result = Evaluation([], [], [], 0)
    for begin in range(0, len(initial_states), BATCH):
        some = list(initial_states[begin : begin + BATCH])
        generator = torch.Generator().manual_seed(seed + begin)
        played = rollout(env, policy, some, temperature=temperature, generator=generator)
        result.initial_states += some
        result.task += map(task, some)
        result.success += played.success.tolist()
        result.finish_step += played.finish_step.tolist()
        result.steps += int(played.length.sum())
    return result
