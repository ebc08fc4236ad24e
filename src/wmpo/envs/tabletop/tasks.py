"""The tasks: a sentence, a layout of objects, where they start, and when the task counts as accomplished.

push, place and stack share one layout and, for equal initial-state numbers, equal initial states: only the sentence
says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wmpo.envs.tabletop.settings import BLOCKS, CUBE, PEG_HEIGHT, REACH, RING, RING_HALF_HEIGHT, TRAY, TRAY_HEIGHT, ZONE
from wmpo.errors import UserError

NUDGE = "nudge"  # the object moves away as soon as the hand is above it
SLIP = "slip"  # it drops out of the hand on the way up


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
    paraphrases: tuple[str, ...]
    """Other sentences for the same, that nothing is ever trained on."""
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
    """Largest distance along x and y between the object and the middle of the goal, in metres: as far as it can lie
    there, so that success is seen."""
    noise: float
    """Factor on the noise of demonstrations: a task that needs precision bears less."""
    horizon: int
    """Longest episode, in actions: at least twice what a clean attempt takes, so that there is time to try again."""
    aim: float = 0.0
    """How near to the middle of the goal an expert brings it before letting go; 0: the tolerance."""
    disturbance: str = ""
    """What befalls the object in half of the episodes, once: NUDGE, SLIP or nothing."""

    def accomplished(self, view: View) -> bool:
        """Whether this frame alone looks accomplished: the object lies in its place and nothing holds it."""
        thing, goal = view.things[self.thing], view.things[self.goal]
        x, y, _ = (thing - goal).tolist()
        inside = max(abs(x), abs(y)) <= self.tolerance
        lies = abs(float(thing[2]) - self.rest) < 0.006
        if self.skill == "push":
            return inside and lies
        held = view.opening < 0.034 and abs(float(view.grip[2] - thing[2])) < 0.05
        return inside and lies and not held


def _blocks(
    name: str,
    sentences: tuple[str, ...],
    skill: str,
    thing: str,
    goal: str,
    rest: float,
    tolerance: float,
    horizon: int,
    aim: float = 0.0,
    disturbance: str = "",
) -> Task:
    """`sentences`: the one to train on, then its paraphrases."""
    first, *others = sentences
    return Task(
        name, first, tuple(others), BLOCKS, skill, thing, goal, rest, tolerance, noise=1.0, horizon=horizon,
        aim=aim, disturbance=disturbance,
    )  # fmt: skip


def _coloured(colour: str, other: str, suffix: str) -> list[Task]:
    """The three tasks about cubes; the other cube is a distractor, or the one to stack upon."""
    return [
        _blocks(
            f"push{suffix}",
            (
                f"push the {colour} cube onto the green zone",
                f"slide the {colour} block over to the green square",
                f"move the {colour} box into the green area",
                f"the {colour} cube belongs in the green zone, push it there",
            ),
            "push",
            colour,
            "zone",
            CUBE,
            ZONE - CUBE,
            horizon=32,
        ),
        _blocks(
            f"place{suffix}",
            (
                f"place the {colour} cube on the yellow tray",
                f"put the {colour} block onto the yellow tray",
                f"set the {colour} box down on the yellow platform",
                f"pick up the {colour} cube and lay it on top of the yellow tray",
            ),
            "place",
            colour,
            "tray",
            TRAY_HEIGHT + CUBE,
            TRAY,
            horizon=48,
            aim=0.035,
            disturbance=NUDGE,
        ),
        _blocks(
            f"stack{suffix}",
            (
                f"stack the {colour} cube on the {other} cube",
                f"put the {colour} block on top of the {other} block",
                f"build a tower with the {colour} cube above the {other} one",
                f"on the {other} box, set down the {colour} box",
            ),
            "place",
            colour,
            other,
            3 * CUBE,
            CUBE,
            horizon=56,
            aim=0.022,
            disturbance=SLIP,
        ),
    ]


TASKS: dict[str, Task] = {
    task.name: task
    for task in [
        *_coloured("red", "blue", ""),
        Task(
            "insert",
            "put the orange ring on the purple peg",
            (
                "slide the orange hoop over the purple pin",
                "fit the orange ring around the purple post",
                "the purple peg should go through the orange ring",
            ),
            RING,
            "insert",
            "ring",
            "peg",
            RING_HALF_HEIGHT,
            0.012,
            noise=0.5,
            horizon=120,
        ),
        *_coloured("blue", "red", "-blue"),
    ]
}


def task_named(name: str) -> Task:
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}; choose one of {', '.join(TASKS)}.")
    return TASKS[name]


def tasks_named(names: str) -> tuple[Task, ...]:
    """One task, or several of one layout, joined by +: place+stack. Which one an episode is about, its start tells."""
    tasks = tuple(task_named(name) for name in names.split("+"))
    if len({task.layout for task in tasks}) > 1 or len(set(tasks)) < len(tasks):
        raise UserError(f"The tasks {names!r} don't go together: name different ones that share their objects.")
    return tasks


def task_of(tasks: tuple[Task, ...], start: int) -> Task:
    """The task of the episode with this initial-state number: by lot, since what is held out is every n-th number."""
    return tasks[0] if len(tasks) == 1 else tasks[int(np.random.default_rng([start, 2]).integers(len(tasks)))]


def sentence_of(task: Task, start: int, paraphrased: bool) -> str:
    """The instruction of the episode that begins there: the task's sentence, or one of its paraphrases, by lot."""
    if not paraphrased:
        return task.instruction
    return task.paraphrases[int(np.random.default_rng([start, 3]).integers(len(task.paraphrases)))]


