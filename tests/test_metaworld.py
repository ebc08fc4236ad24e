"""The family metaworld, where MetaWorld is installed; what needs no MetaWorld is tried everywhere."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from wmpo.contracts import check_env
from wmpo.data.initial_states import initial_states
from wmpo.envs import make_env
from wmpo.envs.metaworld.settings import TASKS, MetaWorldSettings
from wmpo.envs.tabletop import display
from wmpo.errors import UserError
from wmpo.protocols import Demonstrates, Restorable

INSTALLED = find_spec("metaworld") is not None
needs_metaworld = pytest.mark.skipif(not INSTALLED, reason="needs MetaWorld: docs/metaworld.md")
needs_egl = pytest.mark.skipif(not display.egl_works(), reason="MetaWorld is drawn by EGL")
DRAWER = MetaWorldSettings(task="drawer-open-v3", image_size=32, workers=1)


def test_tasks_and_cameras_that_there_are_not() -> None:
    with pytest.raises(UserError, match="did you mean peg-insert-side-v3"):
        MetaWorldSettings(task="peg-insert-side").check()
    with pytest.raises(UserError, match="names a task twice"):
        MetaWorldSettings(task="push-v3+push-v3").check()
    with pytest.raises(UserError, match="different ones of front, wrist"):
        MetaWorldSettings(cameras=("corner9",)).check()


def test_every_task_has_a_sentence_of_its_own() -> None:
    assert len(TASKS) == 50 and len({task.instruction for task in TASKS.values()}) == 50


@pytest.mark.skipif(INSTALLED, reason="MetaWorld is installed")
def test_without_metaworld_one_sentence_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"needs metaworld: pip install 'wmpo\[metaworld\]'"):
        make_env(DRAWER)


@pytest.mark.skipif(INSTALLED, reason="MetaWorld is installed")
@needs_egl
def test_another_python_without_metaworld_is_named() -> None:
    with pytest.raises(UserError, match=r"can't be imported by .*: install it there"):
        make_env(MetaWorldSettings(python=sys.executable, workers=1))


@needs_metaworld
@needs_egl
def test_metaworld_keeps_the_contract_and_its_expert_succeeds() -> None:
    with closing(make_env(DRAWER)) as env:
        assert isinstance(env, Restorable) and isinstance(env, Demonstrates) and check_env(env) == []
        assert all(episode.succeeded for episode in env.demonstrate(initial_states("demonstrate", 7, 2), 0.2, 0))


@needs_metaworld
@needs_egl
def test_the_horizon_is_that_of_the_task_or_ones_own() -> None:
    for settings, horizon in ((DRAWER, TASKS["drawer-open-v3"].horizon), (replace(DRAWER, horizon=7), 7)):
        with closing(make_env(settings)) as env:
            assert env.spec.horizon == horizon


@needs_metaworld
def test_metaworld_has_these_tasks() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert set(TASKS) == set(ALL_V3_ENVIRONMENTS)


@needs_metaworld
def test_an_action_is_eight_steps_of_metaworld_and_restoring_is_exact() -> None:
    from wmpo.envs.metaworld.scene import MetaWorldScene

    ours, theirs = (MetaWorldScene("peg-insert-side-v3", 0) for _ in range(2))
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 4)) * [0.3, 0.3, 0.5, 1]
    ours.begin(5)  # another episode before must not matter
    ours.step(actions[0])
    for scene in (ours, theirs):
        scene.begin(3)
    middle = ours.save()
    for place, action in enumerate(actions):
        if place == 3:
            middle = ours.save()
            ours.expert()(1.0)  # thinks ahead, and leaves everything as it was
        ours.step(action)
        for _ in range(8):
            theirs.env.step(action)
        assert np.array_equal(ours.data.qpos, theirs.data.qpos)
    ours.begin(9)  # moves the box, which is part of the model
    ours.load(middle)
    for action in actions[3:]:
        ours.step(action)
    assert np.array_equal(ours.data.qpos, theirs.data.qpos) and np.array_equal(ours.data.qvel, theirs.data.qvel)
    assert np.array_equal(ours.model.body_pos, theirs.model.body_pos)


@needs_metaworld
@needs_egl
def test_corner_cameras_are_upright() -> None:
    with closing(make_env(DRAWER)) as env:
        image = env.reset([0]).images["front"][0].float()
    # The table is below, brown; behind it is a grey wall.
    top, bottom = image[:, :6].mean((1, 2)), image[:, -6:, 12:28].mean((1, 2))
    assert (top.max() - top.min()) < 30 < (bottom[0] - bottom[2]), (top, bottom)
    assert torch.isfinite(image).all()
