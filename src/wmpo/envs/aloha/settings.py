"""Which tasks of gym-aloha, and how they look. Needs no gym-aloha to be looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from wmpo.config import Between, EnvConfig
from wmpo.envs.names import check_cameras, names_in

CAMERAS = {
    "top": "top",
    "angle": "angle",
    "front": "front_close",
    "left_wrist": "left_wrist",
    "right_wrist": "right_wrist",
}
CONTROL, REPEAT = 50, 5  # gym-aloha's own steps per second, and how many of them an action takes
JOINTS = 6  # of an arm, without its gripper
STATE_DIM = ACTION_DIM = 2 * (JOINTS + 1)
LOW = [-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158, 0.0] * 2  # of the joints, and a closed gripper
HIGH = [3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, 1.0] * 2


class Task(NamedTuple):
    name: str
    """In gym-aloha."""
    instruction: str
    horizon: int
    """Longest episode, in actions: at least twice what our expert takes."""


TASKS = {
    "transfer-cube": Task("transfer_cube", "pick the red cube up with the right arm and hand it to the left arm", 64),
    "insertion": Task("insertion", "insert the red peg into the blue socket, in the air", 64),
}


@dataclass(frozen=True)
class AlohaSettings(EnvConfig):
    """gym-aloha: two ViperX arms over a table. 14 numbers per action, where each joint should be; 10 actions a
    second."""

    family: str = "aloha"
    """Which environment: gym-aloha."""
    task: str = "transfer-cube"
    """transfer-cube or insertion, or both joined by +, told apart by their sentences."""
    cameras: tuple[str, ...] = ("top",)
    """Cameras that the policy sees, and that dreams show: top, angle, front, left_wrist, right_wrist. The reward model
    watches the first one."""
    image_size: Annotated[int, Between(8, 1024)] = 64
    """Height and width of each camera, in pixels."""
    state: bool = True
    """The policy feels all joints and how far the grippers are open, and the dream imagines them."""

    def check(self) -> None:
        """Raises UserError for tasks and cameras that there are not."""
        names_in(self.task, TASKS)
        check_cameras(self.cameras, CAMERAS)
