"""A robot as an environment: one episode at a time, driven by a process of its own (`wmpo.envs.robot.driver`)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import termios
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmpo.data.info import check_spec
from wmpo.envs.robot import driver
from wmpo.envs.robot.settings import RobotSettings
from wmpo.envs.vector import module_paths
from wmpo.errors import UserError
from wmpo.families import CLASS, check_rate, family_class, require_allowed, saved_family
from wmpo.protocols import RewardModel
from wmpo.training.checkpoint import check_fits, opening
from wmpo.types import EnvSpec, Observation, Outcome

GOING_ON = "episodes that had ended are kept, and the same command goes on"


class RobotFamily:
    """The family."""

    Settings = RobotSettings

    @classmethod
    def build(cls, settings: RobotSettings, disruption: str = "none") -> RobotEnv:
        """Connects to the robot. Raises UserError where that can't be done."""
        settings.check()
        require_allowed({settings.robot: CLASS} if ":" in settings.robot else {})
        judge = Judge(Path(settings.reward_model)) if settings.reward_model else None
        return RobotEnv(settings, judge)


@dataclass
class Rate:
    """How well the rate was held, over all episodes."""

    periods: list[float] = field(default_factory=list)
    """Seconds from one command to the next, within episodes."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(driver.COUNTS, 0))

    def __str__(self) -> str:
        ms = 1000 * np.array(self.periods or [np.nan])
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.counts.items())
        return f"{len(self.periods)} periods of {ms.mean():.1f} ms in the mean, {ms.max():.1f} at worst; {counts}"


class RobotEnv:
    """Fulfils `wmpo.protocols.Env`, CountsEvents and LimitsActions. Any failure stops the robot and ends the driver."""

    spec: EnvSpec
    events: list[dict[str, int]]
    executed: Tensor
    """(1, K, D) what was sent to the robot in the last step, within its limits."""

    def __init__(self, settings: RobotSettings, judge: Judge | None = None) -> None:
        self.settings, self.judge, self.rate = settings, judge, Rate()
        self.name, self.events, self.instruction = settings.robot, [{}], ""
        program = shutil.which(os.path.expanduser(settings.python)) if settings.python else sys.executable
        if not program:
            raise UserError(f"env.python is {settings.python!r}, which is no program here: give a Python interpreter.")
        self._terminal = termios.tcgetattr(0) if os.isatty(0) else None
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # in our group: Ctrl-C and the keys of the terminal reach it, too
                [program, "-I" if settings.python else "-P", driver.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        self._connection: Connection | None = Connection(ours.detach())
        paths = module_paths(self.name, settings)
        driver.send(self._connection, {
            "name": self.name, "path": paths["path"], "folders": [*paths["folders"], os.getcwd()],
            "options": settings.arguments(), "watchdog": settings.watchdog,
            "success": settings.success, "person": settings.reset == "person",
        })  # fmt: skip
        try:
            self.spec = _spec(self.name, self._receive(settings.timeout)[0])
            if judge is not None:
                check_fits(judge.model, self.spec, settings.reward_model)
                check_rate(Path(settings.reward_model), self.spec.fps)
        except BaseException:
            self.close()
            raise

    def reset(self, initial_states: Sequence[int]) -> Observation:
        if len(initial_states) != 1:
            raise UserError(f"A robot plays one episode at a time, not {len(initial_states)} (max_batch is 1).")
        timeout = None if self.settings.reset == "person" else self.settings.timeout
        answer, arrays = self._ask({"op": "reset", "initial_state": int(initial_states[0])}, [], timeout)
        self._begun = dict.fromkeys(driver.COUNTS, 0)
        seen = self._outcome(answer, arrays).last((answer["instruction"],))
        if self.judge is not None:
            self.judge.begin(seen, next(iter(self.spec.cameras)))
        return seen

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        chunk = chunk_AKD.detach().to("cpu", torch.float32).numpy()
        if list(rows) != [0] or chunk.ndim != 3 or len(chunk) != 1 or chunk.shape[2] != self.spec.action_dim:
            raise UserError(f"A robot takes one chunk (1, K, {self.spec.action_dim}) in row 0, not {chunk.shape}.")
        timeout = chunk.shape[1] * (1 / self.spec.fps + 2 * self.settings.watchdog) + driver.GRACE
        answer, arrays = self._ask({"op": "step"}, [chunk[0]], timeout)
        self.executed = torch.tensor(answer["sent"])[None]
        self.rate.periods += answer["periods"]
        outcome = self._outcome(answer, arrays)
        return outcome if self.judge is None else self.judge(outcome)

    def _outcome(self, answer: dict[str, Any], arrays: list[np.ndarray]) -> Outcome:
        for name, count in answer["counts"].items():
            self.rate.counts[name] += count - self._begun[name]
        self._begun, self.events = answer["counts"], [answer["counts"]]
        *images, state = (torch.from_numpy(array.copy())[None] for array in arrays)
        shown = {name: image.permute(0, 1, 4, 2, 3) for name, image in zip(self.spec.cameras, images, strict=True)}
        return Outcome(shown, state, torch.tensor([answer["success"]]), torch.tensor([answer["done"]]))

    def _ask(
        self, head: dict[str, Any], arrays: list[np.ndarray], timeout: float | None
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        if self._connection is None:
            raise UserError(f"The robot {self.name} is disconnected.")
        try:
            driver.send(self._connection, head, arrays)
        except OSError:
            pass  # what it has said before it ended is read below
        except BaseException:
            self.close()
            raise
        return self._receive(timeout)

    def _receive(self, timeout: float | None) -> tuple[dict[str, Any], list[np.ndarray]]:
        assert self._connection is not None
        try:
            if not self._connection.poll(timeout):
                why = f"its driver gave no answer for {timeout:.1f} s"
            else:
                answer, arrays = driver.receive(self._connection)
                if "refused" in answer:
                    raise UserError(f"The robot {self.name} can't be used: {answer['refused'].rstrip('.')}.")
                if "stopped" not in answer:
                    return answer, arrays
                why = str(answer["stopped"])
        except (EOFError, OSError):
            why = f"its driver has ended with status {self._process.wait()}, so that nothing could stop it: look at it"
        except BaseException:  # Ctrl-C: the driver stops when the pipe closes, if it hasn't yet
            self.close()
            raise
        self.close()
        raise UserError(f"The robot {self.name} was stopped: {why}; {GOING_ON}.")

    def close(self) -> None:
        """Stop, disconnect, and say how the rate was held. Twice does no harm."""
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        connection.close()  # at which the driver stops the robot
        try:
            self._process.wait(driver.GRACE + 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._terminal is not None:  # the driver reads single keys, and may have been killed
            termios.tcsetattr(0, termios.TCSADRAIN, self._terminal)
        if self.rate.periods:
            print(f"Robot {self.name}, declared {1000 / self.spec.fps:.1f} ms: {self.rate}", file=sys.stderr)


class Judge:
    """Success by a reward model: clips end at every frame, and one that scores above the threshold ends the episode."""

    def __init__(self, folder: Path) -> None:
        with opening(folder):
            self.model: RewardModel = family_class("reward", saved_family("reward", folder, "conv")).from_pretrained(
                folder
            )

    def begin(self, first: Observation, camera: str) -> None:
        self.camera, self.instruction = camera, first.instruction
        self.recent = first.images[camera][:, None].expand(-1, self.model.clip_length - 1, -1, -1, -1)

    def __call__(self, outcome: Outcome) -> Outcome:
        video, L = torch.cat([self.recent, outcome.images[self.camera]], 1), self.model.clip_length
        self.recent = video[:, video.shape[1] - L + 1 :]
        clips = video.unfold(1, L, 1)[0].movedim(-1, 1)  # (K, L, C, H, W)
        hit = self.model.score(clips.contiguous(), self.instruction * len(clips)) > self.model.threshold
        success = (hit.cumsum(0) > 0)[None].cpu()
        return replace(outcome, success=success, done=success[:, -1])


def _spec(name: str, facts: dict[str, Any]) -> EnvSpec:
    """What a robot says about itself, checked."""
    try:
        cameras = {camera: (int(height), int(width)) for camera, (height, width) in facts["cameras"].items()}
        sizes = [int(facts[fact]) for fact in ("state_dim", "action_dim", "horizon", "fps")]
        low, high = (
            tuple(np.broadcast_to(np.asarray(facts[bound], float), sizes[1]).tolist())
            for bound in ("action_low", "action_high")
        )
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"The robot {name} describes itself wrongly: {error} (docs/robot.md).") from error
    spec = replace(EnvSpec(cameras, *sizes), max_batch=1, action_low=low, action_high=high)
    check_spec(spec, name)
    return spec
