"""The embedded simulator as a family of environments."""

from __future__ import annotations

from wmpo.envs.tabletop.settings import DISRUPTIONS, TabletopSettings
from wmpo.envs.vector import VectorEnv


class Tabletop:
    """A gripper over a table, simulated by worker processes."""

    Settings = TabletopSettings
    disruptions = tuple(name for name in DISRUPTIONS if name != "none")

    @classmethod
    def build(cls, settings: TabletopSettings, disruption: str = "none") -> VectorEnv:
        return VectorEnv(settings, disruption)
