"""An SO-101 as LeRobot drives it, with its own driver and cameras, at a port that only speaks its servos' protocol.

LeRobot, its extra feetech and pyzmq must be installed beside wmpo; without them only the bridge's imports are tried.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from wmpo.config import RewardConfig
from wmpo.envs import make_env
from wmpo.envs.robot.lerobot_bridge import LeRobotArm, kinds_in
from wmpo.envs.robot.settings import RobotSettings
from wmpo.rewards import build_reward_model
from wmpo.types import EnvSpec

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program behind the cable, and LeRobot's configuration of the robot there."""
    for name in ("lerobot.robots", "scservo_sdk", "zmq"):
        pytest.importorskip(name)
    environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "LP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.so101_cable", str(tmp_path)], cwd=ROOT, env=environ, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "robot.json").exists():
            assert running.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        yield running, (tmp_path / "robot.json").read_text()
    finally:
        running.communicate()  # closes its input, and so ends it


def test_lerobots_driver_moves_it(cable: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    running, robot = cable
    assert running.stdin is not None and running.stdout is not None
    running.stdin.write("reset 3\n")
    running.stdin.flush()
    assert running.stdout.readline() == "ready 3\n"
    spec = EnvSpec({"front": (48, 64), "wrist": (48, 64)}, state_dim=6, action_dim=6, horizon=300, fps=10)
    build_reward_model(RewardConfig(), spec).with_threshold(1e9).save_pretrained(tmp_path / "model")
    home = [0.0, 0.0, 15.0, -45.0, 0.0, 100.0]
    options = (f"robot={robot}", "instruction=tidy up", "fps=10", "horizon=300", "image_size=[48, 64]",
               "action_low=-90", "action_high=[90, 90, 90, 90, 90, 100]", "max_speed=60", f"home={home}")  # fmt: skip
    config = RobotSettings(
        family="robot", robot="lerobot", python=sys.executable, options=options, reset="routine",
        success="reward_model", reward_model=str(tmp_path / "model"), watchdog=2.0,
    )  # fmt: skip
    with closing(make_env(config)) as env:
        assert env.spec.cameras == spec.cameras and env.spec.action_dim == 6
        seen = env.reset([0])
        assert seen.instruction == ("tidy up",) and seen.state is not None
        assert np.abs(seen.state.numpy() - home).max() < 4  # from 14 away
        front = seen.images["front"][0].int()
        assert (front[0] - front[2]).max() > 100  # the tray is yellow and the cube red, so red comes first
        target = torch.tensor(home) + torch.tensor([12.0, 0, 0, 0, 0, -50])
        out = env.step([0], target.expand(1, 15, 6))
        assert out.state is not None
        moved = out.state[0] - torch.tensor(home)
        assert (torch.diff(moved[:, 0]) > -0.2).all() and abs(moved[-1, 0] - 12) < 3 and abs(moved[-1, 5] + 50) < 5
        assert moved[:, 1:4].abs().max() < 4


class Deaf:
    """A robot of LeRobot's whose servos sometimes don't answer."""

    observation_features = action_features = {"a.pos": float}  # noqa: RUF012

    def __init__(self, misses: int) -> None:
        self.misses, self.open = misses, False

    def answer(self) -> None:
        self.misses -= 1
        if self.misses >= 0:
            raise ConnectionError("There is no status packet!")

    def connect(self) -> None:
        if self.open:
            raise ConnectionError("is connected already")
        self.open = True
        self.answer()

    def disconnect(self) -> None:
        self.open = False

    def get_observation(self) -> dict[str, float]:
        self.answer()
        return {"a.pos": 3.0}


def test_servos_are_asked_again() -> None:
    assert LeRobotArm(Deaf(2), "wave", -1, 1, 1).position().tolist() == [3]
    with pytest.raises(ConnectionError, match="no status packet"):
        LeRobotArm(Deaf(3), "wave", -1, 1, 1).position()
    LeRobotArm(Deaf(2), "wave", -1, 1, 1).connect()
    with pytest.raises(ConnectionError, match="no status packet"):
        LeRobotArm(Deaf(3), "wave", -1, 1, 1).connect()


LEROBOT = {
    "draccus.py": "def decode(kind, config): return config",
    "lerobot/__init__.py": "",
    "lerobot/cameras/__init__.py": "",
    "lerobot/cameras/eye/__init__.py": "print('eye')",
    "lerobot/cameras/eye/configuration_eye.py": '@CameraConfig.register_subclass("eye")',
    "lerobot/robots/__init__.py": "",
    "lerobot/robots/config.py": "RobotConfig = object",
    "lerobot/robots/utils.py": "make_robot_from_config = print",
    "lerobot/robots/arm/__init__.py": "print('arm')",
    "lerobot/robots/arm/config_arm.py": '@RobotConfig.register_subclass("arm")',
    "lerobot/robots/legs/__init__.py": "raise TypeError('loads all of the policies')",
    "lerobot/robots/legs/config_legs.py": '@RobotConfig.register_subclass("legs")',
    "lerobot_robot_mine.py": "print('mine')",
}


@pytest.mark.parametrize(("kind", "said"), [("arm", "eye\narm\nmine\n{"), ("legs", "loads all of the policies")])
def test_of_lerobot_only_what_is_asked_for_is_imported(kind: str, said: str, tmp_path: Path) -> None:
    for name, text in LEROBOT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    config = {"type": kind, "cameras": {"front": {"type": "eye"}}}
    assert kinds_in(config) == [kind, "eye"]
    code = f"from lerobot_bridge import made_by_lerobot; made_by_lerobot({json.dumps(config)})"
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src/wmpo/envs/robot'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert said in done.stdout + done.stderr
