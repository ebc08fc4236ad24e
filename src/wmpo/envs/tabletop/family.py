"""The embedded simulator as a family of environments."""

from __future__ import annotations

import os

from wmpo.envs.names import describe
from wmpo.envs.tabletop import display
from wmpo.envs.tabletop.settings import DISRUPTIONS, TabletopSettings
from wmpo.envs.tabletop.tasks import TASKS
from wmpo.envs.vector import VectorEnv


class Tabletop:
    """A gripper over a table, simulated by worker processes."""

    Settings = TabletopSettings
    disruptions = tuple(name for name in DISRUPTIONS if name != "none")

    @staticmethod
    def describe_tasks() -> dict[str, str]:
        """Task -> its sentence and horizon, for `wmpo tasks`."""
        return describe(TASKS)

    @classmethod
    def build(cls, settings: TabletopSettings, disruption: str = "none") -> VectorEnv:
        """Raises UserError for tasks, cameras, sizes and disruptions that there are not."""
        settings.check()
        renderer = display.choose(settings.renderer)
        arguments = {
            "task": settings.task,
            "cameras": list(settings.cameras),
            "image_size": settings.image_size,
            "state": settings.state,
            "renderer": renderer,
            "disruption": disruption,
        }
        environ = dict(os.environ)
        display.prepare_environment(renderer, environ)
        return VectorEnv(settings, "wmpo.envs.tabletop.episode:TabletopEpisode", arguments, environ)
