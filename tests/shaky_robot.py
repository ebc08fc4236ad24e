"""The simulated robot with a bad cable, and a log of what it was told; for tests/test_robot.py."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from wmpo.envs.robot.simulated import TabletopRobot


class ShakyRobot(TabletopRobot):
    """Each fault begins at that observation of an episode: 0, never."""

    def __init__(self, log: str = "", drop: int = 0, late: int = 0, hang: int = 0, unplug: int = 0, speed: float = 10.0,
                 fps: int = 20) -> None:  # fmt: skip
        super().__init__(image_size=16, renderer="rays", fps=fps, max_speed=speed)
        self.log, self.faults = Path(log) if log else None, {"drop": drop, "late": late, "hang": hang, "unplug": unplug}
        self.count, self.old = 0, {}

    def note(self, event: str, *values: float) -> None:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(json.dumps([time.monotonic(), event, *values]) + "\n")

    def reset(self, initial_state: int) -> None:
        self.count = 0
        self.note("reset", initial_state)
        super().reset(initial_state)

    def observe(self) -> dict[str, Any]:
        self.count += 1
        now = {name: bool(at) and self.count >= at for name, at in self.faults.items()}
        if now["unplug"]:
            raise ConnectionError("the cable is out")
        if now["hang"]:
            self.note("hang")
            time.sleep(1000)
        if not now["drop"]:
            self.old = super().observe()
        if now["late"]:
            time.sleep(1.2 / self.fps)
        return self.old

    def act(self, action: np.ndarray) -> None:
        self.note("act", *action.tolist())
        super().act(action)

    def stop(self) -> None:
        self.note("stop")
        super().stop()

    def disconnect(self) -> None:
        self.note("disconnect")


class WrongRobot(ShakyRobot):
    """Says of itself, or answers from the fourth observation of an episode on, what no robot should."""

    def __init__(self, fact: str = "", value: Any = None, answer: str = "", **more: Any) -> None:
        super().__init__(**more)
        self.answer, self.value = answer, VALUES.get(str(value), value)
        if fact:
            setattr(self, fact, self.value)
        self.picture, self.feeling = np.zeros((16, 16, 3), np.uint8), np.zeros(self.state_dim, np.float32)

    def wrong(self, answer: str) -> bool:
        if self.answer != answer or self.count < 4:
            return False
        if self.value == "hang":
            time.sleep(1000)
        if self.value == "raise":
            raise RuntimeError("two\nlines")
        return True

    def observe(self) -> Any:
        seen = super().observe()
        if self.answer == "same memory":  # as drivers do that write one picture over another
            self.picture[:], self.feeling[:] = self.count, self.count
            return {"images": dict.fromkeys(self.cameras, self.picture), "state": self.feeling}
        if self.answer == "large":
            return {**seen, "images": {name: np.zeros((*size, 3), np.uint8) for name, size in self.cameras.items()}}
        if self.wrong("observe"):
            return self.value
        if self.wrong("camera"):
            return {**seen, "images": {"other": self.picture}}
        return {**seen, **{name: self.value for name in ("images", "state", "time") if self.wrong(name)}}

    def act(self, action: np.ndarray) -> None:
        late = self.answer == "act" and self.count >= 4
        time.sleep(0.8 * late)  # in which the watchdog stops it
        super().act(action)
        if late:
            raise OSError("the port is in use")

    def position(self) -> Any:
        return self.value if self.answer == "position" else super().position()

    def succeeded(self) -> Any:
        return self.value if self.wrong("succeeded") else super().succeeded()

    def reset(self, initial_state: int) -> None:
        super().reset(initial_state)
        while self.answer == "routine":  # which knows nothing of a stop
            self.act(np.ones(4, np.float32))
            time.sleep(0.02)

    def stop(self) -> None:
        super().stop()
        self.wrong("stop")


VALUES = {"now": time.time(), "nan": float("nan"), "inf": float("inf"), "float32": np.float32(-1)}
