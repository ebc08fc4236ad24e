"""Scripted experts: waypoints of the hand, computed anew for every action from where things are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import mujoco
import numpy as np

if TYPE_CHECKING:
    from wmpo.envs.robosuite.scene import RobosuiteScene

REACH, TURN = 0.12, 0.8  # metres and radians that the hand moves by in an action of 1, about
OPEN, CLOSED = -1.0, 1.0
UPRIGHT = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # axes of a hand that points down
ABOVE = np.array([0, 0, 0.08])
ON_CUBE = np.array([0, 0, 0.047])  # from the middle of the cube below to that of the one above
THREADED = 0.02  # metres below the tip of a peg at which a nut is let go
LOST = 0.05  # metres that a thing may be from where it was held
CLOSE, INSIST = 0.03, 0.3  # metres; share of what is missing that is added at each action
COAST = 0.8  # how much farther it goes by itself, in movements of the last action
STEADY = 0.006  # metres that a hand at rest moves in an action, at most
ALIGNED = 0.15  # radians at which the hand counts as turned
PATIENCE = 10  # actions after which a waypoint counts as reached


class Waypoint(NamedTuple):
    place: np.ndarray
    """(3,) where the point between the fingertips should be."""
    yaw: float
    """How far the hand should be turned about the vertical, in radians."""
    finger: float
    near: float
    """Metres at which it counts as reached."""
    wait: int = 1
    """Actions that it takes at least."""


class Expert:
    """Acts in one episode of a scene, from its first state on. A thing that is lost on the way is grasped again."""

    def __init__(self, scene: RobosuiteScene) -> None:
        self.scene = scene
        task = scene.task
        self.thing, self.place = THINGS[task](scene)
        self.path = [self.above, self.down, self.close, self.up, self.carry, self.lower, self.open, self.away]
        if task == "lift":
            self.path = self.path[:4]
        self._phase = self._waited = 0
        self._before = scene.position
        self._lead = np.zeros(3)
        """What is added to a short way, which friction would end too soon."""
        self._held = np.zeros(3)
        """Where the hand was, seen from the thing, when it closed."""

    def act(self, pace: float) -> np.ndarray:
        """(7,) in [-1, 1]. `pace` in (0, 1] slows every movement of the hand."""
        here = self.scene.position
        coasting = here - self._before
        if self.path[self._phase] in (self.carry, self.lower) and self._lost():
            self._go_on(0)
        while True:
            waypoint = self.path[self._phase]()
            error, turn = waypoint.place - here, self._turn_to(waypoint.yaw)
            steady = np.linalg.norm(coasting) < max(waypoint.near, STEADY)
            near = steady and np.linalg.norm(error) < waypoint.near and np.linalg.norm(turn) < ALIGNED
            over = self._waited >= waypoint.wait and (near or self._waited * pace > PATIENCE)
            if not over or self._phase + 1 == len(self.path):
                break
            if self.path[self._phase] == self.close:
                self._held = here - self.thing.middle
            stuck = self.path[self._phase] == self.lower and not near
            self._go_on(self._phase + (-1 if stuck else 1))
        self._waited, self._before = self._waited + 1, here
        if np.abs(error).max() < CLOSE:
            self._lead += INSIST * error
        move = np.clip((error + self._lead - COAST * coasting) / REACH, -1, 1)
        return np.concatenate([pace * move, pace * np.clip(turn / TURN, -1, 1), [waypoint.finger]])

    def _go_on(self, phase: int) -> None:
        self._phase, self._waited, self._lead = phase, 0, np.zeros(3)

    # Phases

    def above(self) -> Waypoint:
        return Waypoint(self.thing.handle + ABOVE, self.across, OPEN, 0.03)

    def down(self) -> Waypoint:
        return Waypoint(self.thing.handle, self.across, OPEN, 0.008)

    def close(self) -> Waypoint:
        return Waypoint(self.thing.handle, self.across, CLOSED, 1.0, wait=2)

    def up(self) -> Waypoint:
        height = max(self.scene.position[2], self.place[2] + self._offset[2] + ABOVE[2])
        start = self.scene.position
        return Waypoint(np.array([start[0], start[1], height]), self._yaw, CLOSED, 0.03)

    def carry(self) -> Waypoint:
        return Waypoint(self.place + self._offset + ABOVE, self.fitting, CLOSED, 0.005)

    def lower(self) -> Waypoint:
        return Waypoint(self.place + self._offset, self.fitting, CLOSED, 0.01)

    def open(self) -> Waypoint:
        return Waypoint(self.scene.position, self._yaw, OPEN, 1.0, wait=2)

    def away(self) -> Waypoint:
        return Waypoint(self.place + self._held + ABOVE, self._yaw, OPEN, 0.0)

    # What they need

    @property
    def _yaw(self) -> float:
        x, y = self.scene.turned[:2, 0]
        return _within(np.arctan2(y, x) - np.pi / 2, 2 * np.pi)

    @property
    def _offset(self) -> np.ndarray:
        """(3,) from the thing to the hand."""
        return self.scene.position - self.thing.middle

    @property
    def across(self) -> float:
        """The yaw at which the fingers close on the thing."""
        axes = self.thing.turned[:2, :2].T
        closing = axes[1] if self.thing.handled else axes[int(np.abs(axes @ self.scene.turned[:2, 0]).argmax())]
        return _within(np.arctan2(closing[1], closing[0]) - np.pi / 2, np.pi)

    @property
    def fitting(self) -> float:
        """The yaw at which what is held is turned as its goal is, and nearer to the arm than that: it can't reach
        beyond."""
        if not self.thing.handled:
            return self._yaw
        x, y = self.thing.turned[:2, 0]
        handle = np.arctan2(y, x)
        turns = [yaw - self._yaw for yaw in (-np.pi / 2, 0, np.pi / 2)]
        return self._yaw + min((turn for turn in turns if np.cos(handle + turn) < 0.5), key=abs)

    def _lost(self) -> bool:
        return bool(np.linalg.norm(self._offset) > np.linalg.norm(self._held) + LOST)

    def _turn_to(self, yaw: float) -> np.ndarray:
        """(3,) rotation vector to a hand that points down and is turned by `yaw`."""
        c, s = np.cos(yaw), np.sin(yaw)
        wanted = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ UPRIGHT
        quaternion, vector = np.empty(4), np.empty(3)
        mujoco.mju_mat2Quat(quaternion, (wanted @ self.scene.turned.T).reshape(-1))
        mujoco.mju_quat2Vel(vector, quaternion, 1.0)
        return vector


def _within(angle: float, period: float) -> float:
    """The same angle in [-period / 2, period / 2)."""
    return float((angle + period / 2) % period - period / 2)


class Thing:
    """What is moved."""

    def __init__(self, scene: RobosuiteScene, body: str, handle: str = "") -> None:
        """`handle`: the site where it is held, across its second axis; else it is a cube, held in its middle."""
        self._data, self._body = scene.data, scene.model.body(body).id
        self._handle = scene.model.site(handle).id if handle else -1
        self.handled = bool(handle)

    @property
    def middle(self) -> np.ndarray:
        return np.array(self._data.xpos[self._body])

    @property
    def turned(self) -> np.ndarray:
        return np.array(self._data.xmat[self._body]).reshape(3, 3)

    @property
    def handle(self) -> np.ndarray:
        return np.array(self._data.site_xpos[self._handle]) if self._handle >= 0 else self.middle


def lift(scene: RobosuiteScene) -> tuple[Thing, np.ndarray]:
    cube = Thing(scene, "cube_main")
    return cube, cube.middle


def stack(scene: RobosuiteScene) -> tuple[Thing, np.ndarray]:
    return Thing(scene, "cubeA_main"), Thing(scene, "cubeB_main").middle + ON_CUBE


def square(scene: RobosuiteScene) -> tuple[Thing, np.ndarray]:
    return Thing(scene, "SquareNut_main", "SquareNut_handle_site"), _on(scene, "peg1")


def _on(scene: RobosuiteScene, peg: str) -> np.ndarray:
    """(3,) a little below the tip of a peg: from there a nut falls."""
    body = scene.model.body(peg).id
    [shape, *_] = np.flatnonzero(scene.model.geom_bodyid == body)
    return np.array(scene.data.geom_xpos[shape] + [0, 0, scene.model.geom_size[shape][2] - THREADED])


THINGS = {"lift": lift, "stack": stack, "square": square}
"""What is moved, and where its middle should be, (3,)."""
