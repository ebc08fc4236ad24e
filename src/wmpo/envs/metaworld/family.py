"""MetaWorld as a family of environments."""

from __future__ import annotations

from wmpo.envs.metaworld.settings import TASKS, MetaWorldSettings
from wmpo.envs.names import describe, names_in
from wmpo.envs.vector import VectorEnv
from wmpo.envs.worlds import drawn_by_egl
from wmpo.errors import require_package


class MetaWorld:
    """A Sawyer arm in MetaWorld's tasks, simulated by worker processes."""

    Settings = MetaWorldSettings

    @staticmethod
    def describe_tasks() -> dict[str, str]:
        """Task -> its sentence and horizon, for `wmpo tasks`."""
        return describe(TASKS)

    @classmethod
    def build(cls, settings: MetaWorldSettings, disruption: str = "none") -> VectorEnv:
        """Raises UserError for tasks and cameras that there are not, and where MetaWorld or EGL is missing."""
        settings.check()
        if not settings.python:
            require_package("env.family is metaworld", "metaworld", "metaworld")
        own = {"tasks": names_in(settings.task, TASKS), "horizon": settings.horizon, "faces": settings.faces}
        return drawn_by_egl(settings, "wmpo.envs.metaworld.episode:MetaWorldEpisode", own)
