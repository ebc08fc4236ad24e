"""The family aloha, where gym-aloha is installed; what needs no gym-aloha is tried everywhere."""

from __future__ import annotations

from contextlib import closing
from importlib.util import find_spec

import numpy as np
import pytest

from wmpo.contracts import check_env
from wmpo.data.initial_states import initial_states
from wmpo.envs import make_env
from wmpo.envs.aloha.settings import ACTION_DIM, HIGH, LOW, AlohaSettings
from wmpo.envs.tabletop import display
from wmpo.errors import UserError
from wmpo.protocols import Demonstrates, NamesTasks, Restorable

INSTALLED = find_spec("gym_aloha") is not None
needs_aloha = pytest.mark.skipif(not INSTALLED, reason="needs gym-aloha: pip install 'wmpo[aloha]'")
needs_egl = pytest.mark.skipif(not display.egl_works(), reason="gym-aloha is drawn by EGL")


def test_tasks_and_cameras_that_there_are_not() -> None:
    with pytest.raises(UserError, match="did you mean insertion"):
        AlohaSettings(task="insert").check()
    with pytest.raises(UserError, match="different ones of top, angle"):
        AlohaSettings(cameras=("main",)).check()


@pytest.mark.skipif(INSTALLED, reason="gym-aloha is installed")
def test_without_aloha_one_sentence_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"needs gym_aloha: pip install 'wmpo\[aloha\]'"):
        make_env(AlohaSettings())


@needs_aloha
@needs_egl
def test_aloha_keeps_the_contract_and_its_experts_succeed() -> None:
    config = AlohaSettings(task="insertion+transfer-cube", image_size=32, workers=1)
    with closing(make_env(config)) as env:
        assert isinstance(env, Restorable) and isinstance(env, Demonstrates) and check_env(env) == []
        assert isinstance(env, NamesTasks)
        numbers = initial_states("demonstrate", 7, 4)
        assert {env.task_of(number) for number in numbers} == {"insertion", "transfer-cube"}
        assert sum(episode.succeeded for episode in env.demonstrate(numbers, 0.2, 0)) >= 3


@needs_aloha
def test_bounds_joints_and_grippers_are_those_of_the_model() -> None:
    from wmpo.envs.aloha.scene import scene

    playing = scene("transfer-cube")
    playing.begin(1)
    model = playing.model
    for side, arm in enumerate(playing.arms):
        bounds = np.array([LOW, HIGH])[:, 7 * side : 7 * side + 6]
        assert np.allclose(model.actuator_ctrlrange[arm.controls].T, bounds)
    action = playing.state()
    assert action.shape == (ACTION_DIM,)
    action[[0, 3, 6]] += 0.3, 0.2, 0.5  # waist, forearm and gripper of the left arm
    action[7] -= 1.2  # beyond 1 radian, which gym-aloha's own box would cut
    for _ in range(12):
        playing.step(action)
    assert np.abs(playing.state() - action)[[0, 3, 7]].max() < 0.02 and abs(playing.state()[6] - action[6]) < 0.1


@needs_aloha
def test_inverse_kinematics_reach_a_pose() -> None:
    from wmpo.envs.aloha.arm import turn_between
    from wmpo.envs.aloha.expert import DOWN
    from wmpo.envs.aloha.scene import scene

    playing = scene("insertion")
    playing.begin(1)
    for arm, x, turned in zip(playing.arms, (-0.15, 0.15), DOWN, strict=True):
        goal = arm.pose(playing.data)._replace(place=np.array([x, 0.55, 0.1]), turned=turned)
        found = arm.pose_at(arm.reach(playing.commanded(arm), goal))
        assert np.abs(found.place - goal.place).max() < 1e-3
        assert np.abs(turn_between(found.turned, turned)).max() < 1e-2
