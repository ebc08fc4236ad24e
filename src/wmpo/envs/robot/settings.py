"""Settings of a robot; no driver and no torch is needed to look them up."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from wmpo.config import Between, EnvConfig
from wmpo.errors import UserError


@dataclass(frozen=True)
class RobotSettings(EnvConfig):
    """A robot, or what stands for one: one episode at a time (docs/robot.md)."""

    robot: str = "tabletop"
    """Which robot: lerobot (any that LeRobot drives), tabletop (the embedded simulator in real time), an entry point of
    the group wmpo.robots, or yours as module:Class."""
    options: tuple[str, ...] = ()
    """What the robot's class is made with, each as name=value; the value is JSON, or else a word."""
    reset: Literal["person", "routine"] = "person"
    """Who brings the scene back between episodes. person: the terminal asks, and waits for Enter, after any routine of
    the robot; routine: its routine alone."""
    success: Literal["person", "robot", "reward_model"] = "person"
    """Who says that an episode has succeeded. person: the key s while it runs, f for a failure; robot: its class;
    reward_model: that of env.reward_model."""
    reward_model: str = ""
    """Folder of a saved reward model, for env.success reward_model; it watches the first camera."""
    watchdog: Annotated[float, Between(0.01, 60)] = 0.5
    """Seconds by which an observation or a command may be late; then the robot is stopped."""

    def arguments(self) -> dict[str, object]:
        """The options, as keyword arguments. Raises UserError where one is no name=value."""
        found: dict[str, object] = {}
        for option in self.options:
            name, equals, value = option.partition("=")
            if not equals or not name.isidentifier() or name in found:
                raise UserError(f"env.options holds {option!r}; each must be name=value, and each name come once.")
            try:
                found[name] = json.loads(value)
            except ValueError:
                found[name] = value
        return found

    def check(self) -> None:
        """Raises UserError for settings that make no sense together."""
        self.arguments()
        if "person" in (self.reset, self.success) and not sys.stdin.isatty():
            raise UserError(
                "A person is to reset the scene or to judge, but the standard input is no terminal: start this in one, "
                "or set env.reset to routine and env.success to robot or reward_model."
            )
        if (self.success == "reward_model") != bool(self.reward_model):
            raise UserError(
                f"env.success is {self.success}, and env.reward_model is {self.reward_model!r}: success by a reward "
                "model needs both, anything else neither."
            )
        if self.reward_model and not Path(self.reward_model).is_dir():
            raise UserError(f"env.reward_model: there is no folder {self.reward_model}.")
