"""gym-aloha as an episode class (`wmpo.envs.worker.Episode`), with its scripted demonstrations. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wmpo.envs.aloha.scene import AlohaScene, scene
from wmpo.envs.aloha.settings import ACTION_DIM, CAMERAS, CONTROL, HIGH, LOW, REPEAT, STATE_DIM, TASKS
from wmpo.envs.shared_scene import SceneEpisode


class AlohaEpisode(SceneEpisode):
    """Actions say where each joint should be, in radians, and how far each gripper should be open."""

    action_dim, fps = ACTION_DIM, CONTROL // REPEAT
    action_low, action_high = LOW, HIGH
    spread = np.array([0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.0] * 2)

    def __init__(self, tasks: Sequence[str], cameras: Sequence[str], image_size: int, state: bool) -> None:
        sentences = {task: TASKS[task].instruction for task in tasks}
        super().__init__(sentences, {camera: CAMERAS[camera] for camera in cameras}, image_size)
        self.state_dim = STATE_DIM if state else 0
        self.horizon = max(TASKS[task].horizon for task in tasks)
        self.scene_of(self.tasks[0])  # now, so that what is missing is said before anything else

    def scene_of(self, task: str) -> AlohaScene:
        return scene(task)
