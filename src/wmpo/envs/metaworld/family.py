"""MetaWorld as a family of environments."""

from __future__ import annotations

import os

from wmpo.envs.metaworld.settings import TASKS, MetaWorldSettings
from wmpo.envs.names import names_in
from wmpo.envs.tabletop import display
from wmpo.envs.vector import VectorEnv
from wmpo.errors import require_package


class MetaWorld:
    """A Sawyer arm in MetaWorld's tasks, simulated by worker processes."""

    Settings = MetaWorldSettings

    @staticmethod
    def describe_tasks() -> dict[str, str]:
        """Task -> its sentence and horizon, for `wmpo tasks`."""
        return {name: f"{task.instruction}  (at most {task.horizon} actions)" for name, task in TASKS.items()}

    @classmethod
    def build(cls, settings: MetaWorldSettings, disruption: str = "none") -> VectorEnv:
        """Raises UserError for tasks and cameras that there are not, and where MetaWorld or EGL is missing."""
        settings.check()
        if not settings.python:
            require_package("env.family is metaworld", "metaworld", "metaworld")
        arguments = {
            "tasks": names_in(settings.task, TASKS),
            "cameras": list(settings.cameras),
            "image_size": settings.image_size,
            "state": settings.state,
            "faces": settings.faces,
        }
        environ = dict(os.environ)
        display.prepare_environment(display.choose("egl"), environ)
        return VectorEnv(settings, "wmpo.envs.metaworld.episode:MetaWorldEpisode", arguments, environ)
