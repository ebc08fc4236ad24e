"""robosuite as a family of environments."""

from __future__ import annotations

from wmpo.envs.names import describe, names_in
from wmpo.envs.robosuite.settings import TASKS, RobosuiteSettings
from wmpo.envs.vector import VectorEnv
from wmpo.envs.worlds import drawn_by_egl


class Robosuite:
    """A Panda arm in robosuite's tasks, simulated by worker processes."""

    Settings = RobosuiteSettings

    @staticmethod
    def describe_tasks() -> dict[str, str]:
        """Task -> its sentence and horizon, for `wmpo tasks`."""
        return describe(TASKS)

    @classmethod
    def build(cls, settings: RobosuiteSettings, disruption: str = "none") -> VectorEnv:
        """Raises UserError for tasks and cameras that there are not, and where robosuite 1.5 or EGL is missing."""
        settings.check()
        own = {"tasks": names_in(settings.task, TASKS), "faces": settings.faces}
        return drawn_by_egl(settings, "wmpo.envs.robosuite.episode:RobosuiteEpisode", own)
