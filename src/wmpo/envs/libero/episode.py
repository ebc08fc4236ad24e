"""LIBERO as an episode class (`wmpo.envs.worker.Episode`), with its scripted demonstrations. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wmpo.data.initial_states import INDEX_BITS, split_of
from wmpo.envs.libero.scene import LiberoScene, scene
from wmpo.envs.libero.settings import ACTION_DIM, BENCHMARK_STATES, CAMERAS, FPS, STATE_DIM, SUITES
from wmpo.envs.shared_scene import Scene, SceneEpisode
from wmpo.errors import UserError


class LiberoEpisode(SceneEpisode):
    """Actions are LIBERO's own, each repeated for 4 of its steps. Equal indices of initial states are equal tasks."""

    action_dim, fps = ACTION_DIM, FPS
    action_low, action_high = [-1.0] * ACTION_DIM, [1.0] * ACTION_DIM
    spread = np.array([0.5, 0.5, 0.5, 0, 0, 0.1, 0])

    def __init__(
        self,
        suite: str,
        numbers: Sequence[int],
        cameras: Sequence[str],
        image_size: int,
        state: bool,
        faces: int,
        horizon: int = 0,
    ) -> None:
        """`horizon`, in actions: 0 for that of the suite."""
        self._numbers = {f"{suite}-{number}": number for number in numbers}
        views = {camera: CAMERAS[camera] for camera in cameras}
        super().__init__(dict.fromkeys(self._numbers, ""), views, image_size, demonstrates=SUITES[suite].placing)
        self.suite, self._faces = suite, faces
        self.state_dim = STATE_DIM if state else 0
        self.horizon = horizon or SUITES[suite].horizon

    def scene_of(self, task: str) -> LiberoScene:
        found = scene(self.suite, self._numbers[task], self._faces)
        self._sentences[task] = found.instruction
        return found

    def task_of(self, initial_state: int) -> str:
        return self.tasks[initial_state % (1 << INDEX_BITS) % len(self.tasks)]

    def begin(self, scene: Scene, initial_state: int) -> None:
        turn = initial_state % (1 << INDEX_BITS) // len(self.tasks)
        if split_of(initial_state) != "evaluate":
            scene.begin(initial_state)
        elif turn < BENCHMARK_STATES:
            self.scene_of(self.task).begin_benchmark(turn)
        else:
            raise UserError(
                f"LIBERO has {BENCHMARK_STATES} initial states per task to evaluate on: set evaluate.episodes to "
                f"{BENCHMARK_STATES * len(self.tasks)} or less."
            )
