"""A scripted expert that puts one thing on or into another.

It reads the scene: how wide the thing is tells whether to grasp all of it or its rim. Phases follow one another: above
it, down, close, up, above the goal, down, open, up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import mujoco
import numpy as np

if TYPE_CHECKING:
    from wmpo.envs.libero.scene import LiberoScene


REACH, TURN = 0.05, 0.5  # metres and radians that the hand moves by in an action of 1, about
WIDEST = 0.072  # metres between the fingers
ABOVE = 0.10  # metres over the place to grasp, or to let go
DROP = 0.01  # how high above its goal a thing is let go
LOST = 0.06  # how far a thing may slip in the hand
PATIENCE = 12  # actions after which a waypoint counts as reached
DEEP = 0.03  # how far below the top of a thing the fingertips hold it
OPEN, CLOSED = -1.0, 1.0


class Grasp(NamedTuple):
    place: np.ndarray
    """(3,) of the point between the fingertips."""
    yaw: float
    """How far the hand turns about the vertical."""


class Waypoint(NamedTuple):
    place: np.ndarray
    yaw: float
    finger: float
    near: float
    """Metres at which it counts as reached."""
    wait: int
    """Actions that it takes at least."""


class Expert:
    """Acts in one episode of a scene, from its first state on."""

    def __init__(self, scene: LiberoScene) -> None:
        self.scene = scene
        [[_, thing, goal]] = scene.libero.parsed_problem["goal_state"]
        self.thing, self.goal = _body(scene, thing), _place(scene, goal)
        self.closing = scene.arm.closing
        self._aim()

    def _aim(self) -> None:
        """Begin with where the thing is now."""
        points = _points(self.scene, self.thing)
        self.grasp = grasp(points, self.closing)
        # Where the hand will be, seen from the middle of the thing's underside.
        self.held = self.grasp.place - np.append((points.min(0) + points.max(0))[:2] / 2, points[:, 2].min())
        self.phase = self.waited = 0

    def act(self, pace: float = 1.0) -> np.ndarray:
        """(7,) in [-1, 1]. `pace` in (0, 1] slows every movement of the hand."""
        arm = self.scene.arm
        if self.phase in (4, 5) and self._lost():
            self._aim()
        path = self._path()
        while self.phase + 1 < len(path):
            target = path[self.phase]
            near = np.abs(target.place - arm.position).max() < target.near
            if self.waited < target.wait or not (near or self.waited > PATIENCE):
                break
            self.phase, self.waited = self.phase + 1, 0
        self.waited += 1
        target = path[self.phase]
        action = np.zeros(7)
        action[:3] = pace * np.clip((target.place - arm.position) / REACH, -1, 1)
        action[5] = pace * np.clip((target.yaw - _angle(self.closing, arm.closing)) / TURN, -1, 1)
        action[6] = target.finger
        return action

    def _path(self) -> list[Waypoint]:
        place, yaw = self.grasp
        there, up = self.goal + self.held, np.array([0, 0, ABOVE])
        drop = there + np.array([0, 0, DROP])
        carry = max(place[2], there[2]) + ABOVE
        return [
            Waypoint(place + up, yaw, OPEN, 0.03, 1),
            Waypoint(place, yaw, OPEN, 0.008, 1),
            Waypoint(place, yaw, CLOSED, 1.0, 3),
            Waypoint(np.append(place[:2], carry), yaw, CLOSED, 0.04, 1),
            Waypoint(np.append(there[:2], carry), yaw, CLOSED, 0.02, 1),
            Waypoint(drop, yaw, CLOSED, 0.012, 1),
            Waypoint(drop, yaw, OPEN, 1.0, 3),
            Waypoint(there + up, yaw, OPEN, 0.0, 1),
        ]

    def _lost(self) -> bool:
        """Whether the thing is no longer in the hand."""
        points = _points(self.scene, self.thing)
        middle = np.append((points.min(0) + points.max(0))[:2] / 2, points[:, 2].min())
        return bool(np.linalg.norm(self.scene.arm.position - self.held - middle) > LOST)


def grasp(points: np.ndarray, across: np.ndarray) -> Grasp:
    """Where to hold a thing whose surface has these points (N, 3), by fingers that now close along `across` (2,)."""
    low, high = points.min(0), points.max(0)
    best = (np.inf, 0.0, 0.0)
    for yaw in np.radians(np.arange(-45, 46, 5)):
        along = points[:, :2] @ _turn(across, yaw)
        width = float(along.max() - along.min())
        best = min(best, (round(width, 3), abs(float(yaw)), float(yaw)))
    width, _, yaw = best
    height = max(high[2] - DEEP, low[2] + 0.012)
    if width <= WIDEST:
        closing = _turn(across, yaw)
        aside = np.array([-closing[1], closing[0]])
        middle = sum(
            axis * ((points[:, :2] @ axis).max() + (points[:, :2] @ axis).min()) / 2 for axis in (closing, aside)
        )
        return Grasp(np.append(middle, height), yaw)
    middle = (low[:2] + high[:2]) / 2
    along = (points[:, :2] - middle) @ across
    rim = float(along.max()) - 0.004
    return Grasp(np.append(middle + across * rim, max(high[2] - 0.02, low[2] + 0.012)), 0.0)


def _turn(vector: np.ndarray, yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1]])


def _angle(one: np.ndarray, other: np.ndarray) -> float:
    """From one direction (2,) to another, in radians."""
    return float(np.arctan2(one[0] * other[1] - one[1] * other[0], one @ other))


def _body(scene: LiberoScene, name: str) -> int:
    return int(scene.model.body(scene.libero.objects_dict[name].root_body).id)


def _place(scene: LiberoScene, name: str) -> np.ndarray:
    """(3,) the middle of what things are put on or into, and the height of its ground."""
    if name in scene.libero.objects_dict:
        points = _points(scene, _body(scene, name))
        middle = (points.min(0) + points.max(0)) / 2
        return np.append(middle[:2], points[:, 2].max())
    site = scene.model.site(name).id
    return np.array(scene.data.site_xpos[site])


def _points(scene: LiberoScene, body: int) -> np.ndarray:
    """(N, 3) points on the surface of what collides of a body and its parts, in the world."""
    model, data = scene.model, scene.data
    found = []
    for geom in np.flatnonzero((model.body_rootid[model.geom_bodyid] == body) & (model.geom_contype != 0)):
        size, kind = model.geom_size[geom], model.geom_type[geom]
        if kind == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = model.geom_dataid[geom]
            first = model.mesh_vertadr[mesh]
            local = model.mesh_vert[first : first + model.mesh_vertnum[mesh]].astype(np.float64)
        else:
            half = {mujoco.mjtGeom.mjGEOM_CYLINDER: size[[0, 0, 1]], mujoco.mjtGeom.mjGEOM_SPHERE: size[[0, 0, 0]]}
            box = half.get(kind, size)
            local = box * np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        found.append(local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
    return np.concatenate(found)
