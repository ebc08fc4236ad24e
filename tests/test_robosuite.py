"""The family robosuite, where WMPO_ROBOSUITE_PYTHON is an interpreter that has it; else what needs no robosuite."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

import wmpo
from wmpo.contracts import check_env
from wmpo.data.initial_states import initial_states
from wmpo.envs import make_env
from wmpo.envs.robosuite.settings import RobosuiteSettings
from wmpo.envs.tabletop import display
from wmpo.errors import UserError
from wmpo.protocols import Demonstrates, NamesTasks, Restorable

PYTHON = os.environ.get("WMPO_ROBOSUITE_PYTHON", "")
needs_robosuite = pytest.mark.skipif(not PYTHON, reason="needs WMPO_ROBOSUITE_PYTHON: docs/robosuite.md")
needs_egl = pytest.mark.skipif(not display.egl_works(), reason="robosuite is drawn by EGL")
SMALL = RobosuiteSettings(task="lift+stack", image_size=32, workers=1, python=PYTHON)


def test_tasks_and_cameras_that_there_are_not() -> None:
    with pytest.raises(UserError, match="did you mean stack"):
        RobosuiteSettings(task="stak").check()
    with pytest.raises(UserError, match="different ones of front, wrist"):
        RobosuiteSettings(cameras=("agentview",)).check()


@pytest.mark.skipif(find_spec("robosuite") is not None, reason="robosuite is installed")
@needs_egl
def test_a_python_without_robosuite_is_named() -> None:
    with pytest.raises(UserError, match=r"robosuite 1\.5 can't be imported by .*: install it there"):
        make_env(replace(SMALL, python=sys.executable))


@needs_robosuite
@needs_egl
def test_it_keeps_the_contract_and_its_experts_succeed() -> None:
    with closing(make_env(SMALL)) as env:
        assert isinstance(env, Restorable) and isinstance(env, Demonstrates) and check_env(env) == []
        assert isinstance(env, NamesTasks)
        numbers = initial_states("demonstrate", 7, 4)
        assert {env.task_of(number) for number in numbers} == {"lift", "stack"}
        assert all(episode.succeeded for episode in env.demonstrate(numbers, 0.2, 0))


@needs_robosuite
@needs_egl
def test_the_square_nut_is_mostly_put_on_its_peg() -> None:
    with closing(make_env(replace(SMALL, task="square"))) as env:
        episodes = env.demonstrate(initial_states("demonstrate", 7, 6), 0.2, 0)
        assert sum(episode.succeeded for episode in episodes) >= 4


@needs_robosuite
def test_a_step_is_four_of_robosuites_and_restoring_is_exact() -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path(wmpo.__file__).parents[1])}  # wmpo isn't installed there
    done = subprocess.run([PYTHON, "-c", STEPS], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.split() == ["equal"] * 2


STEPS = """
import numpy as np
from wmpo.envs.robosuite.scene import RobosuiteScene
ours, theirs = RobosuiteScene("stack", 0), RobosuiteScene("stack", 0)
actions = np.random.default_rng(0).uniform(-1, 1, (6, 7))
ours.begin(5)  # another episode before must not matter
ours.step(actions[0])
ours.begin(3)
theirs.begin(3)
for place, action in enumerate(actions):
    if place == 3:
        middle = ours.save()
    ours.step(action)
    for _ in range(4):
        theirs.env.step(action)
print("equal" if np.array_equal(ours.data.qpos, theirs.data.qpos) else "different")
ours.begin(9)
ours.load(middle)
for action in actions[3:]:
    ours.step(action)
print("equal" if np.array_equal(ours.data.qpos, theirs.data.qpos) else "different")
"""
