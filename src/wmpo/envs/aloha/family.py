"""gym-aloha as a family of environments."""

from __future__ import annotations

import os

from wmpo.envs.aloha.settings import TASKS, AlohaSettings
from wmpo.envs.names import names_in
from wmpo.envs.tabletop import display
from wmpo.envs.vector import VectorEnv
from wmpo.errors import require_package


class Aloha:
    """Two ViperX arms in gym-aloha's tasks, simulated by worker processes."""

    Settings = AlohaSettings

    @staticmethod
    def describe_tasks() -> dict[str, str]:
        """Task -> its sentence and horizon, for `wmpo tasks`."""
        return {name: f"{task.instruction}  (at most {task.horizon} actions)" for name, task in TASKS.items()}

    @classmethod
    def build(cls, settings: AlohaSettings, disruption: str = "none") -> VectorEnv:
        """Raises UserError for tasks and cameras that there are not, and where gym-aloha or EGL is missing."""
        settings.check()
        if not settings.python:
            require_package("env.family is aloha", "gym_aloha", "aloha")
        arguments = {
            "tasks": names_in(settings.task, TASKS),
            "cameras": list(settings.cameras),
            "image_size": settings.image_size,
            "state": settings.state,
        }
        environ = dict(os.environ)
        display.prepare_environment(display.choose("egl"), environ)
        return VectorEnv(settings, "wmpo.envs.aloha.episode:AlohaEpisode", arguments, environ)
