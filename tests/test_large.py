"""The presets for large GPUs fit as they say, and small copies of them take what is planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_map_only

from wmpo.cli import planning
from wmpo.cli.planning import plan
from wmpo.envs import make_env
from wmpo.recipes import RECIPES
from wmpo.types import EnvSpec

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("diffusers")

from scaled import publish, scaled  # needs all
from test_ranks import ROOT, torchrun, weights

MEMORY = {"large-24gb": 24, "large-80gb": 80, "paper": 80}  # GB
PRESETS = pytest.mark.parametrize("name", MEMORY)
CPU = torch.device("cpu")


def spec_of(name: str, pixels: int = 0) -> EnvSpec:
    env = RECIPES[name].env
    env = replace(env, workers=0, renderer="rays", **({"image_size": pixels} if pixels else {}))
    with closing(make_env(env)) as made:
        return made.spec


@PRESETS
def test_each_stage_fits(name: str) -> None:
    needs = plan(RECIPES[name], spec_of(name))
    assert {need.stage: need.total for need in needs if need.total > 1e9 * MEMORY[name]} == {}
    whole, shared = (sum(need.hours(100.0, gpus) for need in needs) for gpus in (1, 64))
    assert 10 < whole / shared <= 64
    single = [need for need in needs if need.parts == 1]  # what one process does while the others wait
    assert sum(need.hours(100.0) for need in single) < 0.05 * whole


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def as_on_a_gpu(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Where products are in bfloat16, a GPU computes norms in float32, as plans count them; a CPU would not."""

    def whole(*given: Any, **named: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            given, named = tree_map_only(Tensor, Tensor.float, (given, named))
        return norm(*given, **named)

    return whole


NORMS = {name: as_on_a_gpu(getattr(F, name)) for name in ("layer_norm", "group_norm")}


def measured(mode: AbstractContextManager[Any], work: Callable[[], object], networks: Any = ()) -> SimpleNamespace:
    """Bytes allocated and not yet freed at the fullest moment, by torch's profiler."""
    with mode, patch.multiple(F, **NORMS):
        work()  # what is made once and kept
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            work()
    running = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            running += event.nbytes()
            most = max(most, running)
    return SimpleNamespace(peak=most, flop=0)


@PRESETS
def test_a_small_copy_takes_what_is_planned(name: str, tmp_path: Path) -> None:
    spec = replace(spec_of(name, 64), max_batch=4)
    recipe = scaled(name, publish(name, spec, tmp_path / "published"))
    world: Any = recipe.world_model
    recipe = replace(recipe, world_model=replace(world, compile=False))  # which holds less than what is planned
    foreseen = plan(recipe, spec)
    with patch.multiple(planning, META=CPU, blank=zeros, go_through=measured):
        taken = plan(recipe, spec)
    # of activations, since weights and the optimiser's state are counted alike in both
    rows = [(one.stage, one.activations / other.activations) for one, other in zip(foreseen, taken, strict=True)]
    print(name, [(one.stage, one.activations, other.activations) for one, other in zip(foreseen, taken, strict=True)])
    assert all(0.8 < ratio < 1.25 for _, ratio in rows), rows


@pytest.mark.slow
@PRESETS
def test_two_processes_go_through_a_small_copy(name: str, tmp_path: Path) -> None:
    """They share the weights of every training, and compile their dreams."""
    publish(name, spec_of(name, 64), tmp_path / "published")
    done = torchrun(2, str(ROOT / "tests" / "scaled.py"), str(tmp_path), name, timeout=1800)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["recipe"]["world_model"]["fit"]["fsdp"] and result["recipe"]["world_model"]["compile"]
    base, practised = (weights(tmp_path / "run" / "policies" / name) for name in ("base", "wmpo-1"))
    assert base.keys() == practised.keys() and any(not torch.equal(base[name], practised[name]) for name in base)
