"""gym-aloha as a family of environments."""

from __future__ import annotations

from wmpo.envs.aloha.settings import TASKS, AlohaSettings
from wmpo.envs.names import describe, names_in
from wmpo.envs.vector import VectorEnv
from wmpo.envs.worlds import drawn_by_egl
from wmpo.errors import require_package


class Aloha:
    """Two ViperX arms in gym-aloha's tasks, simulated by worker processes."""

    Settings = AlohaSettings

    @staticmethod
    def describe_tasks() -> dict[str, str]:
        """Task -> its sentence and horizon, for `wmpo tasks`."""
        return describe(TASKS)

    @classmethod
    def build(cls, settings: AlohaSettings, disruption: str = "none") -> VectorEnv:
        """Raises UserError for tasks and cameras that there are not, and where gym-aloha or EGL is missing."""
        settings.check()
        if not settings.python:
            require_package("env.family is aloha", "gym_aloha", "aloha")
        own = {"tasks": names_in(settings.task, TASKS)}
        return drawn_by_egl(settings, "wmpo.envs.aloha.episode:AlohaEpisode", own)
