"""One task of MimicGen, in robosuite 1.4, stepped, saved and restored."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import mujoco
import numpy as np

from wmpo.envs.lighten import lighten
from wmpo.envs.mimicgen.settings import CONTROL
from wmpo.envs.shared_scene import hide, refresh
from wmpo.errors import UserError

_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
COLLISION = 0  # group of what robosuite collides with, and does not show
STILL = np.array([0, 0, 0, 0, 0, 0, -1.0])
SETTLE = 20  # steps of the controller in which what is let fall comes to rest


class Snapshot(NamedTuple):
    """All that an episode's future depends on; restoring it continues bit for bit."""

    physics: np.ndarray
    gripper: np.ndarray
    """Where the fingers have been told to be; a command moves that."""
    turned: np.ndarray
    """How the hand is to be turned: an action that doesn't turn it leaves that."""
    posture: np.ndarray
    """Joints as the episode began, to which the arm draws as far as the hand doesn't feel it."""


class MimicGenScene:
    """MimicGen's environment of a task, which all episodes of a process share, each as a snapshot."""

    def __init__(self, task: str, checkout: str, repeat: int, faces: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints which of its tasks lack something
            self.env = _make(task, checkout)
            self.env.reset()
        self.model: mujoco.MjModel = self.env.sim.model._model
        self.data: mujoco.MjData = self.env.sim.data._data
        self.model.vis.quality.offsamples = 0
        hide(self.model, COLLISION)
        if faces:
            lighten(self.model, faces)
        self.robot, self._repeat = self.env.robots[0], repeat
        self._hand = self.model.body(self.robot.robot_model.eef_name).id
        self._fingers = np.array(self.robot._ref_gripper_joint_pos_indexes)

    def begin(self, initial_state: int) -> None:
        """Draw an initial state by MimicGen's own rules; equal numbers give equal ones."""
        before = np.random.get_state()
        np.random.seed(initial_state)  # robosuite 1.4 draws from NumPy's global generator
        try:
            self.env.reset()
        finally:
            np.random.set_state(before)
        self.robot.gripper.current_action = np.zeros(2)
        for _ in range(SETTLE):
            self._control(STILL)
        refresh(self.model, self.data)

    def step(self, action: np.ndarray) -> bool:
        """Execute an action (7,) for some steps of the controller; whether MimicGen calls it a success now."""
        for _ in range(self._repeat):
            self._control(action)
        refresh(self.model, self.data)
        return bool(self.env._check_success())

    def _control(self, action: np.ndarray) -> None:
        """What a step of robosuite's is, without its observations."""
        sim = self.env.sim
        for substep in range(int(self.env.control_timestep / self.env.model_timestep)):
            sim.forward()
            self.robot.control(action, policy_step=substep == 0)
            sim.step()

    def state(self) -> np.ndarray:
        """(9,) position and quaternion (x, y, z, w) of the hand, and how far each finger is out, as in data sets:
        `robot0_eef_pos`, `robot0_eef_quat`, `robot0_gripper_qpos`."""
        w, x, y, z = self.data.xquat[self._hand]
        position, fingers = self.data.site_xpos[self.robot.eef_site_id], self.data.qpos[self._fingers]
        return np.concatenate([position, [x, y, z, w], fingers])

    def expert(self) -> Callable[[float], np.ndarray]:
        raise NotImplementedError("MimicGen has no scripted experts")

    def save(self) -> Snapshot:
        physics = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS))
        mujoco.mj_getState(self.model, self.data, physics, _PHYSICS)
        controller = self.robot.controller
        return Snapshot(
            physics,
            np.array(self.robot.gripper.current_action),
            np.array(controller.goal_ori),
            np.array(controller.initial_joint),
        )

    def load(self, snapshot: Snapshot) -> None:
        mujoco.mj_setState(self.model, self.data, snapshot.physics, _PHYSICS)
        self.robot.gripper.current_action = snapshot.gripper.copy()
        controller = self.robot.controller
        controller.goal_ori, controller.initial_joint = snapshot.turned.copy(), snapshot.posture.copy()
        controller.new_update = True  # what it last read of the physics was another episode's
        refresh(self.model, self.data)


def _make(task: str, checkout: str) -> Any:
    """The environment, without its cameras, in an interpreter that has robosuite 1.4."""
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    if checkout and checkout not in sys.path:
        sys.path.insert(0, checkout)
    try:
        import robosuite
        from robosuite.controllers import load_controller_config
    except ImportError as error:
        raise UserError(
            f"robosuite 1.4 can't be imported by {sys.executable} ({error}): install it there, as docs/mimicgen.md "
            "shows."
        ) from error
    try:
        import mimicgen.envs.robosuite.single_arm_env_mg  # noqa: F401  registers all tasks that can be imported
    except ImportError as error:
        raise UserError(
            f"MimicGen can't be imported by {sys.executable} ({error}): set env.checkout to the folder of a checkout "
            "of its repository (docs/mimicgen.md); the package mimicgen of PyPI is something else."
        ) from error
    return robosuite.make(
        task,
        robots="Panda",
        controller_configs=load_controller_config(default_controller="OSC_POSE"),
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,  # slow, and nobody looks at it
        hard_reset=False,
        ignore_done=True,
        control_freq=CONTROL,
    )


@lru_cache(maxsize=16)
def scene(task: str, checkout: str, repeat: int, faces: int) -> MimicGenScene:
    """Shared by all episodes of a process."""
    return MimicGenScene(task, checkout, repeat, faces)
