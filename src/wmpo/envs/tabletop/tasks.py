"""The tasks: a sentence, a layout of objects, where they start, and when the task counts as accomplished.

push, place and stack share one layout and, for equal start numbers, equal initial states: only the sentence
says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wmpo.envs.tabletop.settings import BLOCKS, CUBE, PEG_HEIGHT, REACH, RING, RING_HALF_HEIGHT, TRAY_HEIGHT, ZONE
from wmpo.errors import UserError


@dataclass(frozen=True)
class View:
    """Where everything is: what success and the experts are computed from. Positions are (3,), metres."""

    grip: np.ndarray
    """The point between the fingertips."""
    opening: float
    """Distance of the fingers from the middle, 0 to OPENING."""
    things: dict[str, np.ndarray]
    """Object name -> position of its centre (for zone, tray and peg: on the table, below it)."""


Layout = dict[str, tuple[float, float]]
"""Object name -> initial x, y; "grip" too."""


@dataclass(frozen=True)
class Task:
    name: str
    instruction: str
    layout: str
    """Which scene: BLOCKS or RING."""
    skill: str
    """Which scripted expert: push, place (stack too) or insert."""
    thing: str
    """The object to move."""
    goal: str
    """Where to: another object."""
    rest: float
    """Height of the moved object's centre once it lies there."""
    tolerance: float
    """Largest distance along x and y between the object and the middle of the goal, in metres."""
    horizon: int
    """Longest episode, in actions."""

    def accomplished(self, view: View) -> bool:
        """Whether this frame alone looks accomplished: the object lies in its place and nothing holds it."""
        thing, goal = view.things[self.thing], view.things[self.goal]
        inside = bool(np.abs(thing[:2] - goal[:2]).max() <= self.tolerance)
        lies = abs(float(thing[2]) - self.rest) < 0.006
        if self.skill == "push":
            return inside and lies
        held = view.opening < 0.034 and abs(float(view.grip[2] - thing[2])) < 0.05
        return inside and lies and not held


def _blocks(name: str, instruction: str, skill: str, thing: str, goal: str, rest: float, tolerance: float) -> Task:
    return Task(name, instruction, BLOCKS, skill, thing, goal, rest, tolerance, horizon=32 if skill == "push" else 40)


def _coloured(colour: str, other: str, suffix: str) -> list[Task]:
    """The three tasks about cubes; the other cube is a distractor, or the one to stack upon."""
    return [
        _blocks(
            f"push{suffix}", f"push the {colour} cube onto the green zone", "push", colour, "zone", CUBE, ZONE - CUBE
        ),
        _blocks(
            f"place{suffix}",
            f"place the {colour} cube on the yellow tray",
            "place",
            colour,
            "tray",
            TRAY_HEIGHT + CUBE,
            0.035,
        ),
        _blocks(
            f"stack{suffix}", f"stack the {colour} cube on the {other} cube", "place", colour, other, 3 * CUBE, 0.022
        ),
    ]


TASKS: dict[str, Task] = {
    task.name: task
    for task in [
        *_coloured("red", "blue", ""),
        Task(
            "insert",
            "put the orange ring on the purple peg",
            RING,
            "insert",
            "ring",
            "peg",
            RING_HALF_HEIGHT,
            0.012,
            horizon=40,
        ),
        *_coloured("blue", "red", "-blue"),
    ]
}


def task_named(name: str) -> Task:
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}; choose one of {', '.join(TASKS)}.")
    return TASKS[name]


def _distance_to_segment(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    along = end - start
    share = np.clip(np.dot(point - start, along) / max(float(np.dot(along, along)), 1e-9), 0, 1)
    return float(np.linalg.norm(point - (start + share * along)))


def _way_is_clear(cube: np.ndarray, zone: np.ndarray, obstacles: list[tuple[np.ndarray, float]]) -> bool:
    """Whether the cube can be pushed straight to the zone, from behind it, past obstacles of given radii."""
    ahead = (zone - cube) / np.linalg.norm(zone - cube)
    return all(_distance_to_segment(point, cube - 0.07 * ahead, zone) > radius for point, radius in obstacles)


def _sample_blocks(rng: np.random.Generator, wide: bool) -> Layout | None:
    scale = 1.2 if wide else 1.0
    low, high = np.array([-0.165, -0.125]) * scale, np.array([0.165, 0.125]) * scale
    red, blue = rng.uniform(low, high), rng.uniform(low, high)
    zone = rng.uniform([-0.155, -0.115], [0.155, 0.115])
    tray = rng.uniform([-0.17, -0.13], [0.17, 0.15])
    outside = np.abs([red / high, blue / high]).max() > 1 / scale
    if wide and not outside:  # the disruption: some cube starts where none did in training
        return None
    for cube, other in ((red, blue), (blue, red)):
        apart = 0.12 < np.linalg.norm(cube - zone) < 0.30 and np.linalg.norm(cube - tray) > 0.105
        if not apart or not _way_is_clear(cube, zone, [(other, 0.078), (tray, 0.092)]):
            return None
    if np.abs(red - blue).max() < 0.115 or np.abs(tray - zone).max() < ZONE + 0.055:
        return None
    if tray[1] < zone[1] and abs(tray[0] - zone[0]) < 0.12:  # the tray would hide the zone from the front camera
        return None
    grip = rng.uniform([-0.12, -0.10], [0.12, 0.10])
    return {"red": _pair(red), "blue": _pair(blue), "zone": _pair(zone), "tray": _pair(tray), "grip": _pair(grip)}


def _sample_ring(rng: np.random.Generator, wide: bool) -> Layout | None:
    scale = 1.2 if wide else 1.0
    low, high = np.array([-0.16, -0.125]) * scale, np.array([0.16, 0.125]) * scale
    ring, peg, blue = rng.uniform(low, high), rng.uniform(low / scale, high / scale), rng.uniform(low, high)
    if wide and np.abs(ring / high).max() < 1 / scale:
        return None
    if np.abs(ring - peg).max() < 0.12 or np.abs(ring - blue).max() < 0.125 or np.abs(peg - blue).max() < 0.12:
        return None
    grip = rng.uniform([-0.12, -0.10], [0.12, 0.10])
    return {"ring": _pair(ring), "peg": _pair(peg), "blue": _pair(blue), "grip": _pair(grip)}


def _pair(point: np.ndarray) -> tuple[float, float]:
    return float(point[0]), float(point[1])


_SAMPLERS: dict[str, Callable[[np.random.Generator, bool], Layout | None]] = {
    BLOCKS: _sample_blocks,
    RING: _sample_ring,
}


def initial_layout(layout: str, start: int, wide: bool) -> Layout:
    """Where everything starts, for one start number; `wide` is the disruption of positions."""
    rng = np.random.default_rng([start, 1 if wide else 0])
    while True:
        drawn = _SAMPLERS[layout](rng, wide)
        if drawn is not None:
            return drawn


HOVER = 0.115  # height of the fingertips at the start, well above the cubes
assert REACH[2][0] < HOVER < REACH[2][1] and PEG_HEIGHT < HOVER
