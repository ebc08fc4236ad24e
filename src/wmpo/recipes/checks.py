"""Settings that make no sense are refused before anything is computed."""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from wmpo.config import Between, Recipe
from wmpo.errors import UserError
from wmpo.families import PLUGS

ANY = Between(-(10**9), 10**9)  # of a setting that names no range of its own


def check_recipe(recipe: Recipe) -> None:
    """Raise UserError for the first setting that makes no sense."""
    check_ranges(recipe)
    if recipe.grpo.min_group_success >= recipe.grpo.max_group_success:
        raise UserError(
            f"grpo.min_group_success is {recipe.grpo.min_group_success}; it must be below grpo.max_group_success, "
            f"{recipe.grpo.max_group_success}."
        )
    states, rest = divmod(recipe.collect.episodes, recipe.collect.rollouts_per_state)
    if rest:
        raise UserError(
            f"collect.episodes is {recipe.collect.episodes}; it must be a multiple of collect.rollouts_per_state, "
            f"{recipe.collect.rollouts_per_state}."
        )
    if not 0 < round(states * recipe.collect.held_out) < states:
        raise UserError(
            f"collect.held_out is {recipe.collect.held_out}; of the rollouts from {states} initial states it must "
            "leave some to learn from and some to choose thresholds on."
        )
    if recipe.policy.pretrained and not (Path(recipe.policy.pretrained) / "config.json").is_file():
        raise UserError(
            f"policy.pretrained, {recipe.policy.pretrained!r}, is no folder with a policy: it has no config.json."
        )
    for kind in PLUGS:
        check = getattr(getattr(recipe, kind), "check", None)  # what a family knows of its own settings
        if check is not None:
            check()


def check_ranges(settings: object, prefix: str = "") -> None:
    """Raise UserError for the first number that is not `Between` its bounds, nested ones included, and for the first
    value that is none of its Literal."""
    hints = get_type_hints(type(settings), include_extras=True)
    for name, value in vars(settings).items():
        field, hint = f"{prefix}{name}", hints[name]
        if is_dataclass(value):
            check_ranges(value, f"{field}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            bounds = [fact for fact in getattr(hint, "__metadata__", ()) if isinstance(fact, Between)]
            _number(field, value, *(bounds or [ANY])[0])
        elif get_origin(hint) is Literal and value not in get_args(hint):
            raise UserError(f"{field} is {value!r}; it must be one of {', '.join(map(str, get_args(hint)))}.")


def _number(field: str, value: float, least: float, most: float) -> None:
    if not math.isfinite(value):
        raise UserError(f"{field} is {value}; it must be a finite number.")
    if value < least:
        bound = "above 0" if 0 < least < 0.01 and value <= 0 else f"at least {least:g}"
        raise UserError(f"{field} is {value}; it must be {bound}.")
    if value > most:
        raise UserError(f"{field} is {value}; it must be at most {most:g}.")
