"""A Gymnasium environment as an episode class (`wmpo.envs.worker.Episode`). Imports no torch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from wmpo.envs.gym import mujoco_state
from wmpo.envs.gym.settings import RENDER, TERMINATED, WHOLE
from wmpo.errors import UserError

Values = dict[str, Any]
"""Observations and infos, as Gymnasium has them."""
DEFAULT_FPS = 10  # of an environment that does not say how many frames a second it has


class GymEpisode:
    """An episode is done where the environment terminates, or `linger` frames after the first success.

    A terminated one stands still, whatever is done next: not every environment bears further steps. Truncation counts
    for nothing, since who plays ends episodes at the horizon.
    """

    def __init__(
        self, *, id: str, imports: Sequence[str], kwargs: Values, cameras: Sequence[str], state: Sequence[str],
        success: str, reward: float | None, linger: int, instruction: str, image_size: int, action_bound: float,
        repeat: int, horizon: int, shadows: bool,
    ) -> None:  # fmt: skip
        """`reward`: the least that is a success, None where success is not by reward; the rest as in `GymSettings`."""
        self.env = _make(id, imports, kwargs, RENDER in cameras)
        if not shadows:
            mujoco_state.draw_plainly(self.env)
        self.instruction, self.horizon = instruction, horizon
        self._keys = {_camera(key): key for key in cameras}
        self.cameras = dict.fromkeys(self._keys, (image_size, image_size))
        self._state, self._success, self._reward = tuple(state), success, reward
        self._linger, self._repeat = linger, repeat
        self.fps = max(1, round(float(self.env.metadata.get("render_fps") or DEFAULT_FPS * repeat) / repeat))
        self._box = _box(self.env, id)
        low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (self._box.low, self._box.high))
        # An open end is far enough from the other one, where that is beyond the bound.
        self.action_low = np.where(np.isfinite(low), low, np.minimum(-action_bound, high - 2 * action_bound)).tolist()
        self.action_high = np.where(np.isfinite(high), high, np.maximum(action_bound, low + 2 * action_bound)).tolist()
        self.action_dim = len(self.action_low)
        # One step, tried out: what is missing is said before anything is computed, and a camera that is placed by what
        # it first sees is placed alike in all objects of this class.
        self.reset(0)
        self.state_dim = len(self.observe()["state"])
        self.step(np.mean([self.action_low, self.action_high], 0))
        if mujoco_state.offered(self.env):
            self.get_state, self.set_state = self._get_state, self._set_state

    def reset(self, initial_state: int) -> None:
        seen, _ = self.env.reset(seed=initial_state)
        self._now, self._terminated, self._succeeds, self._since = self._shown(seen), False, False, -1

    def observe(self) -> Values:
        return self._now

    def step(self, action: np.ndarray) -> bool:
        if not self._terminated:
            box = self._box
            exact = np.clip(np.asarray(action, np.float64), self.action_low, self.action_high)
            exact = np.clip(exact.reshape(box.shape).astype(box.dtype), box.low, box.high)
            for _ in range(self._repeat):
                seen, reward, terminated, _, info = self.env.step(exact)
                if terminated:
                    break
            self._terminated = bool(terminated)
            self._succeeds = self._succeeded(float(reward), self._terminated, info)
            self._now = self._shown(seen)
        if self._since >= 0 or self._succeeds:
            self._since += 1
        return self._succeeds

    @property
    def done(self) -> bool:
        return self._terminated or self._since >= self._linger

    def _succeeded(self, reward: float, terminated: bool, info: Values) -> bool:
        if self._reward is not None:
            return reward >= self._reward
        if self._success == TERMINATED:
            return terminated
        found = np.asarray(_look_up(info, self._success, "env.success", "info"))
        if found.size != 1 or found.dtype.kind not in "biuf":
            raise UserError(
                f"env.success names {self._success}, which is {found.tolist()!r:.40} in the info, no truth."
            )
        return bool(found.item() > 0)

    def _shown(self, seen: Any) -> Values:
        images = {}
        for camera, key in self._keys.items():
            picture = self.env.render() if key == RENDER else _look_up(seen, key, "env.cameras", "observation")
            images[camera] = _resized(picture, self.cameras[camera], key)
        parts = [np.asarray(_look_up(seen, key, "env.state", "observation")) for key in self._state]
        for key, part in zip(self._state, parts, strict=True):
            if part.dtype.kind not in "biuf":
                raise UserError(f"env.state names {key}, which holds no numbers but {part.dtype}.")
        state = np.concatenate([np.empty(0), *(part.reshape(-1) for part in parts)]).astype(np.float32)
        if not np.isfinite(state).all():
            raise UserError(f"The state of {', '.join(self._state)} holds NaN or infinity: leave it out of env.state.")
        return {"images": images, "state": state}

    def _get_state(self) -> tuple[Values, Values, tuple[bool, bool, int]]:
        return mujoco_state.save(self.env), self._now, (self._terminated, self._succeeds, self._since)

    def _set_state(self, state: tuple[Values, Values, tuple[bool, bool, int]]) -> None:
        world, self._now, (self._terminated, self._succeeds, self._since) = state
        mujoco_state.restore(self.env, world)


def _camera(key: str) -> str:
    """observation.images.top and pixels/top name folders of a store as observation.images.top and pixels-top."""
    name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_.-") else "-" for letter in key)
    return name.lstrip(".-") or WHOLE


def _make(id: str, imports: Sequence[str], kwargs: Values, drawn: bool) -> gymnasium.Env[Any, Any]:
    for module in imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"env.imports names {module}, which can't be imported here: {error}.") from None
    try:
        if drawn:
            kwargs = {"render_mode": "rgb_array", **kwargs}
        env = gymnasium.make(id, max_episode_steps=-1, disable_env_checker=True, **kwargs)
    except gymnasium.error.Error as error:
        raise UserError(
            f"Gymnasium makes no {id!r} ({' '.join(str(error).split())}): check env.id, install the package that has "
            "it, and name the module that registers it in env.imports."
        ) from error
    except (TypeError, ValueError, AttributeError, ImportError, OSError) as error:
        if "unexpected keyword argument 'render_mode'" in str(error):
            raise UserError(f"{id} has no render_mode: name keys of its observation in env.cameras.") from error
        raise UserError(f"{id} can't be made with env.kwargs {kwargs}: {type(error).__name__}: {error}.") from error
    if drawn and env.render_mode != "rgb_array":
        raise UserError(f"{id} has no render_mode rgb_array: name keys of its observation in env.cameras.")
    return env


def _box(env: gymnasium.Env[Any, Any], id: str) -> gymnasium.spaces.Box:
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise UserError(f"{id} takes actions from {space!s:.80}, but wmpo needs a Box of real numbers: wrap it.")
    if not math.prod(space.shape):
        raise UserError(f"{id} takes actions without any numbers, {space}: wmpo needs one at least.")
    return space


def _look_up(values: Any, key: str, setting: str, where: str) -> Any:
    """values[key]; dots lead into nested ones. `observation` is all of what has no keys."""
    if key == WHOLE and not isinstance(values, Mapping):
        return values
    found, rest = values, key
    while isinstance(found, Mapping):
        if rest in found:
            return found[rest]
        first, _, rest = rest.partition(".")
        found = found.get(first) if rest else None
    if not isinstance(values, Mapping):
        raise UserError(f"{setting} names {key!r}, but the {where} has no keys: call the whole of it {WHOLE}.")
    raise UserError(f"{setting} names {key!r}, but the {where} has {', '.join(map(str, values)) or 'nothing in it'}.")


def _resized(picture: Any, size: tuple[int, int], key: str) -> np.ndarray:
    """(H, W, 3) uint8 of an image (h, w, 3), (h, w, 1) or (h, w)."""
    pixels = np.asarray(picture)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise UserError(
            f"env.cameras names {key!r}, which is {pixels.dtype} {pixels.shape}, no picture: that is uint8 (H, W, 3)."
        )
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, 2)
    if pixels.shape[:2] == size:
        return pixels.copy()
    height, width = size
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BILINEAR))
