"""Actions and states as networks see them: one normaliser per data set, kept with every model that learned from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from wmpo.errors import UserError

if TYPE_CHECKING:
    from wmpo.data.cache import FrameCache

QUANTILES, MIN_MAX, IDENTITY = range(3)
MODES = ("quantiles", "min_max", "identity")
REACH = 3.0  # a normalised action beyond this is far outside: for a Gaussian, 7 standard deviations
RARE = 1 / 2000  # share of far actions from which on they count as meant, not as glitches of a sensor
SAME = 1e-6  # differences that are this small beside the values are rounding
OTHER_UNITS = 30.0  # what spreads so many times more, or less, is in other units: degrees are 57 times radians
STATE_SHARE, STATE_LEAST = 0.01, 1e-3  # least unit of a state: beside its largest value, and in its own units


class Normalizer(nn.Module):
    """An affine map of each action dimension, near [-1, 1], and of each state dimension, near unit spread.

    How a dimension of the actions is scaled depends on what was demonstrated:

    quantiles  the 1 % and 99 % quantiles become -1 and 1 [paper]; the rest lies a little outside
    min_max    the lowest and highest value become -1 and 1, where quantiles would put what was demonstrated out of
               reach: a gripper that closes in one step of 200 has equal quantiles
    identity   a constant is moved to 0 and not scaled

    Nothing is clamped: `unnormalize_action` inverts `normalize_action` for every value. All buffers are float32, also
    where the module that holds this one is moved to another type.
    """

    action_mode: Tensor  # (D,) int64, index into MODES
    action_low: Tensor  # (D,) becomes -1
    action_high: Tensor  # (D,) becomes 1
    action_min: Tensor  # (D,) lowest demonstrated value
    action_max: Tensor  # (D,) highest demonstrated value
    state_mean: Tensor  # (S,) becomes 0
    state_std: Tensor  # (S,) becomes 1

    def __init__(self, action_dim: int, state_dim: int) -> None:
        """Until it is fitted or loaded it changes nothing: actions are taken to lie in [-1, 1]."""
        super().__init__()
        self.register_buffer("action_mode", torch.full((action_dim,), IDENTITY))
        for name in ("action_low", "action_min"):
            self.register_buffer(name, -torch.ones(action_dim))
        for name in ("action_high", "action_max"):
            self.register_buffer(name, torch.ones(action_dim))
        self.register_buffer("state_mean", torch.zeros(state_dim))
        self.register_buffer("state_std", torch.ones(state_dim))

    @classmethod
    def fit(cls, actions: np.ndarray, states: np.ndarray, where: str | Path = "the data") -> Normalizer:
        """Of demonstrated actions (N, D) and states (N', S), in any units; `where` names them in complaints.

        Raises UserError where there are none, or where some are not finite.
        """
        for name, values in (("actions", actions), ("states", states)):
            if values.ndim != 2 or not len(values):
                raise UserError(f"There are no {name} in {where} to normalise by: collect some first.")
            if not np.isfinite(values).all():
                raise UserError(f"There are NaN or infinite {name} in {where}: look for the fault in what made them.")
        own = cls(actions.shape[1], states.shape[1])
        fitted = {**_action_ranges(actions.astype(np.float64)), **_state_units(states.astype(np.float64))}
        for name, row in fitted.items():
            own.get_buffer(name).copy_(torch.from_numpy(row))
        return own

    @classmethod
    def from_cache(cls, cache: FrameCache, episodes: Sequence[int]) -> Normalizer:
        """Of some episodes of a store; actions are the labels, since those are what is imitated."""
        states = cache.state[cache.frames_of(np.asarray(episodes, dtype=np.int64))]
        return cls.fit(cache.labels_of(episodes), states, cache.store.root)

    @property
    def action_scale(self) -> Tensor:
        """(D,): how much of an action's own unit is 1 when normalised; sums of actions are divided by it, too."""
        return (self.action_high - self.action_low) / 2

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """The lowest and highest demonstrated action, (D,) each, in the action's own units."""
        return self.action_min, self.action_max

    def normalize_action(self, action: Tensor) -> Tensor:
        """(..., D) in the action's own units -> (..., D), most of it in [-1, 1]."""
        return (action - self._middle) / self.action_scale

    def unnormalize_action(self, action: Tensor) -> Tensor:
        """(..., D) normalised -> (..., D) in the action's own units; the inverse of `normalize_action`."""
        return action * self.action_scale + self._middle

    def limit_action(self, action: Tensor) -> Tensor:
        """(..., D) in the action's own units -> the nearest action inside of what was demonstrated."""
        return action.clamp(self.action_min, self.action_max)

    def normalize_state(self, state: Tensor) -> Tensor:
        """(..., S) in the state's own units -> (..., S), near zero mean and unit spread."""
        return (state - self.state_mean) / self.state_std

    def unnormalize_state(self, state: Tensor) -> Tensor:
        """The inverse of `normalize_state`."""
        return state * self.state_std + self.state_mean

    @property
    def _middle(self) -> Tensor:
        return (self.action_high + self.action_low) / 2

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Normalizer:
        """Moves between devices only: bfloat16 would round ranges, and everything normalised by them."""
        for name, buffer in self.named_buffers(recurse=False):
            moved = fn(buffer)
            self._buffers[name] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        return self


def _action_ranges(actions: np.ndarray) -> dict[str, np.ndarray]:
    """Buffer -> its (D,) values."""
    low, high = np.quantile(actions, (0.01, 0.99), axis=0)
    least, most = actions.min(0), actions.max(0)
    middle, half = (high + low) / 2, (high - low) / 2
    constant = most - least <= SAME * np.maximum(np.abs(least), np.abs(most))
    far = np.abs(actions - middle) > REACH * half
    lost = (half * 2 <= SAME * (most - least)) | (far.mean(0) >= RARE)
    mode = np.where(constant, IDENTITY, np.where(lost, MIN_MAX, QUANTILES))
    center = (least + most) / 2
    return {
        "action_mode": mode,
        "action_low": np.choose(mode, (low, least, center - 1)),
        "action_high": np.choose(mode, (high, most, center + 1)),
        "action_min": least,
        "action_max": most,
    }


def _state_units(states: np.ndarray) -> dict[str, np.ndarray]:
    """Buffer -> its (S,) values. What hardly varies in the data must not explode when it does vary later."""
    std, largest = states.std(0), np.abs(states).max(0)
    unit = np.maximum(std, np.maximum(STATE_SHARE * largest, STATE_LEAST))
    return {
        "state_mean": states.mean(0),
        "state_std": np.where(std <= SAME * np.maximum(largest, 1), np.maximum(largest, 1), unit),
    }


def spread_ratio(one: np.ndarray, other: np.ndarray) -> float:
    """How many times more the rows (N, D) of `one` spread than those of `other`: the median over the dimensions that
    vary in both, 1 where none does. Far from 1 where the units differ."""
    spreads = np.stack([np.quantile(rows, 0.99, axis=0) - np.quantile(rows, 0.01, axis=0) for rows in (one, other)])
    vary = (spreads > 0).all(0)
    return float(np.median(spreads[0, vary] / spreads[1, vary])) if vary.any() else 1.0
