"""Environments: the embedded one is `wmpo.envs.tabletop`; others plug in by name (docs/own_env.md).

Kept light: simulator processes import this package, and need no torch, so what does is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wmpo.config import EnvConfig
from wmpo.errors import UserError

if TYPE_CHECKING:
    from wmpo.protocols import Demonstrates, Env

RECORDED = "recorded"
"""The family of the environment of a run that has recorded episodes alone."""


def make_env(config: EnvConfig, disruption: str = "none") -> Env:
    """The real (or simulated) environment of a recipe. Raises UserError for a disruption that it doesn't have."""
    from wmpo.families import build, complete

    config = complete("env", config)
    if disruption != "none" and disruption not in disruptions_of(config):
        known = ", ".join(disruptions_of(config)) or "none at all"
        raise UserError(f"{config.family} has no disruption {disruption!r}; it has {known}.")
    env: Env = build("env", config, *([] if disruption == "none" else [disruption]))
    return env


def disruptions_of(config: EnvConfig) -> tuple[str, ...]:
    """The changes of scene that the environment of a recipe can be evaluated under."""
    from wmpo.families import family_class

    return tuple(getattr(family_class("env", config.family), "disruptions", ()))


def demonstrator(env: Env, family: str) -> Demonstrates:
    """The environment as one with a scripted expert. Raises UserError where it has none."""
    from wmpo.protocols import Demonstrates

    if isinstance(env, Demonstrates):
        return env
    raise UserError(
        f"The environment {family} has no scripted expert: begin with demonstrations of your own, in an episode store "
        "(wmpo run RECIPE --demonstrations.data STORE; docs/data.md), or with a policy of yours (wmpo collect --policy "
        "FOLDER --data STORE)."
    )


def task_names(env: Env) -> Callable[[int], str]:
    """Initial-state number -> name of the task that its episode is about; "" where the environment names none."""
    from wmpo.protocols import NamesTasks

    return env.task_of if isinstance(env, NamesTasks) else lambda initial_state: ""
