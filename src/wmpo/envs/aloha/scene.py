"""One task of gym-aloha, stepped, saved and restored. The loop is ours: its own draws three large pictures a step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mujoco
import numpy as np

from wmpo.envs.aloha.arm import Arm
from wmpo.envs.aloha.expert import EXPERTS, Expert
from wmpo.envs.aloha.settings import CONTROL, JOINTS, REPEAT, TASKS
from wmpo.errors import UserError

_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
SUCCESS = 4  # the reward that gym-aloha calls a success


class AlohaScene:
    """gym-aloha's environment of a task, which all episodes of a process share, each as a snapshot."""

    def __init__(self, task: str) -> None:
        aloha = _import_aloha()
        self.task, self._aloha = task, aloha
        made = aloha.env.AlohaEnv(TASKS[task].name)._env
        self._rules, self._physics = made.task, made.physics
        self.model: mujoco.MjModel = made.physics.model.ptr
        self.data: mujoco.MjData = made.physics.data.ptr
        self.model.vis.quality.offsamples = 0
        self.arms = tuple(Arm(self.model, side) for side in ("left", "right"))
        self._substeps = round(1 / CONTROL / self.model.opt.timestep)

    def begin(self, initial_state: int) -> None:
        """Place the objects by gym-aloha's own rules; equal numbers give equal places."""
        env = self._aloha.env
        poses = env.sample_box_pose if self.task == "transfer-cube" else env.sample_insertion_pose
        env.BOX_POSE[0] = np.concatenate(np.atleast_2d(poses(initial_state)))
        self._rules.initialize_episode(self._physics)

    def step(self, action: np.ndarray) -> bool:
        """Move all joints evenly to where the action (14,) wants them; whether the reward is that of success now."""
        model, data = self.model, self.data
        before, after = data.ctrl.copy(), self._controls(action)
        for part in range(1, REPEAT + 1):
            data.ctrl[:] = before + (after - before) * part / REPEAT
            mujoco.mj_step(model, data, self._substeps)
        mujoco.mj_fwdPosition(model, data)  # positions and contacts as of now; changes nothing that the next step uses
        return bool(self._rules.get_reward(self._physics) == SUCCESS)

    def _controls(self, action: np.ndarray) -> np.ndarray:
        """(16,) of an action: each gripper has two fingers, which move against one another."""
        controls = []
        for arm in np.split(np.asarray(action, np.float64), 2):
            finger = self._aloha.constants.unnormalize_puppet_gripper_position(arm[JOINTS])
            controls.append(np.append(arm[:JOINTS], [finger, -finger]))
        return np.concatenate(controls)

    def state(self) -> np.ndarray:
        """(14,) joints in radians and how far each gripper is open, as actions are."""
        return np.asarray(self._rules.get_qpos(self._physics))

    def commanded(self, arm: Arm) -> np.ndarray:
        """(6,) where the joints of an arm are to be by now."""
        return self.data.ctrl[arm.controls].copy()

    def place_of(self, body: str) -> np.ndarray:
        """(3,) of one of the things."""
        return self.data.body(body).xpos.copy()

    def expert(self) -> Callable[[float], np.ndarray]:
        return Expert(self, EXPERTS[self.task]).act

    def save(self) -> np.ndarray:
        physics = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS))
        mujoco.mj_getState(self.model, self.data, physics, _PHYSICS)
        return physics

    def load(self, saved: np.ndarray) -> None:
        mujoco.mj_setState(self.model, self.data, saved, _PHYSICS)
        mujoco.mj_fwdPosition(self.model, self.data)


def _import_aloha() -> Any:
    try:
        import gym_aloha.constants
        import gym_aloha.env
    except ImportError as error:
        raise UserError(
            f"gym-aloha can't be imported by {sys.executable} ({error}): install it there, as docs/aloha.md shows."
        ) from error
    return gym_aloha


@lru_cache(maxsize=4)
def scene(task: str) -> AlohaScene:
    """Shared by all episodes of a process."""
    return AlohaScene(task)
