"""How families of other people's simulators make an environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from wmpo.envs.tabletop import display
from wmpo.envs.vector import VectorEnv


def drawn_by_egl(settings: Any, episode: str, own: Mapping[str, object]) -> VectorEnv:
    """The environment of an episode class, module:Name. It is given what all such settings have, and its `own`.

    Raises UserError where EGL is missing.
    """
    common = {"cameras": list(settings.cameras), "image_size": settings.image_size, "state": settings.state}
    environ = dict(os.environ)
    display.prepare_environment(display.choose("egl"), environ)
    return VectorEnv(settings, episode, {**own, **common}, environ)
