"""The family mimicgen, where WMPO_MIMICGEN is a checkout of MimicGen and WMPO_MIMICGEN_PYTHON has robosuite 1.4; else
what needs neither."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

import wmpo
from wmpo.contracts import check_env
from wmpo.envs import demonstrator, make_env
from wmpo.envs.mimicgen.settings import TASKS, MimicGenSettings
from wmpo.envs.tabletop import display
from wmpo.errors import UserError
from wmpo.protocols import NamesTasks, Restorable

CHECKOUT, PYTHON = os.environ.get("WMPO_MIMICGEN", ""), os.environ.get("WMPO_MIMICGEN_PYTHON", "")
needs_mimicgen = pytest.mark.skipif(
    not CHECKOUT or not PYTHON, reason="needs WMPO_MIMICGEN and WMPO_MIMICGEN_PYTHON: docs/mimicgen.md"
)
needs_egl = pytest.mark.skipif(not display.egl_works(), reason="MimicGen is drawn by EGL")


def test_tasks_and_cameras_that_there_are_not() -> None:
    with pytest.raises(UserError, match="did you mean Coffee_D0"):
        MimicGenSettings(task="Cofee_D0").check()
    with pytest.raises(UserError, match="different ones of front, wrist"):
        MimicGenSettings(cameras=("agentview",)).check()


def test_a_folder_without_mimicgen(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no mimicgen/envs/robosuite: give the folder of a checkout"):
        make_env(MimicGenSettings(checkout=str(tmp_path)))


@pytest.mark.skipif(find_spec("robosuite") is not None, reason="robosuite is installed")
@needs_egl
def test_a_python_without_robosuite_is_named() -> None:
    with pytest.raises(UserError, match=r"robosuite 1\.4 can't be imported by .*: install it there"):
        make_env(MimicGenSettings(python=sys.executable))


@needs_mimicgen
@needs_egl
def test_it_keeps_the_contract_and_has_no_expert() -> None:
    settings = MimicGenSettings(
        checkout=CHECKOUT, python=PYTHON, task="Coffee_D0+StackThree_D0", image_size=32, workers=1
    )
    with closing(make_env(settings)) as env:
        assert isinstance(env, Restorable) and isinstance(env, NamesTasks) and check_env(env) == []
        assert (env.spec.fps, env.spec.horizon, env.spec.state_dim) == (20, 400, 9)
        with pytest.raises(UserError, match="has no scripted expert"):
            demonstrator(env, "mimicgen")


@needs_mimicgen
@pytest.mark.parametrize("task", TASKS)
def test_steps_are_robosuites_and_restoring_is_exact(task: str) -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path(wmpo.__file__).parents[1])}  # wmpo isn't installed there
    done = subprocess.run(
        [PYTHON, "-c", STEPS, task, CHECKOUT], capture_output=True, text=True, check=True, env=environ
    )
    assert done.stdout.split()[-3:] == ["equal"] * 3


STEPS = """
import sys
import numpy as np
from wmpo.envs.mimicgen.scene import MimicGenScene

def told(one, other):
    print("equal" if np.array_equal(one, other) else "different")

ours, theirs = (MimicGenScene(*sys.argv[1:], 4, 0) for _ in range(2))
actions = np.random.default_rng(0).uniform(-1, 1, (6, 7))
actions[4, 3:6] = 0  # the hand keeps how it was told to be turned
ours.begin(5)  # another episode before must not matter
ours.step(actions[0])
ours.begin(3)
theirs.begin(3)
for place, action in enumerate(actions):
    if place == 4:
        middle = ours.save()
    ours.step(action)
    for _ in range(4):
        theirs.env.step(action)
told(ours.data.qpos, theirs.data.qpos)
ours.begin(9)
ours.load(middle)
for action in actions[4:]:
    ours.step(action)
told(ours.data.qpos, theirs.data.qpos)
theirs.load(theirs.save())  # robosuite tells positions of one time step ago
seen = theirs.env._get_observations(force_update=True)
told(ours.state(), np.concatenate([seen[f"robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos")]))
"""
