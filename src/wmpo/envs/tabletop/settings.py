"""Names and sizes that need no MuJoCo to be looked up.

Lengths in metres, x to the right, y away from the front camera, z up; the table top is z = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from wmpo.config import Between, EnvConfig
from wmpo.errors import UserError


class Disruption(NamedTuple):
    """A change of the scene that nothing is trained on."""

    kind: str = "none"
    """none, position, background, texture or paraphrase."""
    strength: float = 1.0
    """In (0, 1]; 1 is the change whose name is the kind alone."""


_STRENGTHS = {"-mild": 0.1, "-moderate": 0.3, "": 1.0}
DISRUPTIONS: dict[str, Disruption] = {
    "none": Disruption(),
    **{
        kind + suffix: Disruption(kind, strength)
        for kind in ("position", "background", "texture")
        for suffix, strength in _STRENGTHS.items()
    },
    "paraphrase": Disruption("paraphrase"),
}
CAMERAS = ("front", "wrist")
FPS = 5
STATE_DIM, ACTION_DIM = 4, 4
HOLD = 3  # frames that the goal must hold before the task counts as accomplished
LINGER = 4  # frames recorded after that

CUBE = 0.03  # half edge of a cube
ZONE = 0.06  # half edge of the flat goal zone
TRAY = 0.05  # half edge of the tray
TRAY_HEIGHT = 0.045
RING_INNER, RING_OUTER, RING_HALF_HEIGHT = 0.024, 0.034, 0.0125
PEG, PEG_HEIGHT = 0.012, 0.05

OPENING = 0.05  # largest distance of a finger from the middle
REACH = ((-0.22, 0.22), (-0.20, 0.20), (0.004, 0.15))  # where the point between the fingertips may go


DISTURBED = 0.5  # share of the episodes of a task with a disturbance in which it comes
NUDGE_REACH, NUDGE_LENGTH = 0.025, (0.03, 0.05)  # how near above it the hand is then, and how far the object moves
LIFTED = 0.008  # how far above the table an object is in the air
SLIP_HEIGHT = (0.01, 0.05)  # how far it has been lifted when it slips

SOLID, SEEN_ONLY, UNSEEN = 0, 1, 3  # geom groups: what can be touched and seen, only seen, only touched

BLOCKS, RING = "blocks", "ring"  # the two layouts of objects


def check(cameras: Sequence[str], image_size: int, disruption: str) -> Disruption:
    """Complain about settings that do not exist, in one sentence."""
    for name in cameras:
        if name not in CAMERAS:
            raise UserError(f"There is no camera {name!r}; choose from {', '.join(CAMERAS)}.")
    if not cameras or len(set(cameras)) < len(cameras):
        raise UserError(f"Cameras must be one or more different ones of {', '.join(CAMERAS)}, not {list(cameras)}.")
    if not 8 <= image_size <= 1024:
        raise UserError(f"The image size must be from 8 to 1024 pixels, not {image_size}.")
    if disruption in DISRUPTIONS:
        return DISRUPTIONS[disruption]
    raise UserError(f"There is no disruption {disruption!r}; choose one of {', '.join(DISRUPTIONS)}.")


@dataclass(frozen=True)
class TabletopSettings(EnvConfig):
    """The embedded MuJoCo simulator: a gripper over a table."""

    task: str = "push"
    """Which task to learn, or several joined by +, told apart by their sentences; `wmpo tasks` lists them."""
    cameras: tuple[str, ...] = ("front",)
    """Cameras that the policy sees, and that dreams show: front, wrist. The reward model watches the first one."""
    image_size: Annotated[int, Between(8, 1024)] = 64
    """Height and width of each camera, in pixels. [paper 256]"""
    state: bool = True
    """The policy feels the gripper's position and opening too, and the dream imagines them. [paper: no]"""
    renderer: Literal["auto", "egl", "rays"] = "auto"
    """egl: OpenGL without a screen; rays: MuJoCo's own ray casting, needs no graphics; auto: egl where it works."""

    def check(self) -> None:
        """Raises UserError for tasks and cameras that there are not."""
        from wmpo.envs.tabletop.tasks import tasks_named  # which needs these settings itself

        tasks_named(self.task)
        check(self.cameras, self.image_size, "none")
