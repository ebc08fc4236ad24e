"""An arm with the methods of LeRobot's robots, for tests/test_robot.py. Imports no wmpo, as in LeRobot's own Python."""

from __future__ import annotations

from typing import Any

import numpy as np
from lerobot_bridge import LeRobotArm


class Arm:
    """It is where it was told to be."""

    observation_features = {"a.pos": float, "b.pos": float, "top": (24, 32, 3)}  # noqa: RUF012
    action_features = {"a.pos": float, "b.pos": float}  # noqa: RUF012

    def __init__(self) -> None:
        self.at = {"a.pos": 50.0, "b.pos": -20.0}

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        return {**self.at, "top": np.full((24, 32, 3), int(self.at["a.pos"]), np.uint8)}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.at = dict(action)
        return action


class Wave(LeRobotArm):
    def __init__(self, **options: Any) -> None:
        super().__init__(Arm(), "wave", fps=20, horizon=8, **options)
