"""Which tasks of MetaWorld, and how they look. Needs no MetaWorld to be looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from wmpo.config import Between, EnvConfig
from wmpo.envs.names import check_cameras, names_in

# "front" is MetaWorld's corner4, from behind the hand's workspace; MetaWorld draws its corner cameras upside down.
CAMERAS = {
    "front": "corner4",
    "wrist": "gripperPOV",
    "top": "topview",
    "corner": "corner",
    "corner2": "corner2",
    "corner3": "corner3",
    "behind": "behindGripper",
}
UPSIDE_DOWN = ("front", "corner", "corner2", "corner3")
CONTROL, REPEAT = 80, 8  # MetaWorld's own steps per second, and how many of them an action takes
STATE_DIM, ACTION_DIM = 4, 4


class Task(NamedTuple):
    instruction: str
    horizon: int
    """Longest episode, in actions: three times what its expert took at most in a few tries, and 32 at least."""


TASKS = {
    "assembly-v3": Task("put the ring on the peg", 108),
    "basketball-v3": Task("dunk the basketball into the hoop", 72),
    "bin-picking-v3": Task("move the green cube from one bin to the other", 52),
    "box-close-v3": Task("put the lid on the box", 60),
    "button-press-topdown-v3": Task("press the button from above", 36),
    "button-press-topdown-wall-v3": Task("press the button behind the wall from above", 32),
    "button-press-v3": Task("press the button", 36),
    "button-press-wall-v3": Task("reach around the wall and press the button", 36),
    "coffee-button-v3": Task("press the button of the coffee machine", 32),
    "coffee-pull-v3": Task("pull the mug away from the coffee machine to the goal", 40),
    "coffee-push-v3": Task("push the mug under the coffee machine", 36),
    "dial-turn-v3": Task("turn the dial", 36),
    "disassemble-v3": Task("take the ring off the peg", 108),
    "door-close-v3": Task("close the door", 36),
    "door-lock-v3": Task("lock the door", 56),
    "door-open-v3": Task("open the door", 60),
    "door-unlock-v3": Task("unlock the door", 36),
    "hand-insert-v3": Task("push the hand into the hole", 36),
    "drawer-close-v3": Task("close the drawer", 36),
    "drawer-open-v3": Task("open the drawer", 44),
    "faucet-open-v3": Task("turn the faucet on", 36),
    "faucet-close-v3": Task("turn the faucet off", 36),
    "hammer-v3": Task("hammer the nail into the block", 36),
    "handle-press-side-v3": Task("press the handle down, from the side", 60),
    "handle-press-v3": Task("press the handle down", 32),
    "handle-pull-side-v3": Task("pull the handle up, from the side", 60),
    "handle-pull-v3": Task("pull the handle up", 60),
    "lever-pull-v3": Task("pull the lever up", 36),
    "pick-place-wall-v3": Task("pick the puck up and carry it over the wall to the goal", 56),
    "pick-out-of-hole-v3": Task("pick the puck out of the hole", 52),
    "pick-place-v3": Task("pick the puck up and carry it to the goal", 32),
    "plate-slide-v3": Task("slide the plate into the cabinet", 32),
    "plate-slide-side-v3": Task("slide the plate sideways into the cabinet", 32),
    "plate-slide-back-v3": Task("slide the plate out of the cabinet", 60),
    "plate-slide-back-side-v3": Task("slide the plate sideways out of the cabinet", 36),
    "peg-insert-side-v3": Task("insert the peg into the hole in the side of the box", 96),
    "peg-unplug-side-v3": Task("unplug the peg sideways", 72),
    "soccer-v3": Task("kick the ball into the goal", 32),
    "stick-push-v3": Task("grasp the stick and push the thermos to the goal with it", 32),
    "stick-pull-v3": Task("grasp the stick and pull the thermos to the goal with it", 84),
    "push-v3": Task("push the puck to the goal", 32),
    "push-wall-v3": Task("push the puck around the wall to the goal", 60),
    "push-back-v3": Task("pull the puck back to the goal", 60),
    "reach-v3": Task("reach the goal with the hand", 60),
    "reach-wall-v3": Task("reach over the wall to the goal with the hand", 60),
    "shelf-place-v3": Task("put the block on the shelf", 60),
    "sweep-into-v3": Task("sweep the block into the hole", 60),
    "sweep-v3": Task("sweep the block off the table", 60),
    "window-open-v3": Task("open the window", 60),
    "window-close-v3": Task("close the window", 60),
}


@dataclass(frozen=True)
class MetaWorldSettings(EnvConfig):
    """MetaWorld: a Sawyer arm over a table, 50 tasks. 4 numbers per action, 10 actions a second."""

    family: str = "metaworld"
    """Which environment: MetaWorld."""
    task: str = "peg-insert-side-v3"
    """Name of a task, or several joined by +, told apart by their sentences; `wmpo tasks metaworld` lists them."""
    cameras: tuple[str, ...] = ("front",)
    """Cameras that the policy sees, and that dreams show: front, wrist, top, corner, corner2, corner3, behind. The
    reward model watches the first one."""
    image_size: Annotated[int, Between(8, 1024)] = 64
    """Height and width of each camera, in pixels."""
    state: bool = True
    """The policy feels the hand's position and opening too, and the dream imagines them."""
    horizon: Annotated[int, Between(0, 10000)] = 0
    """Longest episode, in actions; 0: the longest of its tasks, see `wmpo tasks metaworld`."""
    faces: Annotated[int, Between(0, 1000000)] = 1000
    """Meshes that are only seen are coarsened to about so many triangles each, which saves time of drawing; 0: as they
    come."""

    def check(self) -> None:
        """Raises UserError for tasks and cameras that there are not."""
        names_in(self.task, TASKS)
        check_cameras(self.cameras, CAMERAS)
