"""One episode of a tabletop task, as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from wmpo.envs.tabletop import display, render
from wmpo.envs.tabletop.experts import STRIDE
from wmpo.envs.tabletop.scene import model
from wmpo.envs.tabletop.settings import (
    ACTION_DIM,
    CUBE,
    DISTURBED,
    FPS,
    HOLD,
    LIFTED,
    LINGER,
    NUDGE_LENGTH,
    NUDGE_REACH,
    OPENING,
    REACH,
    RING_HALF_HEIGHT,
    SLIP_HEIGHT,
    SOLID,
    STATE_DIM,
    check,
)
from wmpo.envs.tabletop.tasks import HOVER, SLIP, View, initial_layout, sentence_of, task_of, tasks_named

_STAGES = 4  # the target moves in this many steps, so that the gripper moves evenly
_LOWEST, _HIGHEST = np.transpose(REACH)
# How far an object's centre must be from the fingertips' way to be out of reach: fingers, half an object's diagonal
# (of its face for the sides, of its volume for the height), and room to spare; and how far from a moving object.
_WIDE = OPENING + 0.01 + 1.42 * CUBE + 0.01
_DEEP = 0.012 + 1.42 * CUBE + 0.01
_HIGH = 1.74 * CUBE + 0.005
_APART = STRIDE + 2 * 1.42 * CUBE + 0.01
_MIDDLE = np.array([(low + high) / 2 for low, high in (*REACH, (0.0, OPENING))])
_HALF_RANGE = np.array([(high - low) / 2 for low, high in (*REACH, (0.0, OPENING))])
_FREE_FLIGHT = int(mujoco.mjtDisableBit.mjDSBL_CONTACT | mujoco.mjtDisableBit.mjDSBL_GRAVITY)
_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
Values = dict[str, Any]
"""Observations, options and infos, as Gymnasium has them."""


@dataclass(frozen=True)
class Counters:
    """What an episode remembers beside the physics."""

    frame: int = 0
    """Actions taken."""
    held: int = 0
    """Consecutive frames, up to now, on which the predicate holds."""
    accomplished_at: int = -1
    """The first frame at which the task counted as accomplished; -1 so far."""
    touching: bool = False
    """Whether the gripper touches the object to move."""
    gripping: bool = False
    """Whether both fingers do."""
    contacts: int = 0
    """How often the gripper began to touch it: attempts to push."""
    grasps: int = 0
    """How often both fingers began to: attempts to grasp."""
    lifted: bool = False
    """Whether it is held in the air."""
    drops: int = 0
    """How often it was let go, or lost, in the air and away from its goal."""
    disturbed: int = 0
    """How often it was nudged away, or slipped."""


@dataclass(frozen=True)
class Snapshot:
    """A saved episode; restoring it continues bit for bit."""

    initial_state: int
    physics: np.ndarray
    counters: Counters


@dataclass(frozen=True)
class Loose:
    """Where an object that can move is found in MuJoCo's arrays."""

    body: int
    position: slice
    """Of x, y, z in qpos."""
    xy: slice
    dofs: slice
    """In qvel."""
    geoms: slice
    solid: np.ndarray
    """Which of its geoms can be touched, 0 or 1."""
    weight: float
    """In newtons."""

    @staticmethod
    def of(m: mujoco.MjModel, body: int) -> Loose:
        qpos, dof = int(m.jnt_qposadr[m.body_jntadr[body]]), int(m.jnt_dofadr[m.body_jntadr[body]])
        geom = int(m.body_geomadr[body])
        geoms = slice(geom, geom + int(m.body_geomnum[body]))
        solid = (m.geom_group[geoms] == SOLID).astype(np.int32)
        weight = float(m.body_mass[body] * -m.opt.gravity[2])
        return Loose(body, slice(qpos, qpos + 3), slice(qpos, qpos + 2), slice(dof, dof + 6), geoms, solid, weight)


