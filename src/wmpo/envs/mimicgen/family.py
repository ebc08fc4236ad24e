"""MimicGen as a family of environments."""

from __future__ import annotations

from pathlib import Path

from wmpo.envs.mimicgen.settings import CONTROL, TASKS, MimicGenSettings
from wmpo.envs.names import names_in
from wmpo.envs.vector import VectorEnv
from wmpo.envs.worlds import drawn_by_egl
from wmpo.errors import UserError


class MimicGen:
    """A Panda arm in MimicGen's tasks, simulated by worker processes. There is no scripted expert."""

    Settings = MimicGenSettings

    @staticmethod
    def describe_tasks() -> dict[str, str]:
        """Task -> its sentence and horizon, for `wmpo tasks`."""
        return {
            name: f"{task.instruction} ({task.steps} steps of {CONTROL} Hz at most)" for name, task in TASKS.items()
        }

    @classmethod
    def build(cls, settings: MimicGenSettings, disruption: str = "none") -> VectorEnv:
        """Raises UserError for tasks and cameras that there are not, a folder without MimicGen, and where robosuite 1.4
        or EGL is missing."""
        settings.check()
        checkout = Path(settings.checkout).expanduser().absolute() if settings.checkout else None
        if checkout is not None and not (checkout / "mimicgen" / "envs" / "robosuite").is_dir():
            raise UserError(
                f"env.checkout is {settings.checkout}, which holds no mimicgen/envs/robosuite: give the folder of a "
                "checkout of MimicGen's repository (docs/mimicgen.md)."
            )
        own = {
            "tasks": names_in(settings.task, TASKS),
            "checkout": str(checkout or ""),
            "repeat": settings.repeat,
            "faces": settings.faces,
        }
        return drawn_by_egl(settings, "wmpo.envs.mimicgen.episode:MimicGenEpisode", own)
