"""MimicGen as an episode class (`wmpo.envs.worker.Episode`). Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from wmpo.envs.mimicgen.scene import MimicGenScene, scene
from wmpo.envs.mimicgen.settings import CONTROL, TASKS
from wmpo.envs.robosuite.settings import ACTION_DIM, CAMERAS, STATE_DIM
from wmpo.envs.shared_scene import SceneEpisode


class MimicGenEpisode(SceneEpisode):
    """Actions are robosuite's own, each repeated for some of its steps."""

    action_dim = ACTION_DIM
    action_low, action_high = [-1.0] * ACTION_DIM, [1.0] * ACTION_DIM

    def __init__(
        self,
        tasks: Sequence[str],
        cameras: Sequence[str],
        image_size: int,
        state: bool,
        checkout: str,
        repeat: int,
        faces: int,
    ) -> None:
        sentences = {task: TASKS[task].instruction for task in tasks}
        views = {camera: CAMERAS[camera] for camera in cameras}
        super().__init__(sentences, views, image_size, demonstrates=False)
        self.fps = CONTROL // repeat
        self.state_dim = STATE_DIM if state else 0
        self.horizon = max(TASKS[task].steps for task in tasks) // repeat
        self._checkout, self._repeat, self._faces = checkout, repeat, faces
        self.scene_of(self.tasks[0])  # now, so that what is missing is said before anything else

    def scene_of(self, task: str) -> MimicGenScene:
        return scene(task, self._checkout, self._repeat, self._faces)
