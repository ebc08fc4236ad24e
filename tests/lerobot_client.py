"""LeRobot's robot client, as it is, with a robot that is simulated: a program for LeRobot's own Python.

Its argument is JSON: the server's address, names, and how many actions to wait for; it prints the actions that the
robot was sent. What the robot shows depends on how many these were.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.async_inference.configs import RobotClientConfig
from lerobot.async_inference.robot_client import RobotClient
from lerobot.robots import Robot, RobotConfig

ASKED = json.loads(sys.argv[1])
DEADLINE = 600.0  # seconds


@RobotConfig.register_subclass("counting")
@dataclass
class CountingConfig(RobotConfig):
    pass


class Counting(Robot):
    config_class = CountingConfig
    name = "counting"

    def __init__(self, config: CountingConfig) -> None:
        super().__init__(config)
        self.moves: list[list[float]] = []

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(ASKED["motors"], float), **{k: (*size, 3) for k, size in ASKED["pictures"].items()}}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(ASKED["actions"], float)

    @property
    def is_connected(self) -> bool:
        return True

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None: ...
    def disconnect(self) -> None: ...
    def calibrate(self) -> None: ...
    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        count = len(self.moves)
        rng = np.random.default_rng(count)
        shown = {k: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for k, size in ASKED["pictures"].items()}
        return {ASKED["motors"][0]: 0.1 * count, ASKED["motors"][1]: np.float32(1 - count), **shown}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.moves.append(list(action.values()))
        return action


client = RobotClient(
    RobotClientConfig(
        policy_type="act", pretrained_name_or_path="nobody/nothing", robot=CountingConfig(), actions_per_chunk=50,
        task=ASKED["task"], server_address=ASKED["address"], chunk_size_threshold=ASKED["threshold"], fps=20,
    )
)  # fmt: skip
assert client.start()
threads = [
    threading.Thread(target=client.receive_actions, daemon=True),
    threading.Thread(target=client.control_loop, args=(ASKED["task"],), daemon=True),
]
for thread in threads:
    thread.start()
begun = time.monotonic()
while len(client.robot.moves) < ASKED["count"] and time.monotonic() < begun + DEADLINE:
    time.sleep(0.05)
moves = client.robot.moves[: ASKED["count"]]
client.stop()
print(json.dumps(moves))
