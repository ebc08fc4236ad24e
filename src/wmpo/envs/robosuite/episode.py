"""robosuite as an episode class (`wmpo.envs.worker.Episode`), with its scripted demonstrations. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wmpo.envs.robosuite.scene import RobosuiteScene, scene
from wmpo.envs.robosuite.settings import ACTION_DIM, CAMERAS, CONTROL, REPEAT, STATE_DIM, TASKS
from wmpo.envs.shared_scene import SceneEpisode


class RobosuiteEpisode(SceneEpisode):
    """Actions are robosuite's own, each repeated for 4 of its steps."""

    action_dim, fps = ACTION_DIM, CONTROL // REPEAT
    action_low, action_high = [-1.0] * ACTION_DIM, [1.0] * ACTION_DIM
    spread = np.array([0.5, 0.5, 0.5, 0, 0, 0.1, 0])

    def __init__(self, tasks: Sequence[str], cameras: Sequence[str], image_size: int, state: bool, faces: int) -> None:
        sentences = {task: TASKS[task].instruction for task in tasks}
        super().__init__(sentences, {camera: CAMERAS[camera] for camera in cameras}, image_size)
        self.state_dim = STATE_DIM if state else 0
        self.horizon = max(TASKS[task].horizon for task in tasks)
        self._faces = faces
        self.scene_of(self.tasks[0])  # now, so that what is missing is said before anything else

    def scene_of(self, task: str) -> RobosuiteScene:
        return scene(task, self._faces)
