"""What a scripted demonstration has to give, put together. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def recorded(
    seen: Sequence[Mapping[str, Any]],
    actions: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    success: Sequence[bool],
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """T+1 observations, T executed actions and T that an imitator should take, as an episode's `demonstrate` returns
    them: arrays, time first."""
    cameras: Iterable[str] = seen[0]["images"]
    return {
        "images": {camera: np.stack([frame["images"][camera] for frame in seen]) for camera in cameras},
        "state": np.stack([frame["state"] for frame in seen]),
        "actions": np.stack(actions),
        "labels": np.stack(labels),
        "success": np.array(success),
        "meta": meta,
    }