class TabletopEnv(gymnasium.Env[Values, np.ndarray]):
    """A floating two-finger gripper over a table, 5 actions a second.

    Action, (4,) float32 in [-1, 1]: displacement along x, y and z (1 is 4 cm), and the fingers (-1 open, 1 closed).
    Observation: one uint8 image (H, W, 3) per camera, and "state", (4,) float32 in about [-1, 1]: x, y, z, opening.
    Reward: 1 on the frame at which the task first counts as accomplished. The sentence is in the info.
    `task` may name several, joined by +; the initial-state number tells which one an episode is about.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(
        self,
        task: str = "push",
        cameras: Sequence[str] = ("front",),
        image_size: int = 64,
        renderer: str = "auto",
        disruption: str = "none",
        render_mode: str | None = "rgb_array",
    ) -> None:
        self.tasks = tasks_named(task)
        self.task = self.tasks[0]
        self.horizon = max(task.horizon for task in self.tasks)
        checked = check(cameras, image_size, disruption)
        self.cameras, self.image_size = tuple(cameras), image_size
        self.disruption = checked
        self.render_mode = render_mode
        self.model = model(self.task.layout, checked, image_size)
        self.renderer = render.renderer(self.model, image_size, display.choose(renderer))
        self.data = mujoco.MjData(self.model)
        self._substeps = round(1 / FPS / self.model.opt.timestep / _STAGES)
        self.counters = Counters()
        self.initial_state = 0
        image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {**dict.fromkeys(self.cameras, image), "state": spaces.Box(-1.5, 1.5, (STATE_DIM,), np.float32)}
        )
        self.action_space = spaces.Box(-1, 1, (ACTION_DIM,), np.float32)
        self._index()

    def _index(self) -> None:
        """Look names up once: addresses of joints and which geoms belong to what."""
        m = self.model
        self._slides = np.array([m.joint(name).qposadr[0] for name in ("x", "y", "z", "left", "right")])
        # Object name -> address of its free joint in qpos, or of its mocap body.
        self._free: dict[str, int] = {}
        self._fixed: dict[str, int] = {}
        self._loose: list[Loose] = []
        for index in range(1, m.nbody):
            body = m.body(index)
            if body.mocapid[0] >= 0:
                self._fixed[body.name] = int(body.mocapid[0])
            elif body.jntnum[0] and m.jnt_type[body.jntadr[0]] == mujoco.mjtJoint.mjJNT_FREE:
                self._free[body.name] = int(m.jnt_qposadr[body.jntadr[0]])
                self._loose.append(Loose.of(m, index))
        self._geoms_of = {
            name: frozenset(np.flatnonzero(m.geom_bodyid == m.body(name).id).tolist())
            for name in {task.thing for task in self.tasks}
        }
        self._left, self._right = int(m.geom("left").id), int(m.geom("right").id)

    def reset(self, *, seed: int | None = None, options: Values | None = None) -> tuple[Values, Values]:
        """The seed is the initial-state number: equal ones give equal initial states. Without one it is drawn."""
        super().reset(seed=seed)
        initial_state = seed if seed is not None else int(self.np_random.integers(2**31))
        self.restart(initial_state)
        return self.observe(), self._info(False)

    def restart(self, initial_state: int) -> None:
        """Set up the initial state of one initial-state number, without drawing it."""
        self.initial_state, self.task = initial_state, task_of(self.tasks, initial_state)
        self.counters = Counters()
        where = initial_layout(self.task.layout, initial_state, self._strength_of("position"))
        d = self.data
        mujoco.mj_resetData(self.model, d)
        for name, address in self._free.items():
            height = RING_HALF_HEIGHT if name == "ring" else CUBE
            d.qpos[address : address + 3] = (*where[name], height)
        for name, index in self._fixed.items():
            d.mocap_pos[index] = (*where[name], 0.0)
        # The gripper starts as its task needs it, so that no step is spent on it.
        opening = 0.0 if self.task.skill == "push" else OPENING
        d.qpos[self._slides] = (*where["grip"], HOVER, opening, opening)
        d.ctrl[:] = d.qpos[self._slides]
        self.model.opt.disableflags = 0
        for loose in self._loose:
            self.model.geom_contype[loose.geoms] = self.model.geom_conaffinity[loose.geoms] = loose.solid
        mujoco.mj_step(self.model, d, 40)  # objects settle by a tenth of a millimetre
        self._refresh()

    def step(self, action: np.ndarray) -> tuple[Values, float, bool, bool, Values]:
        success = self.advance(action)
        counters = self.counters
        reward = float(counters.accomplished_at == counters.frame)
        truncated = counters.frame >= self.horizon
        return self.observe(), reward, self.lingered, truncated, self._info(success)

    def advance(self, action: np.ndarray) -> bool:
        """Simulate one action without drawing; True if the task counts as accomplished now."""
        d = self.data
        slipping = self._disturb()
        begin = d.qpos[self._slides[:3]]
        target = np.minimum(np.maximum(begin + STRIDE * action[:3], _LOWEST), _HIGHEST)
        d.ctrl[3:] = OPENING if slipping else OPENING * (1 - float(action[3])) / 2
        asleep = self._sleep(begin.tolist(), target.tolist())
        moved = self._geoms_of[self.task.thing]
        left = right = False
        for stage in range(_STAGES):
            if stage < _STAGES - 1:  # the last stage lets the gripper come to rest
                d.ctrl[:3] = begin + (target - begin) * ((stage + 1) / (_STAGES - 1))
            mujoco.mj_step(self.model, d, self._substeps)
            for pair in () if asleep else d.contact.geom.tolist():
                if moved.intersection(pair):
                    left, right = left or self._left in pair, right or self._right in pair
        self._refresh()
        return self._count(left or right, left and right)

    def _disturb(self) -> bool:
        """What befalls the object of the task before this action, see `Task.disturbance`; True if it slips."""
        kind, old = self.task.disturbance, self.counters
        if not kind or old.disturbed or old.accomplished_at >= 0:
            return False
        rng = np.random.default_rng([self.initial_state, 4])
        if rng.random() >= DISTURBED:
            return False
        view = self.view()
        thing, rest = view.things[self.task.thing], self._height_on_table
        if kind == SLIP:
            slips = old.gripping and thing[2] > rest + rng.uniform(*SLIP_HEIGHT)
            self.counters = replace(old, disturbed=int(slips))
            return bool(slips)
        above = np.abs(thing[:2] - view.grip[:2]).max() < NUDGE_REACH and view.grip[2] > 2 * rest + 0.008
        if above and thing[2] < rest + LIFTED:  # one that hangs in the hand, or lies on something, stays where it is
            target = self._room_beside(thing, rest, view, rng)
            if target is not None:
                address = self._free[self.task.thing]
                self.data.qpos[address : address + 2] = target
                self.counters = replace(old, disturbed=1)
                self._refresh()
        return False

    @property
    def _height_on_table(self) -> float:
        """Of the centre of the object to move, while it lies there."""
        return RING_HALF_HEIGHT if self.task.skill == "insert" else CUBE

    def _room_beside(self, thing: np.ndarray, rest: float, view: View, rng: np.random.Generator) -> np.ndarray | None:
        """(2,) a free place on the table a nudge away from where the object is; None where there is none."""
        others = [place[:2] for name, place in view.things.items() if name != self.task.thing]
        for angle in rng.uniform(0, 2 * np.pi, 32):
            target = thing[:2] + rng.uniform(*NUDGE_LENGTH) * np.array([np.cos(angle), np.sin(angle)])
            inside = (np.abs(target) < np.array(REACH)[:2, 1] - rest).all()
            if inside and all(np.abs(target - other).max() > 0.105 for other in others):
                return target
        return None

    def _sleep(self, begin: list[float], target: list[float]) -> bool:
        """Put objects to sleep that lie still and that nothing can reach in this step; True if all of them are.

        Most of the physics' time would go into objects that lie still. A sleeping one has no contacts and its
        weight is carried, so it stays exactly where it is.
        """
        d, m = self.data, self.model
        awake = [thing for thing in self._loose if not self._rests(thing, begin, target)]
        # What an awake object might be pushed against must be awake too.
        asleep = [
            thing
            for thing in self._loose
            if thing not in awake and all(np.abs(d.qpos[thing.xy] - d.qpos[other.xy]).max() > _APART for other in awake)
        ]
        # The model is shared by all episodes, so everything is set anew, and nothing assumed.
        m.opt.disableflags = _FREE_FLIGHT if len(asleep) == len(self._loose) else 0
        for thing in self._loose:
            sleeps = thing in asleep
            m.geom_contype[thing.geoms] = m.geom_conaffinity[thing.geoms] = 0 if sleeps else thing.solid
            d.xfrc_applied[thing.body, 2] = thing.weight if sleeps and len(asleep) < len(self._loose) else 0.0
            if sleeps:
                d.qvel[thing.dofs] = 0.0
        return len(asleep) == len(self._loose)

    def _rests(self, thing: Loose, begin: list[float], target: list[float]) -> bool:
        """Whether the object lies still and the gripper cannot reach it on its way from `begin` to `target`."""
        x, y, z = self.data.qpos[thing.position].tolist()
        beside = x < min(begin[0], target[0]) - _WIDE or x > max(begin[0], target[0]) + _WIDE
        beside = beside or y < min(begin[1], target[1]) - _DEEP or y > max(begin[1], target[1]) + _DEEP
        if not beside and min(begin[2], target[2]) < z + _HIGH:
            return False
        speed = self.data.qvel[thing.dofs].tolist()
        acceleration = self.data.qacc_warmstart[thing.dofs].tolist()
        return all(-2e-3 < value < 2e-3 for value in speed) and all(-0.1 < value < 0.1 for value in acceleration)

    def _refresh(self) -> None:
        """Positions as of now: mj_step leaves those of one time step ago. Changes nothing that the next step uses."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _count(self, touching: bool, gripping: bool) -> bool:
        old = self.counters
        frame = old.frame + 1
        view = self.view()
        held = old.held + 1 if self.task.accomplished(view) else 0
        thing, goal = view.things[self.task.thing], view.things[self.task.goal]
        lifted = gripping and bool(thing[2] > self._height_on_table + LIFTED)
        lost = old.lifted and not gripping and np.abs(thing - goal)[:2].max() > self.task.tolerance
        accomplished_at = old.accomplished_at if old.accomplished_at >= 0 or held < HOLD else frame
        self.counters = Counters(
            frame,
            held,
            accomplished_at,
            touching,
            gripping,
            old.contacts + (touching and not old.touching),
            old.grasps + (gripping and not old.gripping),
            lifted,
            old.drops + bool(lost),
            old.disturbed,
        )
        return held >= HOLD

    @property
    def lingered(self) -> bool:
        """Whether the frames after success have been recorded."""
        return 0 <= self.counters.accomplished_at <= self.counters.frame - LINGER

    def view(self) -> View:
        """Where everything is now (privileged)."""
        d = self.data
        slides = d.qpos[self._slides]
        things = {name: d.qpos[address : address + 3].copy() for name, address in self._free.items()}
        things |= {name: d.mocap_pos[index].copy() for name, index in self._fixed.items()}
        return View(slides[:3], float(slides[3] + slides[4]) / 2, things)

    def state(self) -> np.ndarray:
        """(4,) float32: x, y, z and opening of the gripper, each scaled to [-1, 1] over its range."""
        slides = self.data.qpos[self._slides]
        slides[3] = (slides[3] + slides[4]) / 2
        return ((slides[:4] - _MIDDLE) / _HALF_RANGE).astype(np.float32)

    def draw(self, camera: str) -> np.ndarray:
        """(H, W, 3) uint8. Valid until the next call in this process."""
        return self.renderer.draw(self.data, camera)

    def observe(self) -> Values:
        return {**{name: self.draw(name).copy() for name in self.cameras}, "state": self.state()}

    def instruction(self) -> str:
        return sentence_of(self.task, self.initial_state, self._strength_of("paraphrase") > 0)

    def _strength_of(self, kind: str) -> float:
        """0 without this disruption."""
        return self.disruption.strength if self.disruption.kind == kind else 0.0

    def _info(self, success: bool) -> Values:
        counters = self.counters
        return {
            "success": success,
            "accomplished": counters.accomplished_at >= 0,
            **self.events(),
            "instruction": self.instruction(),
        }

    def events(self) -> dict[str, int]:
        """How often the gripper began to touch ("contacts") and to grasp ("grasps") the object, lost it away from its
        goal ("drops"), and how often the object was disturbed ("disturbances")."""
        counters = self.counters
        return {
            "contacts": counters.contacts,
            "grasps": counters.grasps,
            "drops": counters.drops,
            "disturbances": counters.disturbed,
        }

    def render(self) -> np.ndarray | None:
        return self.draw(self.cameras[0]).copy() if self.render_mode == "rgb_array" else None

    def get_state(self) -> Snapshot:
        """All that the future depends on."""
        physics = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS))
        mujoco.mj_getState(self.model, self.data, physics, _PHYSICS)
        return Snapshot(self.initial_state, physics, replace(self.counters))

    def set_state(self, snapshot: Snapshot) -> None:
        """Continue from a saved state of the same task, bit for bit."""
        mujoco.mj_setState(self.model, self.data, snapshot.physics, _PHYSICS)
        self.initial_state, self.counters = snapshot.initial_state, snapshot.counters
        self.task = task_of(self.tasks, snapshot.initial_state)
        self._refresh()
