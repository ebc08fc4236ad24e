"""The arm's controller: operational space control of a Panda (Khatib 1987), with the gains of robosuite's OSC_POSE.

An action says how far the hand should move and turn from where it is, and whether it opens or closes. Torques follow
from it at every time step of the physics, and agree with robosuite's up to rounding.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from wmpo.envs.libero.settings import CONTROL

KP, JOINT_KP = 150.0, 10.0
KD, JOINT_KD = 2 * np.sqrt(KP), 2 * np.sqrt(JOINT_KP)
MOVE, TURN = 0.05, 0.5  # metres and radians that an action of 1 asks for
FINGER_SPEED = 0.01  # of its range [-1, 1] that the gripper's command moves in a time step


class Arm:
    """Moves the arm in `data`. What it remembers beside the physics is `memory()`."""

    def __init__(self, robot: Any, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """`robot`: robosuite's, after its reset."""
        self.model, self.data = model, data
        controller = robot.controller
        self.site = model.site(controller.eef_name).id
        self.hand = model.body(robot.robot_model.eef_name).id
        self._qpos, self._dofs = np.array(controller.qpos_index), np.array(controller.qvel_index)
        self._rest = np.array(controller.initial_joint)
        self._turned_at_rest = np.array(controller.initial_ee_ori_mat)
        self.fingers = np.array(robot._ref_gripper_joint_pos_indexes)
        self._open = np.array(robot.gripper.init_qpos)
        pads = robot.gripper.important_geoms
        one, two = (data.geom_xpos[model.geom(pads[f"{side}_fingerpad"][0]).id] for side in ("left", "right"))
        self._closing = int(np.abs(self.turned.T @ (one - two)).argmax())
        self._motors = np.array(robot._ref_joint_actuator_indexes)
        self._low, self._high = model.actuator_ctrlrange[self._motors].T.copy()
        self._finger_motors = np.array(robot._ref_joint_gripper_actuator_indexes)
        low, high = model.actuator_ctrlrange[self._finger_motors].T
        self._middle, self._half = (high + low) / 2, (high - low) / 2
        self._substeps = int(1 / CONTROL / model.opt.timestep + 1e-9)
        self._jacobian = np.zeros((6, model.nv))
        self._mass = np.zeros((model.nv, model.nv))
        self._mass_of_data = _mass_reader(model, data, self._mass)
        self._grip, self._turned = np.zeros(2), self._turned_at_rest.copy()

    def rest(self) -> None:
        """The pose in which episodes begin."""
        self.data.qpos[self._qpos], self.data.qpos[self.fingers] = self._rest, self._open

    def begin(self) -> None:
        """Forget what was before."""
        self._grip, self._turned = np.zeros(2), self._turned_at_rest.copy()

    def memory(self) -> np.ndarray:
        """(11,): the gripper's command, and how the hand is to be turned."""
        return np.concatenate([self._grip, self._turned.reshape(-1)])

    def remember(self, memory: np.ndarray) -> None:
        self._grip, self._turned = memory[:2].copy(), memory[2:].reshape(3, 3).copy()

    @property
    def position(self) -> np.ndarray:
        """(3,) of the point between the fingertips."""
        return np.array(self.data.site_xpos[self.site])

    @property
    def turned(self) -> np.ndarray:
        """(3, 3): its axes in the world, as columns."""
        return np.array(self.data.site_xmat[self.site]).reshape(3, 3)

    @property
    def closing(self) -> np.ndarray:
        """(2,) the horizontal direction along which the fingers close."""
        axis = self.turned[:2, self._closing]
        return axis / max(float(np.linalg.norm(axis)), 1e-9)

    def state(self) -> np.ndarray:
        """(9,) float32: position, quaternion (x, y, z, w) of the hand, and how far each finger is out."""
        w, x, y, z = self.data.xquat[self.hand]
        sign = 1.0 if x > 0 else -1.0  # it points down, where x is near 1 or -1, which mean the same
        quaternion = sign * np.array([x, y, z, w])
        return np.concatenate([self.position, quaternion, self.data.qpos[self.fingers]]).astype(np.float32)

    def step(self, action: np.ndarray) -> None:
        """One step of the controller, a twentieth of a second. `action`: (7,) in [-1, 1]."""
        model, data = self.model, self.data
        action = np.clip(np.asarray(action, np.float64), -1, 1)
        goal: np.ndarray | None = None
        for _ in range(self._substeps):
            mujoco.mj_step1(model, data)
            if goal is None:
                goal = self.position + MOVE * action[:3]
                if action[3:6].any():
                    self._turned = rotation(TURN * action[3:6]) @ self.turned
            data.ctrl[self._motors] = np.clip(self._torques(goal), self._low, self._high)
            self._grip = np.clip(self._grip + np.array([-1, 1]) * FINGER_SPEED * np.sign(action[6]), -1, 1)
            data.ctrl[self._finger_motors] = self._middle + self._half * self._grip
            mujoco.mj_step2(model, data)

    def _torques(self, goal: np.ndarray) -> np.ndarray:
        data, dofs = self.data, self._dofs
        mujoco.mj_jacSite(self.model, data, self._jacobian[:3], self._jacobian[3:], self.site)
        J = self._jacobian[:, dofs]
        self._mass_of_data()
        M = self._mass[np.ix_(dofs, dofs)]
        velocity, joint_velocity = self._jacobian @ data.qvel, data.qvel[dofs]
        towards = self._turned @ self.turned.T
        error = 0.5 * np.array(
            [towards[2, 1] - towards[1, 2], towards[0, 2] - towards[2, 0], towards[1, 0] - towards[0, 1]]
        )
        force = KP * (goal - data.site_xpos[self.site]) - KD * velocity[:3]
        torque = KP * error - KD * velocity[3:]
        inertia = J @ np.linalg.solve(M, J.T)  # inverse of the hand's own
        wrench = np.concatenate([np.linalg.solve(inertia[:3, :3], force), np.linalg.solve(inertia[3:, 3:], torque)])
        # The seventh joint is free: it draws towards the pose at rest, as far as the hand doesn't feel it.
        posture = JOINT_KP * (self._rest - data.qpos[self._qpos]) - JOINT_KD * joint_velocity
        unfelt = M @ posture - J.T @ np.linalg.solve(inertia, J @ posture)
        return J.T @ wrench + data.qfrc_bias[dofs] + unfelt


def _mass_reader(model: mujoco.MjModel, data: mujoco.MjData, result: np.ndarray) -> Any:
    """What writes the mass matrix to `result`: MuJoCo has changed how that is called."""
    try:
        mujoco.mj_fullM(model, result, data.qM)
    except TypeError:
        return lambda: mujoco.mj_fullM(model, data, result)
    return lambda: mujoco.mj_fullM(model, result, data.qM)


def rotation(turn: np.ndarray) -> np.ndarray:
    """(3, 3) matrix of a rotation vector (3,)."""
    quaternion, matrix = np.empty(4), np.empty(9)
    angle = float(np.linalg.norm(turn))
    mujoco.mju_axisAngle2Quat(quaternion, turn / max(angle, 1e-12), angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)
