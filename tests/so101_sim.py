"""An arm with an SO-101's joints over the embedded tabletop: five in degrees, the gripper from 0 to 100.

Its lengths are invented, and only the hand is drawn: what counts is that data and commands look as LeRobot's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from wmpo.envs.tabletop import display

os.environ.update({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"} if display.egl_works() else {})

import mujoco

from wmpo.envs.tabletop.env import TabletopEnv
from wmpo.envs.tabletop.experts import STRIDE, Noise, act
from wmpo.envs.tabletop.settings import FPS, OPENING, REACH

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
HEIGHT, WIDTH = 480, 640
_BEHIND, _SHOULDER, _LINK, _HAND = 0.50, 0.12, 0.42, 0.10  # m; the base is behind the table, the hand points down


def joints_of(tip: np.ndarray, opening: float) -> np.ndarray:
    """(6,) of fingertips at x, y, z."""
    x, y, z = tip
    reach, height = np.hypot(x, y + _BEHIND), z + _HAND - _SHOULDER
    pan, far = np.degrees(np.arctan2(x, y + _BEHIND)), np.hypot(reach, height)
    rise = np.degrees(np.arctan2(height, reach) + np.arccos(far / 2 / _LINK))
    bend = 2 * np.degrees(np.arcsin(far / 2 / _LINK))
    return np.array([pan, 60 - rise, 90 - bend, rise + bend - 180, -pan, 100 * opening / OPENING], np.float32)


def tip_of(joints: np.ndarray) -> tuple[np.ndarray, float]:
    """(x, y, z of the fingertips, their opening); the wrist does nothing."""
    pan, rise, bend = np.radians([joints[0], 60 - joints[1], 90 - joints[2]])
    far = 2 * _LINK * np.sin(bend / 2)
    slope = rise - np.arccos(np.clip(far / 2 / _LINK, -1, 1))
    reach, z = far * np.cos(slope), far * np.sin(slope) - _HAND + _SHOULDER
    low, high = np.transpose(REACH)
    tip = np.clip([reach * np.sin(pan), reach * np.cos(pan) - _BEHIND, z], low, high)
    return tip, float(np.clip(joints[5] / 100, 0, 1)) * OPENING


@dataclass
class Operator:
    """Who holds the leader arm: the scripted expert, now and then one who aims beside the goal."""

    noise: float = 0.3
    miss: float = 0.0
    """How far beside, in m."""
    seed: int = 0


class Arm:
    """In the time of its calls: `step` moves by a frame."""

    def __init__(self, task: str = "push", fps: int = 30) -> None:
        self.env = TabletopEnv(task=task, image_size=WIDTH)
        self.fps = fps
        self.renderer = mujoco.Renderer(self.env.model, HEIGHT, WIDTH)
        self.option = mujoco.MjvOption()
        self.option.geomgroup[3] = 0
        self.reset(0)

    def reset(self, number: int, operator: Operator | None = None) -> None:
        self.env.restart(number)
        self.operator = operator or Operator()
        rng = np.random.default_rng([self.operator.seed, number, 7])
        self.noise, self.pace = Noise(self.operator.noise, rng), rng.uniform(0.6, 1.0)
        angle = rng.uniform(0, 2 * np.pi)
        self.beside = self.operator.miss * np.array([np.cos(angle), np.sin(angle), 0])
        self.noise_rng = np.random.default_rng([number, 8])
        self.frame, self.since = 0, 0
        self.leader = self.state()

    @property
    def instruction(self) -> str:
        return self.env.instruction()

    def state(self) -> np.ndarray:
        slides = self.env.data.qpos[self.env._slides]
        return joints_of(slides[:3], float(slides[3] + slides[4]) / 2)

    def images(self) -> dict[str, np.ndarray]:
        """With a sensor's noise."""
        found = {}
        for camera in ("front", "wrist"):
            self.renderer.update_scene(self.env.data, camera, self.option)
            self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            grain = self.noise_rng.integers(-3, 4, (HEIGHT, WIDTH, 1), dtype=np.int16)
            found[camera] = np.clip(self.renderer.render() + grain, 0, 255).astype(np.uint8)
        return found

    def lead(self) -> np.ndarray:
        """(6,) where the operator holds the leader arm now."""
        if self.frame % (self.fps // FPS) == 0:
            view = self.env.view()
            goal = view.things[self.env.task.goal]
            view.things[self.env.task.goal] = goal + self.beside
            action = self.noise.disturb(act(self.env.task, view, self.pace))
            low, high = np.transpose(REACH)
            self.begin = view.grip.copy()
            self.goal = np.clip(view.grip + STRIDE * action[:3], low, high)
            self.fingers = OPENING * (1 - float(action[3])) / 2
        share = (self.frame % (self.fps // FPS) + 1) * FPS / self.fps
        return joints_of(self.begin + share * (self.goal - self.begin), self.fingers)

    def step(self, goal: np.ndarray) -> None:
        """Towards these joints for a frame."""
        data, model = self.env.data, self.env.model
        tip, opening = tip_of(goal)
        data.ctrl[:3], data.ctrl[3:] = tip, opening
        model.opt.disableflags = 0
        self.frame += 1
        while data.time < self.frame / self.fps + 40 * model.opt.timestep:  # those of the reset
            mujoco.mj_step(model, data)
        self.env._refresh()
        self.since = self.since + 1 if self.env.task.accomplished(self.env.view()) else 0

    @property
    def succeeded(self) -> bool:
        """Half a second long."""
        return self.since >= self.fps // 2
