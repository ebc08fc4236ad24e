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
    FPS,
    HOLD,
    LINGER,
    OPENING,
    REACH,
    RING_HALF_HEIGHT,
    STATE_DIM,
    TIMESTEP,
    check,
)
from wmpo.envs.tabletop.tasks import HOVER, View, initial_layout, task_named

_STAGES = 5  # the target moves in this many steps, so that the gripper moves evenly
_SUBSTEPS = round(1 / FPS / TIMESTEP / _STAGES)
_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION


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


@dataclass(frozen=True)
class Snapshot:
    """A saved episode; restoring it continues bit for bit."""

    start: int
    physics: np.ndarray
    counters: Counters


class TabletopEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A floating two-finger gripper over a table, 5 actions a second.

    Action, (4,) float32 in [-1, 1]: displacement along x, y and z (1 is 4 cm), and the fingers (-1 open, 1 closed).
    Observation: one uint8 image (H, W, 3) per camera, and "state", (4,) float32 in about [-1, 1]: x, y, z, opening.
    Reward: 1 on the frame at which the task first counts as accomplished. The sentence is `instruction`.
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
        self.task = task_named(task)
        checked = check(cameras, image_size, disruption)
        self.instruction = self.task.instruction
        self.cameras = tuple(cameras)
        self.disruption = disruption
        self.render_mode = render_mode
        self.model = model(self.task.layout, checked, image_size)
        self.renderer = render.renderer(self.model, image_size, display.choose(renderer))
        self.data = mujoco.MjData(self.model)
        self.counters = Counters()
        self.start = 0
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
        for index in range(1, m.nbody):
            body = m.body(index)
            if body.mocapid[0] >= 0:
                self._fixed[body.name] = int(body.mocapid[0])
            elif body.jntnum[0] and m.jnt_type[body.jntadr[0]] == mujoco.mjtJoint.mjJNT_FREE:
                self._free[body.name] = int(m.jnt_qposadr[body.jntadr[0]])
        thing = m.body(self.task.thing).id
        self._thing_geoms = frozenset(np.flatnonzero(m.geom_bodyid == thing).tolist())
        self._fingers = (m.geom("left").id, m.geom("right").id)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The seed is the start number: equal ones give equal initial states. Without one it is drawn."""
        super().reset(seed=seed)
        start = seed if seed is not None else int(self.np_random.integers(2**31))
        self.restart(start)
        return self.observe(), self._info(False)

    def restart(self, start: int) -> None:
        """Set up the initial state of one start number, without drawing it."""
        self.start = start
        self.counters = Counters()
        where = initial_layout(self.task.layout, start, self.disruption == "position")
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
        mujoco.mj_step(self.model, d, 10)  # objects settle by some hundredths of a millimetre
        self._refresh()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        success = self.advance(action)
        counters = self.counters
        reward = float(counters.accomplished_at == counters.frame)
        truncated = counters.frame >= self.task.horizon
        return self.observe(), reward, self.lingered, truncated, self._info(success)

    def advance(self, action: np.ndarray) -> bool:
        """Simulate one action without drawing; True if the task counts as accomplished now."""
        d = self.data
        begin = d.qpos[self._slides[:3]].copy()
        target = np.clip(begin + STRIDE * action[:3], *np.transpose(REACH))
        d.ctrl[3:] = OPENING * (1 - float(action[3])) / 2
        for stage in range(1, _STAGES + 1):
            # The target arrives before the last stage, which lets the gripper come to rest.
            d.ctrl[:3] = begin + (target - begin) * min(stage / (_STAGES - 1), 1.0)
            mujoco.mj_step(self.model, d, _SUBSTEPS)
        self._refresh()
        return self._count()

    def _refresh(self) -> None:
        """Positions as of now: mj_step leaves those of one time step ago. Changes nothing that the next step uses."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _count(self) -> bool:
        old = self.counters
        touched = set()
        for first, second in self.data.contact.geom:
            if first in self._thing_geoms or second in self._thing_geoms:
                touched.update({int(first), int(second)} & set(self._fingers))
        touching, gripping = len(touched) > 0, len(touched) == 2
        frame = old.frame + 1
        held = old.held + 1 if self.task.accomplished(self.view()) else 0
        accomplished_at = old.accomplished_at if old.accomplished_at >= 0 or held < HOLD else frame
        self.counters = Counters(
            frame,
            held,
            accomplished_at,
            touching,
            gripping,
            old.contacts + (touching and not old.touching),
            old.grasps + (gripping and not old.gripping),
        )
        return held >= HOLD

    @property
    def lingered(self) -> bool:
        """Whether the frames after success have been recorded."""
        return 0 <= self.counters.accomplished_at <= self.counters.frame - LINGER

    @property
    def done(self) -> bool:
        """Whether the episode needs no further action."""
        return self.lingered or self.counters.frame >= self.task.horizon

    def view(self) -> View:
        """Where everything is now (privileged)."""
        d = self.data
        slides = d.qpos[self._slides]
        things = {name: d.qpos[address : address + 3].copy() for name, address in self._free.items()}
        things |= {name: d.mocap_pos[index].copy() for name, index in self._fixed.items()}
        return View(slides[:3].copy(), float(slides[3:].mean()), things)

    def state(self) -> np.ndarray:
        """(4,) float32: x, y, z and opening of the gripper, each scaled to [-1, 1] over its range."""
        slides = self.data.qpos[self._slides]
        low, high = np.transpose([*REACH, (0.0, OPENING)])
        value = np.append(slides[:3], slides[3:].mean())
        return ((2 * value - low - high) / (high - low)).astype(np.float32)

    def draw(self, camera: str) -> np.ndarray:
        """(H, W, 3) uint8. Valid until the next call in this process."""
        return self.renderer.draw(self.data, camera)

    def observe(self) -> dict[str, Any]:
        return {**{name: self.draw(name).copy() for name in self.cameras}, "state": self.state()}

    def _info(self, success: bool) -> dict[str, Any]:
        counters = self.counters
        return {
            "success": success,
            "accomplished": counters.accomplished_at >= 0,
            "contacts": counters.contacts,
            "grasps": counters.grasps,
            "instruction": self.instruction,
        }

    def render(self) -> np.ndarray | None:
        return self.draw(self.cameras[0]).copy() if self.render_mode == "rgb_array" else None

    def get_state(self) -> Snapshot:
        """All that the future depends on."""
        physics = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS))
        mujoco.mj_getState(self.model, self.data, physics, _PHYSICS)
        return Snapshot(self.start, physics, replace(self.counters))

    def set_state(self, snapshot: Snapshot) -> None:
        """Continue from a saved state of the same task, bit for bit."""
        mujoco.mj_setState(self.model, self.data, snapshot.physics, _PHYSICS)
        self.start, self.counters = snapshot.start, snapshot.counters
        self._refresh()
