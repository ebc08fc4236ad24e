"""Plays episodes on the shaky robot into a store until it is killed; for tests/test_robot.py."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import torch

from tests.coin import Hand
from wmpo.data.store import EpisodeStore
from wmpo.envs import make_env
from wmpo.envs.robot.settings import RobotSettings
from wmpo.families import allow
from wmpo.rollout import rollout

ROBOT = "shaky_robot:ShakyRobot"


def settings(log: Path, *options: str, **more: object) -> RobotSettings:
    allow(ROBOT)
    plain = {"robot": ROBOT, "reset": "routine", "success": "robot", "watchdog": 1.0, **more}
    return RobotSettings(family="robot", options=(f"log={log}", *options), **plain)  # type: ignore[arg-type]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
    folder, fault = Path(sys.argv[1]), sys.argv[2]
    more = {"reset": "person", "success": "person"} if fault == "person" else {}
    options = ["speed=4"]
    allow("tests.shaky_robot:WrongRobot")
    if fault == "large":
        more["robot"] = "tests.shaky_robot:WrongRobot"
        options += ["answer=large", "fact=cameras", 'value={"front": [1024, 1024]}']
    if fault == "routine":
        more["robot"] = "tests.shaky_robot:WrongRobot"
        options += ["answer=routine"]
    with closing(make_env(settings(folder / "log", *options, **more))) as env:
        store = EpisodeStore.open_or_create(folder / "store", env.spec)
        for number in range(len(store), 1000):
            generator = torch.Generator().manual_seed(number)
            rollout(
                env, Hand(), [number], temperature=1.0, generator=generator, record="hand", horizon=8,
                on_episode=lambda episode: store.append([episode]),
            )  # fmt: skip
            print(number, flush=True)
            if fault == "exception":
                raise RuntimeError("in the program that decides")
            if fault == "stuck":
                env.step([0], torch.zeros(1, 4, 4))
                time.sleep(1000)
