"""Where the fingertips of an arm are, and which joints bring them somewhere."""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np

from wmpo.envs.aloha.settings import JOINTS

TIP = np.array([0.14, 0, 0])  # from the gripper's frame, along its fingers, to the place between their tips
DAMPING, ROUNDS, ENOUGH = 0.02, 30, 1e-4


class Pose(NamedTuple):
    place: np.ndarray
    """(3,) metres, of the place between the fingertips."""
    turned: np.ndarray
    """(3, 3) axes of the gripper in the world, as columns: along the fingers, across them, the third."""


class Arm:
    """Of one side; keeps nothing of the episode."""

    def __init__(self, model: mujoco.MjModel, side: str) -> None:
        self.model, self._scratch = model, mujoco.MjData(model)
        self._body = model.body(f"vx300s_{side}/gripper_link").id
        first = model.joint(f"vx300s_{side}/waist")
        self.joints = slice(first.qposadr[0], first.qposadr[0] + JOINTS)
        motor = model.actuator_trnid[:, 0].tolist().index(first.id)
        self.controls = slice(motor, motor + JOINTS)
        self._dofs = slice(first.dofadr[0], first.dofadr[0] + JOINTS)
        self._low, self._high = model.jnt_range[first.id : first.id + JOINTS].T.copy()
        self._jacobian = np.zeros((6, model.nv))

    def pose(self, data: mujoco.MjData) -> Pose:
        turned = data.xmat[self._body].reshape(3, 3).copy()
        return Pose(data.xpos[self._body] + turned @ TIP, turned)

    def pose_at(self, joints: np.ndarray) -> Pose:
        self._scratch.qpos[self.joints] = joints
        mujoco.mj_kinematics(self.model, self._scratch)
        mujoco.mj_comPos(self.model, self._scratch)
        return self.pose(self._scratch)

    def reach(self, joints: np.ndarray, goal: Pose) -> np.ndarray:
        """(6,) joints near to the given ones that bring the gripper to a pose, by damped least squares."""
        joints = joints.copy()
        for _ in range(ROUNDS):
            now = self.pose_at(joints)
            error = np.concatenate([goal.place - now.place, turn_between(now.turned, goal.turned)])
            if np.abs(error).max() < ENOUGH:
                break
            mujoco.mj_jac(self.model, self._scratch, self._jacobian[:3], self._jacobian[3:], now.place, self._body)
            J = self._jacobian[:, self._dofs]
            joints += J.T @ np.linalg.solve(J @ J.T + DAMPING**2 * np.eye(6), error)
            joints = np.clip(joints, self._low, self._high)
        return joints


def turn_between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(3,) rotation vector, in the world, that turns one (3, 3) into the other."""
    quaternion, turn = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quaternion, (other @ one.T).reshape(-1))
    mujoco.mju_quat2Vel(turn, quaternion, 1.0)
    return turn


def turned_by(one: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """(3, 3): `one`, turned by a rotation vector (3,) in the world."""
    quaternion, matrix = np.empty(4), np.empty(9)
    angle = float(np.linalg.norm(turn))
    mujoco.mju_axisAngle2Quat(quaternion, turn / max(angle, 1e-12), angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3) @ one
