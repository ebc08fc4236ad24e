"""Scripted experts: what to do next, as a function of what is visible now.

They keep no memory, so that an imitator who sees the same frame can choose the same action: the phase of a
task shows in the height and opening of the gripper and in where the object is.
"""

from __future__ import annotations

import numpy as np

from wmpo.envs.tabletop.settings import CUBE, OPENING, RING_HALF_HEIGHT, RING_OUTER
from wmpo.envs.tabletop.tasks import HOVER, Task, View

STRIDE = 0.04
"""Metres that the gripper moves in one step at action 1."""

OPEN, CLOSED = -1.0, 1.0
LOW = 0.012  # fingertip height for pushing and grasping
CARRY = 0.105  # fingertip height above which a held object passes over everything


def act(task: Task, view: View, pace: float = 1.0) -> np.ndarray:
    """The expert's action: (4,) float32 in [-1, 1]. `pace` in (0, 1] slows every movement of the hand."""
    action = _push(task, view) if task.skill == "push" else _pick_and_place(task, view)
    action[:3] *= pace
    return action.astype(np.float32)


def _fade(value: float, full: float, none: float) -> float:
    """1 up to `full`, 0 from `none` on, linear in between."""
    return float(np.clip((none - value) / (none - full), 0, 1))


def _action(move: np.ndarray, grip: float) -> np.ndarray:
    """From a displacement in metres; the horizontal part keeps its direction when it is cut to length."""
    action = np.empty(4)
    action[:2] = move[:2] / max(STRIDE, float(np.abs(move[:2]).max()))
    action[2] = np.clip(move[2] / STRIDE, -1, 1)
    action[3] = grip
    return action


def _push(task: Task, view: View) -> np.ndarray:
    """Go behind the cube above everything, go down, push along the line to the zone; rise once it is there."""
    cube, zone, grip = view.things[task.thing], view.things[task.goal], view.grip
    to_zone = zone[:2] - cube[:2]
    left = float(np.linalg.norm(to_zone))
    ahead = to_zone / max(left, 1e-6)
    # The pusher is about 20 x 24 mm: its centre touches the cube at about this distance.
    touch = CUBE / float(np.abs(ahead).max()) + 0.012
    offset = grip[:2] - cube[:2]
    behind = -float(offset @ ahead)
    side = offset + behind * ahead
    aside = float(np.linalg.norm(side))
    if left < 0.012:  # there: leave it, so that it stays visible
        return _action(np.array([0.0, 0.0, max(HOVER - grip[2], 0.0)]), CLOSED)
    wanted = cube[:2] - ahead * (touch + 0.018)
    low = _fade(float(grip[2]), 0.03, 0.05)
    # Once low and behind, being too near to the cube is no reason to rise again.
    miss = aside + max(touch - 0.012 - behind, 0.0) + (max(behind - touch - 0.03, 0.0) if low < 1 else 0.0)
    descend = _fade(miss, 0.014, 0.035)
    height = LOW + (HOVER - LOW) * (1 - descend)
    pushing = low * _fade(miss, 0.010, 0.03)
    approach = wanted - grip[:2]
    push = ahead * (max(behind - touch, 0.0) + left + 0.002) * 0.9 - 0.8 * side
    if low > 0 and descend < 1:  # beside the cube and low: up first
        approach = approach * _fade(miss, 0.03, 0.05) if grip[2] < 2 * CUBE else approach
    move = np.append(pushing * push + (1 - pushing) * approach, height - grip[2])
    return _action(move, CLOSED)


def _pick_and_place(task: Task, view: View) -> np.ndarray:
    """Open, go above the object, down, close, up, above the goal, down, open, up."""
    thing, goal, grip = view.things[task.thing], view.things[task.goal], view.grip
    half_height, half_width = (RING_HALF_HEIGHT, RING_OUTER) if task.skill == "insert" else (CUBE, CUBE)
    hold = -half_height + LOW  # where the fingertips hold it, from its centre
    to_thing, to_goal = thing[:2] - grip[:2], goal[:2] - thing[:2]
    miss = float(np.abs(to_thing).max())
    level = float(grip[2] - thing[2]) - hold
    closed = view.opening < half_width + 0.003
    off = float(np.abs(to_goal).max())
    room = OPENING - half_width  # on either side, between the open fingers and the object

    aim = task.aim or task.tolerance
    if off < aim and thing[2] < task.rest + 0.004:  # there: let go, then rise
        free = view.opening > half_width + 0.004
        return _action(np.array([0.0, 0.0, max(HOVER + task.rest - grip[2], 0.0) if free else 0.0]), OPEN)
    if miss < 0.025 and level < 0.02 and closed:  # holding it: up, across, down
        near, far = 0.5 * aim, aim
        height = task.rest + (CARRY + half_height - LOW - task.rest) * (1 - _fade(off, near, far))
        # How far below the height at which it passes over the goal: wait until it is nearly there.
        bottom = 0.055 if task.skill == "insert" else task.rest - half_height
        across = 1.0 if off < far else _fade(bottom + half_height + 0.02 - float(thing[2]), 0.0, 0.03)
        return _action(np.append(to_goal * across, height - thing[2] - 0.002), CLOSED)
    if miss < 0.8 * room and level < 0.014:  # around it: close
        return _action(np.append(to_thing, -level), CLOSED)
    # Anywhere else: above it, then down, with open fingers.
    height = float(thing[2]) + hold + (HOVER - LOW) * (1 - _fade(miss, 0.6 * room, 1.2 * room))
    above = float(thing[2]) + half_height + 0.01
    across = 1.0 if miss < 1.2 * room else _fade(above - float(grip[2]), 0.0, 0.03)
    return _action(np.append(to_thing * across, height - grip[2]), OPEN)


class Noise:
    """Smooth noise on executed actions: a first-order autoregression with standard deviation `scale`."""

    MEMORY = 0.5

    def __init__(self, scale: float, rng: np.random.Generator) -> None:
        self.scale, self.rng = scale, rng
        self.value = rng.standard_normal(4)

    def disturb(self, action: np.ndarray) -> np.ndarray:
        """The executed action, (4,) float32 in [-1, 1]. The fingers get a quarter of the noise."""
        fresh = self.rng.standard_normal(4)
        self.value = self.MEMORY * self.value + np.sqrt(1 - self.MEMORY**2) * fresh
        spread = self.scale * np.array([1.0, 1.0, 1.0, 0.25])
        return np.clip(action + spread * self.value, -1, 1).astype(np.float32)


assert RING_OUTER < OPENING