Points = dict[str, np.ndarray]
"""Object name -> (n, 2), for n candidate layouts at once."""

_WIDER = 0.2  # by this part the disruption of positions stretches the range of the objects


def _range(rng: np.random.Generator, x: float, y: float) -> np.ndarray:
    """(_TRIES, 2) points with |x| and |y| up to these, in metres."""
    return rng.uniform([-x, -y], [x, y], (_TRIES, 2))


def _gap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) distances along the axis on which they are farther apart: what keeps boxes from overlapping."""
    return np.abs(first - second).max(1)


def _distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.linalg.norm(first - second, axis=1)


def _distance_to_way(point: np.ndarray, cube: np.ndarray, zone: np.ndarray) -> np.ndarray:
    """(n,) distances of a point from the way of a cube that is pushed straight to the zone, the pusher included."""
    ahead = (zone - cube) / _distance(zone, cube)[:, None]
    start = cube - 0.07 * ahead
    along = ((point - start) * ahead).sum(1).clip(0, _distance(zone, start))
    return _distance(point, start + along[:, None] * ahead)


def _blocks_layouts(rng: np.random.Generator, wide: float) -> tuple[Points, np.ndarray]:
    scale = 1 + _WIDER * wide
    red, blue = _range(rng, 0.165 * scale, 0.125 * scale), _range(rng, 0.165 * scale, 0.125 * scale)
    zone, tray = _range(rng, 0.155, 0.115), _range(rng, 0.17, 0.14)
    ok = (_gap(red, blue) > 0.115) & (_gap(tray, zone) > ZONE + 0.065)
    for cube, other in ((red, blue), (blue, red)):  # either may be the one to push
        ok &= (_distance(cube, zone) > 0.12) & (_distance(cube, zone) < 0.30) & (_distance(cube, tray) > 0.105)
        ok &= (_distance_to_way(other, cube, zone) > 0.09) & (_distance_to_way(tray, cube, zone) > 0.11)
    ok &= (tray[:, 1] > zone[:, 1]) | (np.abs(tray - zone)[:, 0] > 0.12)  # or it hides the zone from the front
    if wide:  # some cube starts where none did before
        ok &= (np.abs(np.concatenate([red, blue], 1)) > np.array([0.165, 0.125] * 2)).any(1)
    return {"red": red, "blue": blue, "zone": zone, "tray": tray, "grip": _range(rng, 0.12, 0.10)}, ok


def _ring_layouts(rng: np.random.Generator, wide: float) -> tuple[Points, np.ndarray]:
    scale = 1 + _WIDER * wide
    ring, blue = _range(rng, 0.16 * scale, 0.125 * scale), _range(rng, 0.16 * scale, 0.125 * scale)
    peg = _range(rng, 0.16, 0.125)
    ok = (_gap(ring, peg) > 0.12) & (_gap(ring, blue) > 0.125) & (_gap(peg, blue) > 0.12)
    if wide:
        ok &= (np.abs(ring) > (0.16, 0.125)).any(1)
    return {"ring": ring, "peg": peg, "blue": blue, "grip": _range(rng, 0.12, 0.10)}, ok


_TRIES = 128  # candidate layouts drawn at once; about one in a hundred will do
_LAYOUTS: dict[str, Callable[[np.random.Generator, float], tuple[Points, np.ndarray]]] = {
    BLOCKS: _blocks_layouts,
    RING: _ring_layouts,
}


def initial_layout(layout: str, start: int, wide: float) -> Layout:
    """Where everything starts, for one initial-state number; `wide`, in [0, 1], is the disruption of positions."""
    rng = np.random.default_rng([start, round(100 * wide)])
    while True:
        points, ok = _LAYOUTS[layout](rng, wide)
        if ok.any():
            best = int(ok.argmax())
            return {name: (float(xy[best, 0]), float(xy[best, 1])) for name, xy in points.items()}


HOVER = 0.115  # height of the fingertips at the start, well above the cubes
assert REACH[2][0] < HOVER < REACH[2][1] and PEG_HEIGHT < HOVER
