"""The embedded simulator as a family of environments."""

from __future__ import annotations

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
        return {name: f"{task.instruction}  (at most {task.horizon} actions)" for name, task in TASKS.items()}

    @classmethod
    def build(cls, settings: TabletopSettings, disruption: str = "none") -> VectorEnv:
        return VectorEnv(settings, disruption)
