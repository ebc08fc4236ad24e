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
        return lambda start: config.task
    from wmpo.envs.tabletop.tasks import task_of, tasks_named

    tasks = tasks_named(config.task)
    return lambda start: task_of(tasks, start).name


def demonstrate(
    config: EnvConfig, starts: Sequence[int], noise: float, seed: int, slowest: float = 1.0
) -> list[Episode]:
    """One episode of the scripted expert per start number, failures included: see `Episode.succeeded`.

    `noise` is the spread of the noise on the executed actions, which `Episode.actions` holds; `Episode.labels`
    holds what the expert meant to do. Each episode has a pace of its own, drawn from [`slowest`, 1].
    """
    env = make_env(config)
    try:
        return env.demonstrate(starts, noise, seed, slowest)
    finally:
        env.close()
