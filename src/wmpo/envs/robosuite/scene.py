"""One task of robosuite, stepped, saved and restored."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import mujoco
import numpy as np

from wmpo.envs.lighten import lighten
from wmpo.envs.robosuite.expert import Expert
from wmpo.envs.robosuite.settings import CONTROL, REPEAT, TASKS
from wmpo.envs.shared_scene import hide, refresh
from wmpo.errors import UserError

_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
COLLISION = 0  # group of what robosuite collides with, and does not show
STILL = np.array([0, 0, 0, 0, 0, 0, -1.0])
SETTLE = 5  # actions without moving in which what robosuite lets fall comes to rest


class Snapshot(NamedTuple):
    """All that an episode's future depends on; restoring it continues bit for bit. The arm's goal is not among it:
    every step of the controller begins with a new one."""

    physics: np.ndarray
    gripper: np.ndarray
    """Where the fingers have been told to be; a command moves that by a fifth of its range a step."""
    posture: np.ndarray
    """Joints as the episode began, to which the arm draws as far as the hand doesn't feel it."""


class RobosuiteScene:
    """robosuite's environment of a task, which all episodes of a process share, each as a snapshot."""

    def __init__(self, task: str, faces: int) -> None:
        env = self.env = _make(TASKS[task].name)
        self.task, self.robot = task, env.robots[0]
        self.model: mujoco.MjModel = env.sim.model._model
        self.data: mujoco.MjData = env.sim.data._data
        self.model.vis.quality.offsamples = 0
        hide(self.model, COLLISION)
        if faces:
            lighten(self.model, faces)
        [arm] = self.robot.arms
        self._arm = arm
        self._gripper = self.robot.gripper[arm]
        self._site = self.robot.eef_site_id[arm]
        self._fingers = np.array(self.robot._ref_gripper_joint_pos_indexes[arm])

    def begin(self, initial_state: int) -> None:
        """Draw an initial state by robosuite's own rules; equal numbers give equal ones."""
        self.env.rng.bit_generator.state = np.random.default_rng(initial_state).bit_generator.state
        self.env.reset()
        self._gripper.current_action = np.zeros(2)
        for _ in range(SETTLE):
            self.step(STILL)

    def step(self, action: np.ndarray) -> bool:
        """Execute an action (7,) for 4 steps of the controller; whether robosuite calls it a success now."""
        sim = self.env.sim
        for _ in range(REPEAT):
            for substep in range(round(self.env.control_timestep / self.env.model_timestep)):
                sim.step1()
                self.robot.control(action, policy_step=substep == 0)
                sim.step2()
        refresh(self.model, self.data)
        return bool(self.env._check_success())

    @property
    def _controller(self) -> Any:
        """A new one after each reset."""
        return self.robot.part_controllers[self._arm]

    @property
    def position(self) -> np.ndarray:
        """(3,) of the point between the fingertips, in metres."""
        return np.array(self.data.site_xpos[self._site])

    @property
    def turned(self) -> np.ndarray:
        """(3, 3) its axes in the world, as columns; the fingers close along the first."""
        return np.array(self.data.site_xmat[self._site]).reshape(3, 3)

    def state(self) -> np.ndarray:
        """(9,) position and quaternion (w, x, y, z; x not negative) of the hand, and how far each finger is out."""
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, self.data.site_xmat[self._site])
        quaternion *= 1.0 if quaternion[1] >= 0 else -1.0  # it points down, where x is near 1 or -1: the same
        return np.concatenate([self.position, quaternion, self.data.qpos[self._fingers]])

    def expert(self) -> Callable[[float], np.ndarray]:
        return Expert(self).act

    def save(self) -> Snapshot:
        physics = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS))
        mujoco.mj_getState(self.model, self.data, physics, _PHYSICS)
        return Snapshot(physics, np.array(self._gripper.current_action), np.array(self._controller.initial_joint))

    def load(self, snapshot: Snapshot) -> None:
        mujoco.mj_setState(self.model, self.data, snapshot.physics, _PHYSICS)
        self._gripper.current_action = snapshot.gripper.copy()
        self._controller.initial_joint = snapshot.posture.copy()
        refresh(self.model, self.data)


def _make(name: str) -> Any:
    """The environment, without its cameras, in an interpreter that has robosuite."""
    # It warns of parts that a Panda doesn't have, and sets its own level when it is imported.
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        import robosuite
        from robosuite.controllers import load_composite_controller_config
    except ImportError as error:
        raise UserError(
            f"robosuite 1.5 can't be imported by {sys.executable} ({error}): install it there, as docs/robosuite.md "
            "shows."
        ) from error
    return robosuite.make(
        name,
        robots="Panda",
        controller_configs=load_composite_controller_config(controller="BASIC", robot="Panda"),
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        hard_reset=False,
        ignore_done=True,
        control_freq=CONTROL,
        seed=0,  # how large the cube of lift is
    )


@lru_cache(maxsize=16)
def scene(task: str, faces: int) -> RobosuiteScene:
    """Shared by all episodes of a process."""
    return RobosuiteScene(task, faces)
