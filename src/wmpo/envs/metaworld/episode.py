"""MetaWorld as an episode class (`wmpo.envs.worker.Episode`), with its experts as demonstrators. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wmpo.envs.metaworld.scene import MetaWorldScene, scene
from wmpo.envs.metaworld.settings import ACTION_DIM, CAMERAS, CONTROL, REPEAT, STATE_DIM, TASKS, UPSIDE_DOWN
from wmpo.envs.shared_scene import SceneEpisode


class MetaWorldEpisode(SceneEpisode):
    """Actions are MetaWorld's own, each repeated for 8 of its steps."""

    action_dim, fps = ACTION_DIM, CONTROL // REPEAT
    action_low, action_high = [-1.0] * ACTION_DIM, [1.0] * ACTION_DIM
    spread = np.array([0.3, 0.3, 0.3, 0.1])  # 0.3 is up to 2.4 cm

    def __init__(
        self,
        tasks: Sequence[str],
        cameras: Sequence[str],
        image_size: int,
        state: bool,
        faces: int,
        horizon: int = 0,
    ) -> None:
        """`horizon`, in actions: 0 for the longest of the tasks."""
        sentences = {task: TASKS[task].instruction for task in tasks}
        super().__init__(sentences, {camera: CAMERAS[camera] for camera in cameras}, image_size, UPSIDE_DOWN)
        self.state_dim = STATE_DIM if state else 0
        self.horizon = horizon or max(TASKS[task].horizon for task in tasks)
        self._faces = faces
        self.scene_of(self.tasks[0])  # now, so that what is missing is said before anything else

    def scene_of(self, task: str) -> MetaWorldScene:
        return scene(task, self._faces)
