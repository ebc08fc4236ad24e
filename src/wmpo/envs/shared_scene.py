"""Episodes that share one simulator per task and process: each is a saved state of it. Imports no torch.

Building a simulator takes seconds and memory, its state is some kilobytes; a batch has up to 128 episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, Protocol

import mujoco
import numpy as np

from wmpo.envs.recorded import recorded
from wmpo.envs.tabletop.render import EglRenderer

LINGER = 2  # frames recorded after success
HIDDEN = 5  # a group of shapes that is not drawn
MEMORY = 0.5  # of a demonstrator's noise, from one action to the next


class Scene(Protocol):
    """A task in a simulator, in the state of one episode at a time."""

    model: mujoco.MjModel
    data: mujoco.MjData

    def __hash__(self) -> int: ...

    def begin(self, initial_state: int) -> None:
        """Equal numbers mean equal initial states, whatever was played before."""
        ...

    def step(self, action: np.ndarray) -> bool:
        """Execute an action (D,); whether the task counts as accomplished now."""
        ...

    def state(self) -> np.ndarray:
        """(S,) what the robot feels."""
        ...

    def save(self) -> Any:
        """All that the episode's future depends on."""
        ...

    def load(self, saved: Any) -> None: ...

    def expert(self) -> Callable[[float], np.ndarray]:
        """A scripted expert for the episode that has just begun: pace in (0, 1] -> the action (D,) that is due now."""
        ...


_playing: dict[int, SceneEpisode] = {}  # scene -> the episode whose state it is in


class SceneEpisode:
    """What is common to episode classes (`wmpo.envs.worker.Episode`) of such simulators.

    An episode is done 2 frames after success. Which of several tasks it is about, its initial state tells by lot.
    """

    action_dim: int
    action_low: list[float]
    action_high: list[float]
    spread: np.ndarray
    """(D,) of a demonstrator's noise of 1, in the units of the actions."""

    def __init__(
        self,
        sentences: Mapping[str, str],
        views: Mapping[str, str],
        size: int,
        upside_down: Collection[str] = (),
        demonstrates: bool = True,
    ) -> None:
        """`sentences`: of each task; `views`: camera -> what the simulator calls it; `upside_down` ones are turned;
        `demonstrates`: whether there is an expert."""
        if demonstrates:
            self.demonstrate = self._demonstrate
        self.tasks, self._sentences = tuple(sentences), dict(sentences)
        self.cameras = dict.fromkeys(views, (size, size))
        self._views, self._size, self._upside_down = dict(views), size, frozenset(upside_down)
        self.state_dim, self.horizon = 0, 1
        self.task, self._since = self.tasks[0], -1
        self._scene: Scene | None = None
        self._saved: Any = None

    def scene_of(self, task: str) -> Scene:
        """The simulator of a task, one for all episodes of the process."""
        raise NotImplementedError

    def task_of(self, initial_state: int) -> str:
        count = len(self.tasks)
        return self.tasks[int(np.random.default_rng([initial_state, 2]).integers(count)) if count > 1 else 0]

    @property
    def instruction(self) -> str:
        return self._sentences[self.task]

    @property
    def done(self) -> bool:
        return self._since >= LINGER

    def reset(self, initial_state: int) -> None:
        scene = self._enter(self.task_of(initial_state), None)
        self._since = -1
        self.begin(scene, initial_state)

    def begin(self, scene: Scene, initial_state: int) -> None:
        scene.begin(initial_state)

    def _enter(self, task: str, saved: Any) -> Scene:
        """The scene of a task, in this episode's state; whoever was there saves theirs."""
        self.task, self._scene = task, self.scene_of(task)
        there = _playing.get(id(self._scene))
        if there is not self or saved is not None:
            if there is not None and there is not self:
                there._saved = self._scene.save()
            _playing[id(self._scene)] = self
            if saved is not None:
                self._scene.load(saved)
        self._saved = None
        return self._scene

    def _resume(self) -> Scene:
        if self._scene is None:
            raise RuntimeError("reset comes first")
        return self._enter(self.task, self._saved)

    def observe(self) -> dict[str, Any]:
        scene, images = self._resume(), {}
        renderer = renderer_of(scene, self._size)
        for camera, view in self._views.items():
            image = renderer.draw(scene.data, view)
            images[camera] = (image[::-1, ::-1] if camera in self._upside_down else image).copy()
        return {"images": images, "state": scene.state().astype(np.float32)[: self.state_dim]}

    def step(self, action: np.ndarray) -> bool:
        exact = np.clip(np.asarray(action, np.float64), self.action_low, self.action_high)
        success = self._resume().step(exact)
        if success or self._since >= 0:
            self._since += 1
        return success

    def get_state(self) -> tuple[str, int, Any]:
        return self.task, self._since, self._resume().save()

    def set_state(self, state: tuple[str, int, Any]) -> None:
        task, self._since, saved = state
        self._enter(task, saved)

    def _demonstrate(self, initial_state: int, noise: float, seed: int, min_pace: float) -> dict[str, Any]:
        """The scripted expert acts until the episode is done; noise depends on seed and initial-state number only."""
        self.reset(initial_state)
        rng = np.random.default_rng([seed, initial_state])
        act, pace = self._resume().expert(), rng.uniform(min_pace, 1.0)
        spread = noise * rng.uniform() * self.spread  # some demonstrators have a steadier hand than others
        disturbance = rng.standard_normal(self.action_dim)
        seen, success = [self.observe()], [False]
        actions: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        while not self.done and len(actions) < self.horizon / min_pace:
            labels.append(act(pace).astype(np.float32))
            disturbance = MEMORY * disturbance + np.sqrt(1 - MEMORY**2) * rng.standard_normal(self.action_dim)
            noisy = np.clip(labels[-1] + spread * disturbance, self.action_low, self.action_high)
            actions.append(noisy.astype(np.float32))
            success.append(self.step(actions[-1]))
            seen.append(self.observe())
        return recorded(seen, actions, labels, success, {"renderer": "egl"})


def hide(model: mujoco.MjModel, group: int) -> None:
    """Draw no shapes of this group, in place; what they collide with stays."""
    model.geom_group[model.geom_group == group] = HIDDEN


def refresh(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Positions as of now: stepping leaves those of one time step ago. Changes nothing that the next step uses."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)


@lru_cache(maxsize=64)
def renderer_of(scene: Scene, size: int) -> EglRenderer:
    """Shared by all episodes of a process."""
    return EglRenderer(scene.model, size, maxgeom=1000)
