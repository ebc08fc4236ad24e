"""`wmpo recipes`, `wmpo tasks` and `wmpo doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
    """What the embedded simulator can ask of a policy."""

    def execute(self) -> None:
        from wmpo.envs.tabletop.tasks import TASKS

        width = max(map(len, TASKS))
        for name, task in TASKS.items():
            print(f"{name:{width}}  {task.instruction}  (at most {task.horizon} actions)")


@dataclass(frozen=True)
class DoctorCommand:
    """What this machine has, what will be used, what is missing and how to get it. Status 1: can't run here yet."""

    folder: Path = Path(".")
    """Where runs will be kept."""

    def execute(self) -> int:
        from wmpo.cli.machine import examine

        return examine(folder=self.folder)
