"""Any robot that LeRobot drives, as a robot of wmpo. Runs in LeRobot's own Python: it imports no wmpo.

Actions are what `send_action` takes, states the numbers of `get_observation`, each in the order of LeRobot's features:
for an SO-101, six joints in degrees, the gripper from 0 to 100.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Bound = float | Sequence[float]
TRIES = 3


def made_by_lerobot(config: Mapping[str, Any]) -> Any:
    """The robot that a configuration describes, as LeRobot's own commands would make it."""
    import draccus
    import lerobot.cameras
    import lerobot.robots
    from lerobot.robots.config import RobotConfig
    from lerobot.robots.utils import make_robot_from_config

    # Each module registers its configurations. Of LeRobot's only those are imported that are asked for: others may
    # need what isn't installed, or load all of LeRobot's policies.
    kinds = [f'register_subclass("{kind}")' for kind in kinds_in(config)]
    for package in (lerobot.cameras, lerobot.robots):
        for found in pkgutil.iter_modules(package.__path__):
            files = (Path(package.__path__[0]) / found.name).glob("config*.py")
            if any(kind in file.read_text(encoding="utf-8") for file in files for kind in kinds):
                importlib.import_module(f"{package.__name__}.{found.name}")
    for found in pkgutil.iter_modules():  # as LeRobot names what others add to it
        if found.name.startswith(("lerobot_robot_", "lerobot_camera_")):
            with contextlib.suppress(Exception):  # as LeRobot does: it may be none that is asked for
                importlib.import_module(found.name)
    return make_robot_from_config(draccus.decode(RobotConfig, dict(config)))


def again(work: Callable[[], Any], after_failure: Callable[[], object] = bool) -> Any:
    """What `work` gives, up to TRIES times where servos did not answer in time, as happens now and then."""
    for left in reversed(range(TRIES)):
        try:
            return work()
        except ConnectionError:
            after_failure()
            if not left:
                raise


def kinds_in(config: Any) -> list[str]:
    """Every "type" in it, however deep."""
    parts = config.values() if isinstance(config, Mapping) else config if isinstance(config, (list, tuple)) else ()
    own = [str(config["type"])] if isinstance(config, Mapping) and "type" in config else []
    return own + [kind for part in parts for kind in kinds_in(part)]


class LeRobotArm:
    """`robot` is LeRobot's configuration of a robot, as a dict with a "type"; or, in a class of yours that
    extends this one, any object with the methods of LeRobot's robots."""

    def __init__(
        self,
        robot: Any,
        instruction: str,
        action_low: Bound,
        action_high: Bound,
        max_speed: Bound,
        fps: int = 30,
        horizon: int = 600,
        image_size: Sequence[int] = (),
        home: Sequence[float] | None = None,
    ) -> None:
        """`image_size` (height, width): what all pictures are scaled to; without it they stay as they are."""
        self.robot = made_by_lerobot(robot) if isinstance(robot, Mapping) else robot
        features = dict(self.robot.observation_features)
        self.numbers = [name for name, kind in features.items() if kind is float]
        shown = {name: shape for name, shape in features.items() if isinstance(shape, (tuple, list)) and shape[-1] == 3}
        size = tuple(image_size)
        self.cameras = {name: size or tuple(shape[:2]) for name, shape in shown.items()}
        self.motors = list(self.robot.action_features)
        self.state_dim, self.action_dim = len(self.numbers), len(self.motors)
        self.fps, self.horizon, self.instruction, self.home = fps, horizon, instruction, home
        self.action_low, self.action_high, self.max_speed = action_low, action_high, max_speed
        self.bus = threading.Lock()  # a serial line bears one talk at a time
        self.seen: Mapping[str, Any] = {}

    def connect(self) -> None:
        """Again from the start where servos did not answer in time: LeRobot gives up at the first."""

        def let_go() -> None:
            cameras = getattr(self.robot, "cameras", {}).values()
            for part in (self.robot, getattr(self.robot, "bus", None), *cameras):
                with contextlib.suppress(Exception):  # it may not be open yet
                    part.disconnect()

        again(self.robot.connect, let_go)

    def observe(self) -> dict[str, Any]:
        begun = time.monotonic()
        with self.bus:
            self.seen = seen = again(self.robot.get_observation)  # the watchdog has the last word
        cameras = getattr(self.robot, "cameras", {}).values()
        taken = [camera.latest_timestamp for camera in cameras if getattr(camera, "latest_timestamp", None)]
        images = {name: scaled(np.asarray(seen[name]), size) for name, size in self.cameras.items()}
        state = np.array([seen[name] for name in self.numbers], np.float32)
        return {"images": images, "state": state, "time": min(taken, default=begun)}

    def act(self, action: np.ndarray) -> None:
        with self.bus:
            self.robot.send_action(dict(zip(self.motors, action.tolist(), strict=True)))

    def position(self) -> np.ndarray:
        if missing := [name for name in self.motors if name not in self.numbers]:
            raise ValueError(f"the robot takes commands for {', '.join(missing)}, but does not say where they stand")
        self.observe()
        return np.array([self.seen[name] for name in self.motors], np.float32)

    def stop(self) -> None:
        """Hold where the joints were last seen. While a talk hangs on the line nothing can be sent, and the motors stay
        at the last command by themselves, which is at most a step away."""
        if not self.seen or not self.bus.acquire(timeout=0.5 / self.fps):
            return
        try:
            self.robot.send_action({name: self.seen[name] for name in self.motors if name in self.seen})
        finally:
            self.bus.release()

    def disconnect(self) -> None:
        self.robot.disconnect()


def scaled(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The picture (H, W, 3) at another size; each new pixel is a mean of old ones."""
    if image.shape[:2] == tuple(size):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX))
