"""`wmpo recipes`, `wmpo tasks` and `wmpo doctor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wmpo.config import EnvConfig


@dataclass(frozen=True)
class RecipesCommand:
    """What `wmpo run` can run."""

    def execute(self) -> None:
        from wmpo.recipes import ABOUT, RECIPES

        width = max(map(len, RECIPES))
        for name in RECIPES:
            print(f"{name:{width}}  {ABOUT[name]}")


@dataclass(frozen=True)
class TasksCommand:
    """What an environment can ask of a policy."""

    env: EnvConfig = field(default_factory=EnvConfig)

    def execute(self) -> None:
        from wmpo.errors import UserError
        from wmpo.families import family_class

        tasks = getattr(family_class("env", self.env.family), "describe_tasks", None)
        if tasks is None:
            raise UserError(f"The environment {self.env.family} names no tasks.")
        width = max(map(len, tasks()))
        for name, about in tasks().items():
            print(f"{name:{width}}  {about}")


@dataclass(frozen=True)
class DoctorCommand:
    """What this machine has, what will be used, what is missing and how to get it. Status 1: can't run here yet."""

    folder: Path = Path(".")
    """Where runs will be kept."""

    def execute(self) -> int:
        from wmpo.cli.machine import examine

        return examine(folder=self.folder)
