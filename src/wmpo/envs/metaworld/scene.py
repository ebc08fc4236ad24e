"""One task of MetaWorld, stepped, saved and restored."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mujoco
import numpy as np

from wmpo.envs.gym.mujoco_state import Values, own_values, set_own_values
from wmpo.envs.lighten import lighten
from wmpo.envs.metaworld.settings import REPEAT
from wmpo.errors import UserError

_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
MOVES = 3  # numbers of an action that move the hand; the last one is the gripper's


@dataclass(frozen=True)
class Snapshot:
    """All that an episode's future depends on; restoring it continues bit for bit."""

    physics: np.ndarray
    bodies: np.ndarray
    """Positions that MetaWorld draws anew for each episode, but keeps in the model."""
    sites: np.ndarray
    own: Values
    """What the environment remembers beside the physics: goals, where things were, the last observation."""


class MetaWorldScene:
    """MetaWorld's environment of a task, which all episodes of a process share, each as a snapshot."""

    def __init__(self, task: str, faces: int) -> None:
        environments, policies = _import_metaworld()
        env = self.env = environments[task]()
        self._policy = policies[task]()
        env._partially_observable = False  # its expert must see the goal, in observations that nobody else sees
        vars(env).pop("sawyer_observation_space", None)  # computed from that, and kept
        env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
        env.max_path_length = sys.maxsize  # who plays ends episodes
        self.model: mujoco.MjModel = env.model
        self.data: mujoco.MjData = env.data
        self.model.vis.quality.offsamples = 0
        if faces:
            lighten(self.model, faces)
        self._fresh = self.save()

    def begin(self, initial_state: int) -> None:
        """Draw an initial state by MetaWorld's own rules; equal numbers give equal ones."""
        self.load(self._fresh)
        self.env.seed(initial_state)
        self.env.reset()

    def step(self, action: np.ndarray) -> bool:
        """Execute an action (4,) for 8 steps; whether MetaWorld calls it a success now."""
        for _ in range(REPEAT - 1):
            self._move(action)
        *_, info = self.env.step(action)  # the same, and then what it all means, which takes most of the time
        return bool(info["success"])

    def _move(self, action: np.ndarray) -> None:
        self.env.set_xyz_action(action[:MOVES])
        self.env.do_simulation([action[MOVES], -action[MOVES]], n_frames=self.env.frame_skip)

    def state(self) -> np.ndarray:
        """(4,) position of the hand, and how far it is open, in [0, 1]."""
        return self.env._prev_obs[:4]  # what it has observed last

    def expert(self) -> Callable[[float], np.ndarray]:
        return self._expert

    def _expert(self, pace: float) -> np.ndarray:
        """(4,) what MetaWorld's expert will do on average in the 8 steps to come, tried out and undone."""
        here, actions = self.save(), []
        for _ in range(REPEAT):
            now, goal = self.env._get_curr_obs_combined_no_goal(), self.env._get_pos_goal()
            with warnings.catch_warnings(action="ignore"):  # that its actions go beyond their bounds
                action = np.clip(self._policy.get_action(np.hstack([now, now, goal])), -1, 1)
            actions.append(action)
            self._move(action)
            mujoco.mj_forward(self.model, self.data)
        self.load(here)
        mean: np.ndarray = np.stack(actions).mean(0, dtype=np.float64)
        mean[:MOVES] *= pace
        return mean

    def save(self) -> Snapshot:
        physics = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS))
        mujoco.mj_getState(self.model, self.data, physics, _PHYSICS)
        return Snapshot(physics, self.model.body_pos.copy(), self.model.site_pos.copy(), own_values(self.env))

    def load(self, snapshot: Snapshot) -> None:
        self.model.body_pos[:], self.model.site_pos[:] = snapshot.bodies, snapshot.sites
        mujoco.mj_setState(self.model, self.data, snapshot.physics, _PHYSICS)
        mujoco.mj_forward(self.model, self.data)  # also replaces what the solver starts from, so
        mujoco.mj_setState(self.model, self.data, snapshot.physics, _PHYSICS)
        set_own_values(self.env, snapshot.own)


def _import_metaworld() -> tuple[dict[str, Any], dict[str, Any]]:
    """Environments and experts, by task."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise UserError(
            f"MetaWorld can't be imported by {sys.executable} ({error}): install it there, as docs/metaworld.md shows."
        ) from error
    return ALL_V3_ENVIRONMENTS, ENV_POLICY_MAP


@lru_cache(maxsize=64)
def scene(task: str, faces: int) -> MetaWorldScene:
    """Shared by all episodes of a process."""
    return MetaWorldScene(task, faces)
