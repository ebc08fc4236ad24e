"""The embedded tabletop in real time, as a robot: what the other side of a robot's cable is tried with."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from wmpo.envs.tabletop import display
from wmpo.envs.tabletop.settings import ACTION_DIM, FPS, TabletopSettings


class TabletopRobot:
    """A command is a velocity: the gripper goes on with it, each period, until the next command or a stop."""

    action_dim = ACTION_DIM
    action_low, action_high = -1.0, 1.0

    def __init__(
        self, task: str = "push", image_size: int = 64, renderer: str = "auto", fps: int = FPS, max_speed: float = 10.0
    ) -> None:
        """`fps`: actions per second of the clock on the wall; the simulated time of an action is always the same."""
        settings = TabletopSettings(task=task, image_size=image_size)
        settings.check()
        renderer = display.choose(renderer)
        display.prepare_environment(renderer, os.environ)
        from wmpo.envs.tabletop.episode import TabletopEpisode  # imports MuJoCo, which reads the environment

        self.episode = TabletopEpisode(
            state=True, task=task, cameras=list(settings.cameras), image_size=image_size, renderer=renderer,
            disruption="none",
        )  # fmt: skip
        self.cameras, self.state_dim = self.episode.cameras, self.episode.state_dim
        self.fps, self.horizon, self.max_speed = fps, self.episode.horizon, max_speed
        self.instruction = ""
        self.command: np.ndarray | None = None
        self.due = 0.0
        self.success = False

    def connect(self) -> None:
        self.reset(0)

    def reset(self, initial_state: int) -> None:
        self.command, self.success = None, False
        self.episode.reset(initial_state)
        self.instruction = self.episode.instruction

    def observe(self) -> dict[str, Any]:
        self._go_on()
        return {**self.episode.observe(), "time": time.monotonic()}

    def act(self, action: np.ndarray) -> None:
        self._go_on()
        self.command, self.due = action, time.monotonic() + 1.5 / self.fps  # half a period of slack
        self.success = self.episode.step(action)

    def _go_on(self) -> None:
        """Make up for the time since the last command, which nobody has stopped."""
        while (command := self.command) is not None and time.monotonic() > self.due:
            self.success = self.episode.step(command)
            self.due += 1 / self.fps

    def position(self) -> np.ndarray:
        return np.zeros(self.action_dim, np.float32)

    def stop(self) -> None:
        self.command = None

    def disconnect(self) -> None:
        self.stop()

    def succeeded(self) -> bool:
        return self.success
