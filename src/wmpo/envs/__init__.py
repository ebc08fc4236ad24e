"""Environments. The embedded one is `wmpo.envs.tabletop`; anything that fits `wmpo.protocols.Env` plugs in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wmpo.config import EnvConfig
    from wmpo.envs.vector import VectorEnv
    from wmpo.types import Episode


def make_env(config: EnvConfig, disruption: str = "none") -> VectorEnv:
    """The real (simulated) environment of a recipe, changed by a disruption of `wmpo.envs.tabletop.settings`."""
    from wmpo.envs.vector import VectorEnv

    return VectorEnv(config, disruption)


def task_names(config: EnvConfig) -> Callable[[int], str]:
    """Start number -> name of the task that its episode is about."""
    if "+" not in config.task:
        return lambda initial_state: config.task
    from wmpo.envs.tabletop.tasks import task_of, tasks_named

    tasks = tasks_named(config.task)
    return lambda initial_state: task_of(tasks, initial_state).name


def demonstrate(
    config: EnvConfig, initial_states: Sequence[int], noise: float, seed: int, min_pace: float = 1.0
) -> list[Episode]:
    """One episode of the scripted expert per initial-state number, failures included: see `Episode.succeeded`.

    `noise` is the spread of the noise on the executed actions, which `Episode.actions` holds; `Episode.labels`
    holds what the expert meant to do. Each episode has a pace of its own, drawn from [`min_pace`, 1].
    """
    env = make_env(config)
    try:
        return env.demonstrate(initial_states, noise, seed, min_pace)
    finally:
        env.close()
