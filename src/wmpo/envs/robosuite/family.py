"""robosuite as a family of environments."""

from __future__ import annotations

import os

from wmpo.envs.names import names_in
from wmpo.envs.robosuite.settings import TASKS, RobosuiteSettings
from wmpo.envs.tabletop import display
from wmpo.envs.vector import VectorEnv


class Robosuite:
    """A Panda arm in robosuite's tasks, simulated by worker processes."""

    Settings = RobosuiteSettings

    @staticmethod
    def describe_tasks() -> dict[str, str]:
        """Task -> its sentence and horizon, for `wmpo tasks`."""
        return {name: f"{task.instruction}  (at most {task.horizon} actions)" for name, task in TASKS.items()}

    @classmethod
    def build(cls, settings: RobosuiteSettings, disruption: str = "none") -> VectorEnv:
        """Raises UserError for tasks and cameras that there are not, and where robosuite 1.5 or EGL is missing."""
        settings.check()
        arguments = {
            "tasks": names_in(settings.task, TASKS),
            "cameras": list(settings.cameras),
            "image_size": settings.image_size,
            "state": settings.state,
            "faces": settings.faces,
        }
        environ = dict(os.environ)
        display.prepare_environment(display.choose("egl"), environ)
        return VectorEnv(settings, "wmpo.envs.robosuite.episode:RobosuiteEpisode", arguments, environ)
