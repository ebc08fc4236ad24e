"""LIBERO as an episode class (`wmpo.envs.worker.Episode`), with its scripted demonstrations. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from wmpo.data.initial_states import INDEX_BITS, split_of
from wmpo.envs.libero.expert import Expert
from wmpo.envs.libero.scene import Scene, Snapshot, scene
from wmpo.envs.libero.settings import (
    ACTION_DIM,
    BENCHMARK_STATES,
    CAMERAS,
    CONTROL,
    FPS,
    LINGER,
    STATE_DIM,
    SUITES,
)
from wmpo.envs.recorded import recorded
from wmpo.envs.tabletop.render import EglRenderer
from wmpo.errors import UserError

REPEAT = CONTROL // FPS  # steps of the controller in an action
MEMORY = 0.5  # of the noise, from one action to the next
SPREAD = np.array([0.5, 0.5, 0.5, 0, 0, 0.1, 0])  # of the noise on each number of an action
COLLISION = 0  # group of what robosuite collides with, and does not show
_playing: dict[int, LiberoEpisode] = {}  # scene -> the episode whose state it is in


class LiberoEpisode:
    """An episode is done 2 frames after success. Equal indices of initial states are equal tasks."""

    action_dim, fps = ACTION_DIM, FPS

    def __init__(
        self, suite: str, numbers: Sequence[int], cameras: Sequence[str], image_size: int, state: bool, faces: int
    ) -> None:
        self.suite, self.numbers, self._size, self._faces = suite, tuple(numbers), image_size, faces
        self.cameras = dict.fromkeys(cameras, (image_size, image_size))
        self.state_dim = STATE_DIM if state else 0
        self.horizon = SUITES[suite].horizon
        self.tasks = tuple(f"{suite}-{number}" for number in numbers)
        self._scene: Scene | None = None
        self._saved: Snapshot | None = None
        self._number, self._since = -1, -1
        if SUITES[suite].placing:
            self.demonstrate = self._demonstrate

    def task_of(self, initial_state: int) -> str:
        return self.tasks[initial_state % (1 << INDEX_BITS) % len(self.tasks)]

    @property
    def instruction(self) -> str:
        return self._scene.instruction if self._scene else ""

    @property
    def done(self) -> bool:
        return self._since >= LINGER

    def reset(self, initial_state: int) -> None:
        turn, place = divmod(initial_state % (1 << INDEX_BITS), len(self.tasks))
        playing = self._enter(self.numbers[place], None)
        self._since = -1
        if split_of(initial_state) != "evaluate":
            playing.begin(initial_state)
        elif turn < BENCHMARK_STATES:
            playing.begin_benchmark(turn)
        else:
            raise UserError(
                f"LIBERO has {BENCHMARK_STATES} initial states per task to evaluate on: set evaluate.episodes to "
                f"{BENCHMARK_STATES * len(self.tasks)} or less."
            )

    def _enter(self, number: int, saved: Snapshot | None) -> Scene:
        """The scene, in this episode's state; whoever was there saves theirs."""
        self._number, self._scene = number, scene(self.suite, number, self._faces)
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
        return self._enter(self._number, self._saved)

    def observe(self) -> dict[str, Any]:
        playing = self._resume()
        renderer = _renderer(playing, self._size)
        images = {camera: renderer.draw(playing.data, CAMERAS[camera]).copy() for camera in self.cameras}
        return {"images": images, "state": playing.arm.state()[: self.state_dim]}

    def step(self, action: np.ndarray) -> bool:
        success = self._resume().step(action, REPEAT)
        if success or self._since >= 0:
            self._since += 1
        return success

    def get_state(self) -> tuple[int, int, Snapshot]:
        return self._number, self._since, self._resume().save()

    def set_state(self, state: tuple[int, int, Snapshot]) -> None:
        number, self._since, saved = state
        self._enter(number, saved)

    def _demonstrate(self, initial_state: int, noise: float, seed: int, min_pace: float) -> dict[str, Any]:
        """The scripted expert acts until the episode is done; noise depends on seed and initial-state number only."""
        self.reset(initial_state)
        rng = np.random.default_rng([seed, initial_state])
        expert, pace = Expert(self._resume()), rng.uniform(min_pace, 1.0)
        spread = noise * rng.uniform() * SPREAD  # some demonstrators have a steadier hand than others
        disturbance = rng.standard_normal(ACTION_DIM)
        seen, success = [self.observe()], [False]
        actions: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        while not self.done and len(actions) < self.horizon / min_pace:
            labels.append(expert.act(pace).astype(np.float32))
            disturbance = MEMORY * disturbance + np.sqrt(1 - MEMORY**2) * rng.standard_normal(ACTION_DIM)
            actions.append(np.clip(labels[-1] + spread * disturbance, -1, 1).astype(np.float32))
            success.append(self.step(actions[-1]))
            seen.append(self.observe())
        return recorded(seen, actions, labels, success, {"renderer": "egl"})


@lru_cache(maxsize=16)
def _renderer(playing: Scene, size: int) -> EglRenderer:
    made = EglRenderer(playing.model, size, maxgeom=1000)
    made.option.geomgroup[COLLISION] = 0
    return made
