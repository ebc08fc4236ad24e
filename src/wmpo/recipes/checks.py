"""Settings that make no sense are refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

from wmpo.config import Recipe
from wmpo.errors import UserError, require_package, require_temperature
from wmpo.families import PLUGS, check_buildable
from wmpo.io.plain import check_ranges


def check_recipe(recipe: Recipe) -> None:
    """Raise UserError for the first setting that makes no sense."""
    check_ranges(recipe)
    if recipe.curves != "tensorboard":
        require_package(f"curves is {recipe.curves}", recipe.curves, recipe.curves)
    for kind in PLUGS:
        check_buildable(kind, getattr(recipe, kind))
    require_temperature("collect.temperature", recipe.collect.temperature)
    require_temperature("evaluate.temperature", recipe.evaluate.temperature)
    if recipe.grpo.min_group_success >= recipe.grpo.max_group_success:
        raise UserError(
            f"grpo.min_group_success is {recipe.grpo.min_group_success}; it must be below grpo.max_group_success, "
            f"{recipe.grpo.max_group_success}."
        )
    if recipe.collect.episodes % recipe.collect.rollouts_per_state:
        raise UserError(
            f"collect.episodes is {recipe.collect.episodes}; it must be a multiple of collect.rollouts_per_state, "
            f"{recipe.collect.rollouts_per_state}."
        )
    if not recipe.collect.episodes and recipe.reward.threshold in ("rate", "half"):
        raise UserError(
            f"reward.threshold is {recipe.reward.threshold}, which needs rollouts, but collect.episodes is 0: choose "
            "calibrated."
        )
    if recipe.policy.pretrained and not (Path(recipe.policy.pretrained) / "config.json").is_file():
        raise UserError(
            f"policy.pretrained, {recipe.policy.pretrained!r}, is no folder with a policy: it has no config.json."
        )
    for kind in PLUGS:
        check = getattr(getattr(recipe, kind), "check", None)  # what a family knows of its own settings
        if check is not None:
            check()


def check_machine(recipe: Recipe) -> None:
    """Raise UserError where this machine lacks what a family needs to run, but not to be planned."""
    for kind in PLUGS:
        check = getattr(getattr(recipe, kind), "check_machine", None)
        if check is not None:
            check()
