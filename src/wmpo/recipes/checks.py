"""Settings that make no sense are told before anything is computed."""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from typing import Any

from wmpo.config import Recipe
from wmpo.errors import UserError

AT_LEAST_ONE = {
    "rounds", "env.image_size", "policy.chunk", "policy.width", "policy.hidden", "demonstrations.episodes",
    "collect.episodes", "world_model.context", "world_model.sampling_steps", "world_model.width", "world_model.depth",
    "world_model.heads", "reward.clip_length", "reward.stride", "reward.width", "grpo.groups", "grpo.starts",
    "grpo.minibatches", "evaluate.episodes", "evaluate.watch_episodes",
}  # fmt: skip
AT_LEAST_TWO = {"policy.bins", "grpo.group_size"}
SHARES = {
    "collect.held_out", "world_model.align_share", "world_model.context_noise", "grpo.keep_low", "grpo.keep_high",
    "grpo.clip_low",
}  # fmt: skip
ABOVE_ZERO = {"collect.temperature", "grpo.temperature", "grpo.lr", "grpo.grad_clip"}
IN_EVERY_FIT = {"steps": 1, "batch_size": 2}


def check_recipe(recipe: Recipe) -> None:
    """Complain about the first setting that makes no sense, in one sentence."""
    _check(recipe, "")
    if recipe.grpo.keep_low >= recipe.grpo.keep_high:
        raise UserError(
            f"grpo.keep_low is {recipe.grpo.keep_low}; it must be below grpo.keep_high, {recipe.grpo.keep_high}."
        )
    if not 0 < round(recipe.collect.episodes * recipe.collect.held_out) < recipe.collect.episodes:
        raise UserError(
            f"collect.held_out is {recipe.collect.held_out}; of {recipe.collect.episodes} rollouts it must leave some "
            "to learn from and some to choose thresholds on."
        )


def _check(config: Any, prefix: str) -> None:
    for name, value in vars(config).items():
        field = f"{prefix}{name}"
        if is_dataclass(value):
            _check(value, f"{field}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            _number(field, value)


def _number(field: str, value: float) -> None:
    owner, _, name = field.rpartition(".")
    in_fit = owner.endswith((".fit", ".align"))
    if not math.isfinite(value):
        raise UserError(f"{field} is {value}; it must be a finite number.")
    least = 1 if field in AT_LEAST_ONE else 2 if field in AT_LEAST_TWO else 0
    least = max(least, IN_EVERY_FIT.get(name, 0) if in_fit else 0)
    if value < least:
        raise UserError(f"{field} is {value}; it must be at least {least}.")
    if value == 0 and (field in ABOVE_ZERO or (in_fit and name in ("lr", "grad_clip"))):
        raise UserError(f"{field} is {value}; it must be above 0.")
    if field in SHARES and value > 1:
        raise UserError(f"{field} is {value}; it must lie between 0 and 1.")
    if in_fit and name == "ema" and value >= 1:
        raise UserError(f"{field} is {value}; it must be below 1.")
