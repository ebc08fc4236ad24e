"""Which tasks of LIBERO, and how they look. Needs no LIBERO to be looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from wmpo.config import Between, EnvConfig
from wmpo.errors import UserError

CAMERAS = {"front": "agentview", "wrist": "robot0_eye_in_hand"}
CONTROL = 20  # Hz, of LIBERO's controller
FPS = 5
STATE_DIM, ACTION_DIM = 9, 7
BENCHMARK_STATES = 50  # initial states of each task that come with the benchmark


class Suite(NamedTuple):
    tasks: int
    horizon: int
    """Longest episode, in actions: about the time that policies usually get, and twice what our expert takes."""
    placing: bool
    """Whether each task is to put one thing on or into another, which our expert can do."""


SUITES = {
    "libero_spatial": Suite(10, 64, True),
    "libero_object": Suite(10, 70, True),
    "libero_goal": Suite(10, 75, False),
    "libero_10": Suite(10, 130, False),
    "libero_90": Suite(90, 100, False),
}


@dataclass(frozen=True)
class LiberoSettings(EnvConfig):
    """LIBERO: a Panda arm in tabletop scenes. Front camera, wrist camera, 7 numbers per action, 5 actions a second."""

    family: str = "libero"
    """Which environment: LIBERO."""
    timeout: Annotated[float, Between(0.1, 1e6)] = 600.0
    """Seconds that a simulator process may take for one request before it is replaced; it builds each task once."""
    suite: Literal["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"] = "libero_spatial"
    """Which of LIBERO's suites."""
    task: str = "0"
    """Number of a task in the suite, or several joined by +, told apart by their sentences."""
    cameras: tuple[str, ...] = ("front", "wrist")
    """Cameras that the policy sees, and that dreams show: front, wrist. The reward model watches the first one."""
    image_size: Annotated[int, Between(8, 1024)] = 128
    """Height and width of each camera, in pixels."""
    state: bool = True
    """The policy feels position and quaternion of the hand and both fingers too, and the dream imagines them."""
    horizon: Annotated[int, Between(0, 10000)] = 0
    """Longest episode, in actions; 0: that of the suite (docs/libero.md)."""
    faces: Annotated[int, Between(0, 1000000)] = 2000
    """Meshes that are only seen are coarsened to about so many triangles each, which is most of the time of drawing; 0:
    as they come."""

    def check(self) -> None:
        """Raises UserError for tasks and cameras that there are not."""
        numbers_of(self.suite, self.task)
        if not self.cameras or len(set(self.cameras)) < len(self.cameras) or not set(self.cameras) <= set(CAMERAS):
            raise UserError(f"Cameras must be one or more different ones of front, wrist, not {list(self.cameras)}.")


def numbers_of(suite: str, task: str) -> list[int]:
    """The numbers in the setting `task`. Raises UserError where the suite has no such tasks."""
    count = SUITES[suite].tasks
    numbers = [int(part) if part.isascii() and part.isdigit() and len(part) < 4 else -1 for part in task.split("+")]
    if len(set(numbers)) < len(numbers) or not all(0 <= number < count for number in numbers):
        raise UserError(f"env.task is {task!r}: give numbers of tasks of {suite}, 0 to {count - 1}, as in 2 or 2+5.")
    return numbers
