"""MuJoCo inside a Gymnasium environment: saved states, and pictures without what makes them slow.

A saved state is the physics with all that is derived from it, since environments read positions that are a time step
old, and whatever plain values the environment keeps beside it: a goal, random numbers. What is kept elsewhere, in a
wrapper or in the model, is lost; `wmpo check env` tries whether anything is.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import is_dataclass
from typing import Any

import gymnasium
import numpy as np

Env = gymnasium.Env[Any, Any]
Values = dict[str, Any]
_PLAIN = (bool, int, float, str, bytes, type(None), np.ndarray, np.generic, np.random.Generator)
_VARYING = ("efc_", "iefc_", "contact", "island", "tree_")  # of another length in each state; derived anew by each step


def draw_plainly(env: Env) -> None:
    """No shadows, reflections and multisampling, if it is MuJoCo that draws; to be called before anything is drawn."""
    if (model := _model(env)) is not None:
        model.vis.quality.offsamples = 0
        model.light_castshadow[:] = 0
        model.mat_reflectance[:] = 0


def offered(env: Env) -> bool:
    """Whether the environment is one whose state can be saved."""
    mujoco, base = sys.modules.get("mujoco"), env.unwrapped
    return mujoco is not None and isinstance(getattr(base, "data", None), mujoco.MjData) and _model(env) is not None


def save(env: Env) -> Values:
    """Everything that the future of a MuJoCo environment depends on, as plain values."""
    import mujoco

    base: Any = env.unwrapped
    physics = np.empty(mujoco.mj_stateSize(base.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(base.model, base.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    derived = {name: array.copy() for name, array in _derived(base.data)}
    return {"physics": physics, "derived": derived, "own": own_values(base)}


def restore(env: Env, saved: Values) -> None:
    import mujoco

    base: Any = env.unwrapped
    mujoco.mj_setState(base.model, base.data, saved["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(base.model, base.data)  # contacts and the like; it also replaces what it starts from, so
    for name, array in _derived(base.data):
        if array.shape == saved["derived"][name].shape:  # else its length follows from the state, and is right already
            array[...] = saved["derived"][name]
    set_own_values(base, saved["own"])


def own_values(base: object) -> Values:
    """What an environment keeps beside the physics, as far as it is plain values."""
    return {name: copy.deepcopy(value) for name, value in vars(base).items() if _plain(value)}


def set_own_values(base: object, own: Values) -> None:
    for name, value in own.items():
        here = vars(base).get(name)
        if (
            isinstance(here, np.ndarray)
            and isinstance(value, np.ndarray)
            and here.flags.writeable
            and (here.shape, here.dtype) == (value.shape, value.dtype)
        ):
            here[...] = value  # it may be a view of the physics
        else:
            setattr(base, name, copy.deepcopy(value))


def _derived(data: Any) -> list[tuple[str, np.ndarray]]:
    found = [(name, getattr(data, name)) for name in dir(data) if not name.startswith(("_", *_VARYING))]
    return [(name, value) for name, value in found if isinstance(value, np.ndarray) and value.flags.writeable]


def _plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_plain, value)) and all(map(_plain, value.values()))
    if is_dataclass(value):
        return all(map(_plain, vars(value).values()))
    return all(map(_plain, value)) if isinstance(value, (tuple, list)) else isinstance(value, _PLAIN)


def _model(env: Env) -> Any:
    """The MjModel of Gymnasium's own environments, and of those that wrap dm_control; None where there is none."""
    mujoco, base = sys.modules.get("mujoco"), env.unwrapped
    physics = getattr(getattr(base, "_env", base), "physics", None)
    found = getattr(base, "model", None) or getattr(getattr(physics, "model", None), "ptr", None)
    return found if mujoco is not None and isinstance(found, mujoco.MjModel) else None
