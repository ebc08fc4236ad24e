"""Scripted experts: waypoints of both grippers, and inverse kinematics that lead there.

What is commanded now, not what has been reached, moves towards the waypoint, so that the arms lag evenly; where things
must fit, the distance of the things themselves is made up for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wmpo.envs.aloha.arm import Pose, turn_between, turned_by

if TYPE_CHECKING:
    from wmpo.envs.aloha.scene import AlohaScene

SPEED, TURN = 0.035, 0.35  # metres and radians that a gripper moves by in an action, at most
NEAR = 0.012  # metres at which a waypoint counts as reached
PATIENCE = 15  # actions after which it does anyway
OPEN, CLOSED = 1.0, 0.0
ABOVE, AWAY = np.array([0, 0, 0.08]), np.array([0.08, 0, 0.06])


def about(axis: int, degrees: float) -> np.ndarray:
    return turned_by(np.eye(3), np.radians(degrees) * np.eye(3)[axis])


PITCH = 60.0  # degrees by which the fingers point down when they grasp
DOWN = (about(1, PITCH), about(2, 180) @ about(1, PITCH))  # left and right
LYING = about(0, 90)  # the left gripper level, its fingers one above the other


class Waypoint(NamedTuple):
    """Of one gripper."""

    place: np.ndarray
    turned: np.ndarray
    grip: float


class Step(NamedTuple):
    """Of both grippers: it is over when both are there, after `wait` actions at least."""

    left: Waypoint
    right: Waypoint
    wait: int = 1
    near: float = NEAR


Path = list[Callable[[], Step]]
"""Each step is computed anew for every action of it."""


class Expert:
    """Acts in one episode of a scene, from its first state on."""

    def __init__(self, scene: AlohaScene, plan: Callable[[AlohaScene], Path]) -> None:
        self._scene, self._path = scene, plan(scene)
        self._phase = self._waited = 0

    def act(self, pace: float = 1.0) -> np.ndarray:
        """(14,) where the joints should be. `pace` in (0, 1] slows every movement of the arms."""
        scene = self._scene
        while True:
            step = self._path[self._phase]()
            far = max(
                float(np.linalg.norm(waypoint.place - arm.pose(scene.data).place))
                for arm, waypoint in zip(scene.arms, step[:2], strict=True)
            )
            over = self._waited >= step.wait and (far < step.near or self._waited * pace > PATIENCE)
            if not over or self._phase + 1 == len(self._path):
                break
            self._phase, self._waited = self._phase + 1, 0
        self._waited += 1
        action = []
        for arm, waypoint in zip(scene.arms, step[:2], strict=True):
            joints = scene.commanded(arm)
            now = arm.pose_at(joints)
            goal = Pose(
                now.place + _at_most(waypoint.place - now.place, SPEED * pace),
                turned_by(now.turned, _at_most(turn_between(now.turned, waypoint.turned), TURN * pace)),
            )
            action.append(np.append(arm.reach(joints, goal), waypoint.grip))
        return np.concatenate(action)


def _at_most(vector: np.ndarray, length: float) -> np.ndarray:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-12))


def always(step: Step) -> Callable[[], Step]:
    return lambda: step


def hand_over(scene: AlohaScene) -> Path:
    """The right arm lifts the cube and holds it out, the left one takes it."""
    cube = scene.place_of("box")
    rest = Waypoint(*scene.arms[0].pose(scene.data), OPEN)
    meet = np.array([0, 0.5, 0.25])
    cube_at = np.append(cube[:2], 0.025)  # it still falls when the episode begins
    ready, taking = (Waypoint(meet - np.array([before, 0, 0]), LYING, OPEN) for before in (0.1, 0.004))

    def right(place: np.ndarray, grip: float) -> Waypoint:
        return Waypoint(place, DOWN[1], grip)

    steps = [
        Step(rest, right(cube_at + ABOVE, OPEN), near=0.02),
        Step(rest, right(cube_at, OPEN)),
        Step(rest, right(cube_at, CLOSED), wait=3, near=1.0),
        Step(ready, right(meet, CLOSED)),
        Step(taking, right(meet, CLOSED)),
        Step(taking._replace(grip=CLOSED), right(meet, CLOSED), wait=4, near=1.0),
        Step(taking._replace(grip=CLOSED), right(meet, OPEN), wait=3, near=1.0),
        Step(taking._replace(grip=CLOSED), right(meet + AWAY, OPEN)),
    ]
    return [always(step) for step in steps]


def insert(scene: AlohaScene) -> Path:
    """Each arm lifts its part, and the peg is pushed into the socket until it meets the pin."""
    places = [np.append(scene.place_of(name)[:2], height) for name, height in (("socket", 0.024), ("peg", 0.016))]
    lifted = [np.array([-0.1, 0.5, 0.2]), np.array([0.12, 0.5, 0.2])]

    def both(where: list[np.ndarray], grip: float, wait: int = 1, near: float = NEAR) -> Step:
        left, right = (Waypoint(place, turned, grip) for place, turned in zip(where, DOWN, strict=True))
        return Step(left, right, wait, near)

    def joined(apart: float) -> Callable[[], Step]:
        """The middle of the peg so far beside that of the socket, and as high."""

        def step() -> Step:
            error = scene.place_of("socket") - scene.place_of("peg")
            error[0] += apart
            arm = scene.arms[1]
            place = arm.pose_at(scene.commanded(arm)).place + 0.5 * error
            near = NEAR if np.abs(error).max() < 0.006 else 0.0
            return Step(Waypoint(lifted[0], DOWN[0], CLOSED), Waypoint(place, DOWN[1], CLOSED), near=near * 2)

        return step

    fixed = [
        both([place + ABOVE for place in places], OPEN, near=0.02),
        both(places, OPEN),
        both(places, CLOSED, wait=3, near=1.0),
        both(lifted, CLOSED),
    ]
    return [*map(always, fixed), joined(0.14), joined(0.09)]


EXPERTS: Mapping[str, Callable[[AlohaScene], Path]] = {"transfer-cube": hand_over, "insertion": insert}
