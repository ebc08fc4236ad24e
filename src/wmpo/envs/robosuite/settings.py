"""Which tasks of robosuite, and how they look. Needs no robosuite to be looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from wmpo.config import Between, EnvConfig
from wmpo.envs.names import check_cameras, names_in

CAMERAS = {
    "front": "agentview",
    "wrist": "robot0_eye_in_hand",
    "far": "frontview",
    "side": "sideview",
    "top": "birdview",
    "robot": "robot0_robotview",
}
CONTROL, REPEAT = 20, 4  # robosuite's own steps per second, and how many of them an action takes
STATE_DIM, ACTION_DIM = 9, 7


class Task(NamedTuple):
    name: str
    """In robosuite."""
    instruction: str
    horizon: int
    """Longest episode, in actions: about twice what our expert takes without noise."""


TASKS = {
    "lift": Task("Lift", "lift the red cube", 32),
    "stack": Task("Stack", "put the red cube on the green cube", 64),
    "square": Task("NutAssemblySquare", "put the square nut on the square peg", 96),
}


@dataclass(frozen=True)
class RobosuiteSettings(EnvConfig):
    """robosuite: a Panda arm over a table. 7 numbers per action, 5 actions a second."""

    family: str = "robosuite"
    """Which environment: robosuite."""
    task: str = "square"
    """lift, stack or square, or several joined by +, told apart by their sentences."""
    cameras: tuple[str, ...] = ("front",)
    """Cameras that the policy sees, and that dreams show: front, wrist, far, side, top, robot. The reward model watches
    the first one."""
    image_size: Annotated[int, Between(8, 1024)] = 64
    """Height and width of each camera, in pixels."""
    state: bool = True
    """The policy feels position and quaternion of the hand and both fingers too, and the dream imagines them."""
    faces: Annotated[int, Between(0, 1000000)] = 1000
    """Meshes that are only seen are coarsened to about so many triangles each, which saves time of drawing; 0: as they
    come."""

    def check(self) -> None:
        """Raises UserError for tasks and cameras that there are not."""
        names_in(self.task, TASKS)
        check_cameras(self.cameras, CAMERAS)
