"""Recipes: complete, sensible, and told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from episodes_by_hand import make_episode, make_store
from wmpo.algorithm import model_the_world
from wmpo.cli import dispatch
from wmpo.cli.planning import plan
from wmpo.config import Recipe
from wmpo.envs.libero.settings import LiberoSettings
from wmpo.envs.tabletop.tasks import TASKS
from wmpo.errors import UserError
from wmpo.families import GONE, RENAMED, new_name, recipe_from_plain, why_gone
from wmpo.imagination import first_frames_of
from wmpo.io.plain import flat, numbers_of, to_plain
from wmpo.opening import keep_recipe, load_recipe, open_stage
from wmpo.recipes import RECIPES, recipe_named
from wmpo.recipes.checks import check_recipe
from wmpo.types import EnvSpec


def changed(recipe: Recipe, field: str, value: Any) -> Recipe:
    """The recipe with one dotted field changed."""
    name, _, rest = field.partition(".")
    return replace(recipe, **{name: changed(getattr(recipe, name), rest, value) if rest else value})


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_named_recipes_make_sense(recipe: Recipe) -> None:
    if recipe.name == "paper":
        with pytest.raises(UserError, match=r"world_model\.codec_path, '', is no folder"):
            check_recipe(recipe)
    elif recipe.name.startswith("large-"):
        with pytest.raises(UserError, match=r"name a folder to begin from, policy\.pretrained"):
            check_recipe(recipe)
        check_recipe(replace(recipe, policy=RECIPES["place"].policy))
    else:
        check_recipe(recipe)
    if recipe.env.family == "tabletop":
        assert set(recipe.env.task.split("+")) <= set(TASKS)


def test_the_paper_recipe_has_the_papers_numbers() -> None:
    paper = RECIPES["paper"]
    assert (paper.grpo.groups, paper.grpo.group_size, paper.grpo.minibatches) == (64, 8, 4)
    assert (paper.grpo.clip_low, paper.grpo.clip_high, paper.grpo.lr) == (0.20, 0.28, 5e-6)
    assert (paper.world_model.depth, paper.world_model.width, paper.world_model.heads) == (28, 1152, 16)
    assert (paper.world_model.context, paper.policy.chunk, paper.reward.clip_length) == (4, 8, 8)
    G = paper.grpo.group_size  # only groups that all fail or all succeed are dropped
    assert 0 < paper.grpo.min_group_success < 1 / G and 1 - 1 / G < paper.grpo.max_group_success < 1


def test_wrist_is_place_with_one_more_camera() -> None:
    assert changed(changed(RECIPES["wrist"], "env.cameras", ("front",)), "name", "place") == RECIPES["place"]
    assert RECIPES["wrist"].env.cameras == ("front", "wrist") and RECIPES["wrist"].env.state


def test_the_transformer_recipe_is_place_with_another_dream(tmp_path: Path) -> None:
    """It is planned as it is, and its smallest size is trained from latents, stage by stage."""
    recipe = RECIPES["transformer"]
    assert changed(changed(recipe, "world_model", RECIPES["place"].world_model), "name", "place") == RECIPES["place"]
    spec = EnvSpec({"front": (64, 64)}, 4, 4, 24, 5)
    needs = {need.stage for need in plan(recipe, spec)}
    assert {"world: kinematics", "world: autoencoder", "world: denoiser", "practise: imagine"} <= needs

    for name, value in {"device": "cpu", "world_model.width": 32, "world_model.codec_width": 8}.items():
        recipe = changed(recipe, name, value)
    for fit in ("kinematics_fit", "codec_fit", "fit", "align"):
        recipe = changed(changed(recipe, f"world_model.{fit}.steps", 2), f"world_model.{fit}.batch_size", 4)
    shown = [make_episode(n, 8, success=(8,), spec=spec, source="expert") for n in range(3)]
    make_store(tmp_path / "store", [*shown, *(make_episode(n, 8, spec=spec, source="round-1") for n in range(3))], spec)
    with open_stage(recipe, tmp_path / "run", tmp_path / "store", quiet=True) as run:
        model = model_the_world(run, 1)
        first = first_frames_of(run.store.episodes(range(2)), spec)
        _, imagined = model.imagine(model.begin(first), torch.zeros(2, 4, 4), torch.Generator().manual_seed(0))
    stages = ("kinematics", "autoencoder", "denoiser", "kinematics_align-1", "denoiser_align-1")
    assert all((tmp_path / "run" / f"world_model_{stage}" / "model.safetensors").is_file() for stage in stages)
    assert list((tmp_path / "store/cache").glob("front-*.f16")), "latents were kept"
    assert model.decode(imagined)[0]["front"].shape == (2, 4, 3, 64, 64)


def test_unknown_recipe_names_the_closest() -> None:
    with pytest.raises(UserError, match="did you mean stack"):
        recipe_named("stac")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("grpo.groups", 0, "grpo.groups is 0; it must be at least 1"),
        ("grpo.group_size", 1, "at least 2"),
        ("grpo.micro_batch", 0, "grpo.micro_batch is 0; it must be at least 1"),
        ("grpo.iterations", -1, "at least 0"),
        ("grpo.lr", float("nan"), "finite"),
        ("grpo.temperature", 0.0, "above 0"),
        ("grpo.temperature", 1e-300, "at least 0.001"),
        ("evaluate.episodes", 65537, "at most 65536"),
        ("env.renderer", "crayon", "one of auto, egl, rays"),
        ("env.task", "plaice", "no task 'plaice'"),
        ("grpo.min_group_success", 0.95, "below grpo.max_group_success"),
        ("collect.episodes", -1, "collect.episodes is -1; it must be at least 0"),
        ("evaluate.time_factor", 0.5, "evaluate.time_factor is 0.5; it must be at least 1"),
        ("reward.threshold", "best", "one of calibrated, f1, rate, half"),
        ("grpo.lr_end", 1.5, "grpo.lr_end is 1.5; it must be at most 1"),
        ("grpo.epochs", 0, "grpo.epochs is 0; it must be at least 1"),
        ("grpo.kl_coef", -0.1, "grpo.kl_coef is -0.1; it must be at least 0"),
        ("policy.fit.steps", 0, "policy.fit.steps is 0"),
        ("world_model.align.lr", 0.0, "above 0"),
        ("world_model.fit.ema", 1.0, "at most 0.99"),
        ("policy.bins", 1, "at least 2"),
        ("evaluate.temperature", -1.0, "at least 0"),
        ("policy.width", 10, "multiple of 4"),
        ("world_model.width", 20, "multiple of 8"),
        ("reward.width", 12, "multiple of 8"),
    ],
)
def test_senseless_settings_are_told(field: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_recipe(changed(RECIPES["push"], field, value))


@pytest.mark.parametrize("threshold", ["rate", "half"])
def test_rates_need_rollouts(threshold: str) -> None:
    nothing = changed(RECIPES["push"], "collect.episodes", 0)
    check_recipe(nothing)
    with pytest.raises(UserError, match=f"threshold is {threshold}, which needs rollouts, but collect.episodes is 0"):
        check_recipe(changed(nothing, "reward.threshold", threshold))


def test_a_folder_keeps_its_recipe(tmp_path: Path) -> None:
    recipe = changed(RECIPES["smoke"], "grpo.iterations", 7)
    keep_recipe(recipe, tmp_path)
    assert load_recipe(tmp_path) == recipe
    keep_recipe(recipe, tmp_path)
    keep_recipe(changed(recipe, "env.workers", 1), tmp_path)  # changes no number
    for field, value in (("curves", "wandb"), ("env.timeout", 5.0), ("world_model.fit.fsdp", True),
                         ("world_model.compile", True), ("grpo.micro_batch", 1)):  # fmt: skip
        keep_recipe(changed(recipe, field, value), tmp_path)
    with pytest.raises(UserError, match=r"grpo.iterations = 7, not 8: .*--out"):
        keep_recipe(changed(recipe, "grpo.iterations", 8), tmp_path)
    assert load_recipe(tmp_path) == recipe


def test_a_family_with_a_default_of_its_own_leaves_a_setting_free(tmp_path: Path) -> None:
    recipe = replace(RECIPES["smoke"], env=LiberoSettings(timeout=600))
    keep_recipe(recipe, tmp_path)
    keep_recipe(replace(recipe, env=LiberoSettings(timeout=900)), tmp_path)
    assert not {"workers", "python", "timeout"} & numbers_of(recipe.env).keys()


def test_flat_names_every_field() -> None:
    names = flat(to_plain(RECIPES["push"]))
    assert names["world_model.align.lr"] == RECIPES["push"].world_model.align.lr
    assert "grpo" not in names and len(names) > 60


def test_settings_of_earlier_versions_are_refused_by_their_new_names() -> None:
    now = {name for recipe in RECIPES.values() for name in flat(to_plain(recipe))}
    for old, new in RENAMED.items():
        assert old not in now
        assert any(f".{new}." in f".{name}." for name in now), new
    assert new_name("world_model.body_fit.shares") == "world_model.kinematics_fit.cpu_shards"
    with pytest.raises(UserError, match=r"grpo\.target_kl was grpo\.trust"):
        recipe_from_plain({"name": "push", "grpo": {"trust": 0.5}}, "recipe.json")
    with pytest.raises(UserError, match=r"is now world_model\.codec_fit\.cpu_shards: use"):
        dispatch(["plan", "place", "--world-model.codec-fit.shares", "2"])


def test_settings_that_are_gone_are_refused_with_a_reason() -> None:
    now = {name for recipe in RECIPES.values() for name in flat(to_plain(recipe))}
    assert not any(why_gone(name) for name in now) and all(why_gone(f"x.{name}") == why for name, why in GONE.items())
    with pytest.raises(UserError, match=r"recipe.json .* had collect\.held_out; thresholds are cross-fitted now"):
        recipe_from_plain({"name": "push", "collect": {"held_out": 0.25}}, "recipe.json")
    for command in ("run push --out x --collect.held-out=0.5", "world-model --held_out 0.5"):
        with pytest.raises(UserError, match=r"held_out is gone: thresholds are cross-fitted now"):
            dispatch(command.split())
