"""The tabletop as an episode class (`wmpo.envs.worker.Episode`), with its scripted demonstrations. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from wmpo.envs.recorded import recorded
from wmpo.envs.tabletop.env import Snapshot, TabletopEnv, Values
from wmpo.envs.tabletop.experts import Noise, act
from wmpo.envs.tabletop.settings import ACTION_DIM, FPS, STATE_DIM
from wmpo.envs.tabletop.tasks import task_of


class TabletopEpisode:
    """An episode is done 4 frames after success."""

    action_dim, fps = ACTION_DIM, FPS

    def __init__(self, state: bool, **settings: Any) -> None:
        """`state`: whether to observe the gripper's; the rest is for `TabletopEnv`."""
        self.env = TabletopEnv(**settings)
        self.cameras = dict.fromkeys(self.env.cameras, (self.env.image_size, self.env.image_size))
        self.state_dim = STATE_DIM if state else 0
        self.horizon = self.env.horizon
        self.tasks = tuple(task.name for task in self.env.tasks)

    @property
    def instruction(self) -> str:
        return self.env.instruction()

    @property
    def done(self) -> bool:
        return self.env.lingered

    def reset(self, initial_state: int) -> None:
        self.env.restart(initial_state)

    def observe(self) -> Values:
        images = {camera: self.env.draw(camera).copy() for camera in self.cameras}
        return {"images": images, "state": self.env.state()[: self.state_dim]}

    def step(self, action: np.ndarray) -> bool:
        return self.env.advance(action)

    def get_state(self) -> Snapshot:
        return self.env.get_state()

    def set_state(self, state: Snapshot) -> None:
        self.env.set_state(state)

    def events(self) -> dict[str, int]:
        return self.env.events()

    def task_of(self, initial_state: int) -> str:
        return task_of(self.env.tasks, initial_state).name

    def demonstrate(self, initial_state: int, noise: float, seed: int, min_pace: float) -> Values:
        """The scripted expert acts until the episode is done; noise depends on seed and initial-state number only."""
        env = self.env
        env.restart(initial_state)
        rng = np.random.default_rng([seed, initial_state])
        disturbance = Noise(noise * env.task.noise, rng)
        pace = rng.uniform(min_pace, 1.0)
        disturbance.scale *= rng.uniform()  # some demonstrators have a steadier hand than others
        patience = env.horizon / min_pace  # a demonstrator takes the time that they need
        seen, success, actions, labels = [self.observe()], [False], [], []
        while not env.lingered and env.counters.frame < patience:
            labels.append(act(env.task, env.view(), pace))
            actions.append(disturbance.disturb(labels[-1]))
            success.append(env.advance(actions[-1]))
            seen.append(self.observe())
        return recorded(seen, actions, labels, success, {"renderer": env.renderer.name, **self.events()})
