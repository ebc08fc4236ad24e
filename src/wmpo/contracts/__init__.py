"""Does an implementation keep the promises of `wmpo.protocols`? Each check answers with complaints in plain words.

    for complaint in check_env(MyRobot(), initial_states=[0, 1]):
        print(complaint)

An empty list means that nothing was found. A check tries things out: it resets, acts, imagines and learns a little.
`wmpo check` does the same from the command line.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wmpo.contracts import behaviour, optional, training
from wmpo.protocols import Env, Policy, RewardModel, WorldModel
from wmpo.types import EnvSpec, Observation

__all__ = ["check_env", "check_policy", "check_reward_model", "check_world_model", "try_out"]


def check_env(env: Env, initial_states: Sequence[int] = (0, 1, 2), seed: int = 0) -> list[str]:
    """Complaints about an environment, tried from three or more different initial-state numbers."""
    complaints = behaviour.check_env(env, initial_states, seed)
    return complaints or optional.check_optional(env, initial_states, seed)


def check_policy(policy: Policy, observation: Observation, action_dim: int, seed: int = 0) -> list[str]:
    """Complaints about a policy, tried on an observation of at least two episodes."""
    complaints = behaviour.check_policy(policy, observation, action_dim, seed)
    return complaints or training.check_imitation(policy, observation, action_dim)


def check_world_model(
    world_model: WorldModel, first: Observation, chunk_BKD: Tensor, spec: EnvSpec, seed: int = 0
) -> list[str]:
    """Complaints about a world model, tried on the first frames and one chunk of actions of at least three episodes."""
    complaints = behaviour.check_world_model(world_model, first, chunk_BKD, spec, seed)
    return complaints or training.check_world_model_training(world_model, spec)


def check_reward_model(reward_model: RewardModel, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> list[str]:
    """Complaints about a reward model, tried on at least two clips of its length."""
    complaints = behaviour.check_reward_model(reward_model, clips_BLCHW, instruction)
    size = (int(clips_BLCHW.shape[-2]), int(clips_BLCHW.shape[-1]))
    spec = EnvSpec({"camera": size}, 0, 1, 1, 1)
    return complaints or training.check_reward_model_training(reward_model, spec)


def try_out(kind: str, model: Policy | WorldModel | RewardModel, spec: EnvSpec) -> list[str]:
    """All that can be checked of a model on random pictures, saving included; `kind` as in `wmpo check`."""
    size = next(iter(spec.cameras.values()))
    images = {name: training.pictures(each, 3) for name, each in spec.cameras.items()}
    first = Observation(images, torch.zeros(3, spec.state_dim), ("do the task",) * 3)
    complaints: list[str] = []
    if kind == "policy":
        complaints = check_policy(model, first, spec.action_dim)  # type: ignore[arg-type]
    elif kind == "world-model":
        chunk = torch.rand(3, model.chunk, spec.action_dim) * 2 - 1  # type: ignore[union-attr]
        complaints = check_world_model(model, first, chunk, spec)  # type: ignore[arg-type]
    else:
        clips = training.pictures(size, 3, model.clip_length)  # type: ignore[union-attr]
        complaints = check_reward_model(model, clips, first.instruction)  # type: ignore[arg-type]
    return complaints or training.check_saving(model)
