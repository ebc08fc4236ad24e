"""How vla-eval's LIBERO differs from that of `wmpo.envs.libero`: pictures, states, and how long an action lasts."""

from __future__ import annotations

import numpy as np

from wmpo.envs.libero.settings import CONTROL, FPS
from wmpo.errors import UserError

CAMERAS = {"front": "agentview", "wrist": "wrist"}  # ours -> theirs
REPEAT = CONTROL // FPS  # theirs are actions of the controller


def picture(image_HWC: np.ndarray) -> np.ndarray:
    """Theirs is turned by half a turn from the simulator's, which is upside down: so it is a mirror image."""
    return image_HWC[:, ::-1]


def state(theirs: np.ndarray) -> np.ndarray:
    """(8,) position, axis times angle, fingers -> (9,) float32: position, quaternion (x, y, z, w), fingers.

    The quaternion's sign is that of `wmpo.envs.libero.arm`: x above 0. Raises UserError for other states.
    """
    if theirs.shape != (8,):
        raise UserError(f"LIBERO's state has 8 numbers, not {len(theirs)}: leave --convention libero away elsewhere.")
    position, turn, fingers = np.split(np.asarray(theirs, np.float64), (3, 6))
    angle = float(np.linalg.norm(turn))
    vector = turn * (np.sin(angle / 2) / angle if angle else 0.5)
    quaternion = np.append(vector, np.cos(angle / 2))
    return np.concatenate([position, quaternion if vector[0] > 0 else -quaternion, fingers]).astype(np.float32)


def actions(chunk_KD: np.ndarray) -> np.ndarray:
    """Each action for as many steps of their controller as it lasts here."""
    return np.repeat(chunk_KD, REPEAT, axis=0)
