"""What a robot must do. Its class may live in another Python, without wmpo: nothing needs to be subclassed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class Robot(Protocol):
    """One robot. Made with `env.options` as keyword arguments; touches nothing before `connect`.

    All methods are called from one thread, but for `stop`. It may also have any of these:

        reset(initial_state)    a routine that brings robot and scene to an initial state
        home                    (D,) the action to end up at before each episode, within the limits
        succeeded() -> bool     whether the task counts as accomplished now (env.success robot)
    """

    cameras: Mapping[str, tuple[int, int]]  # camera -> (height, width) in pixels
    state_dim: int  # S, 0 without a state
    action_dim: int  # D
    horizon: int  # longest episode, in actions
    fps: int  # actions per second
    instruction: str  # what to do, in words
    action_low: float | Sequence[float]  # commands are limited to lie between these, each one number or D
    action_high: float | Sequence[float]
    max_speed: float | Sequence[float]  # the most that a command may differ from the one before, per second

    def connect(self) -> None: ...

    def observe(self) -> Mapping[str, Any]:
        """ "images": {camera: (H, W, 3) uint8}, "state": (S,), and as you like "time": when the oldest of it was taken,
        in seconds of `time.monotonic()`, without which a camera that shows old pictures is not noticed."""
        ...

    def act(self, action: np.ndarray) -> None:
        """Send a command (D,) float32, and return at once."""
        ...

    def position(self) -> np.ndarray:
        """(D,) what a command would be that leaves everything as it is: where joints stand, or 0 for velocities."""
        ...

    def stop(self) -> None:
        """Stand still now, and hold. Called from any thread at any time, even while another method hangs; again does no
        harm, and the next `act` ends it."""
        ...

    def disconnect(self) -> None: ...
