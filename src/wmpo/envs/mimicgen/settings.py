"""Which tasks of MimicGen, and how they look. Needs no MimicGen to be looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from wmpo.envs.names import check_cameras, names_in
from wmpo.envs.robosuite.settings import CAMERAS, RobosuiteSettings

CONTROL = 20  # robosuite's own steps per second, as in MimicGen's data sets


class Task(NamedTuple):
    instruction: str
    """MimicGen has none; these are ours."""
    steps: int
    """Longest episode, in steps of the controller, as MimicGen evaluates."""


TASKS = {
    "Stack_D0": Task("put the red cube on the green cube", 400),
    "Stack_D1": Task("put the red cube on the green cube", 400),
    "StackThree_D0": Task("put the red cube on the green cube and the blue cube on the red cube", 400),
    "StackThree_D1": Task("put the red cube on the green cube and the blue cube on the red cube", 400),
    "Square_D0": Task("put the square nut on the square peg", 400),
    "Threading_D0": Task("put the needle through the ring", 400),
    "Threading_D1": Task("put the needle through the ring", 400),
    "Threading_D2": Task("put the needle through the ring", 400),
    "Coffee_D0": Task("put the coffee pod into the machine and close its lid", 400),
    "Coffee_D1": Task("put the coffee pod into the machine and close its lid", 400),
    "Coffee_D2": Task("put the coffee pod into the machine and close its lid", 400),
    "ThreePieceAssembly_D0": Task("put the first piece on the base and the second piece on the first", 500),
    "ThreePieceAssembly_D1": Task("put the first piece on the base and the second piece on the first", 500),
    "ThreePieceAssembly_D2": Task("put the first piece on the base and the second piece on the first", 500),
}


@dataclass(frozen=True)
class MimicGenSettings(RobosuiteSettings):
    """MimicGen: a Panda arm over a table, from your checkout of its repository. 7 numbers per action."""

    family: str = "mimicgen"
    """Which environment: MimicGen."""
    checkout: str = ""
    """Folder of your checkout of MimicGen's repository. Empty where MimicGen is installed from it. (The package
    mimicgen of PyPI is something else.)"""
    task: str = "Square_D0"
    """A task as MimicGen names it, such as Coffee_D0, or several joined by +, told apart by their sentences."""
    repeat: Literal[1, 2, 4, 5] = 1
    """Steps of the 20 Hz controller that an action takes: 1 as in its data sets; 4 are 5 actions per second."""

    def check(self) -> None:
        """Raises UserError for tasks and cameras that there are not."""
        names_in(self.task, TASKS)
        check_cameras(self.cameras, CAMERAS)
