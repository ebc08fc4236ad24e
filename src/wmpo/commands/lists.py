"""`wmpo recipes`, `wmpo tasks` and `wmpo doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recipes:
    """What `wmpo run` can run."""

    def execute(self) -> None:
        from wmpo.recipes import ABOUT, RECIPES

        width = max(map(len, RECIPES))
        for name in RECIPES:
            print(f"{name:{width}}  {ABOUT[name]}")


@dataclass(frozen=True)
class Tasks:
    """What the embedded simulator can ask of a policy."""

    def execute(self) -> None:
        from wmpo.envs.tabletop.tasks import TASKS

        width = max(map(len, TASKS))
        for name, task in TASKS.items():
            print(f"{name:{width}}  {task.instruction}  (at most {task.horizon} actions)")


@dataclass(frozen=True)
class Doctor:
    """What this machine has, what will be used, what is missing and how to get it. Status 1: can't run here yet."""

    folder: Path = Path(".")
    """Where runs will be kept."""

    def execute(self) -> int:
        from wmpo.doctor import examine

        return examine(folder=self.folder)
