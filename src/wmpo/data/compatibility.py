"""Stores that are learned from together must come from one robot, one camera rig and one set of units, and differ."""

from __future__ import annotations

import hashlib

import numpy as np

from wmpo.data import layout
from wmpo.data.normalizer import OTHER_UNITS, spread_ratio
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.types import EnvSpec

LOOK_AT = 20_000
"""Actions that are compared, from the first on."""


def comparable(other: EpisodeStore, first: EpisodeStore) -> EpisodeStore:
    """`other`, with its cameras in the order of `first`, so that the judge always sees the same one.

    Raises UserError where they differ in cameras or their sizes, in dimensions, in frames per second, or in the units
    of their actions.
    """
    if found := difference(f"{first.root}", first.spec, f"{other.root}", other.spec):
        raise UserError(f"{found}: collect both with the same settings.")
    ratio = spread_ratio(_actions(other), _actions(first)) if len(first) and len(other) else 1.0
    if not 1 / OTHER_UNITS < ratio < OTHER_UNITS:
        raise UserError(
            f"The actions of {other.root} spread {ratio:.3g} times as far as those of {first.root}: bring both to "
            "the same units."
        )
    return other.with_cameras(tuple(first.spec.cameras))


def difference(mine: str, first: EnvSpec, theirs: str, other: EnvSpec) -> str:
    """What keeps two from being learned from together, as part of a sentence; empty where nothing does."""
    for what, told in {
        "shows the cameras": _cameras,
        "has so many frames a second": lambda spec: f"{spec.fps}",
        "has so many state dimensions": lambda spec: f"{spec.state_dim}",
        "has so many action dimensions": lambda spec: f"{spec.action_dim}",
    }.items():
        if told(first) != told(other):
            return f"{mine} {what}: {told(first)}; but {theirs}: {told(other)}"
    return ""


def content(store: EpisodeStore) -> str:
    """What tells the episodes of a store from others: 16 hexadecimal digits from its tables, and its videos' sizes."""
    found = hashlib.sha256()
    for part, file in enumerate(store.files):
        found.update(layout.data_path(store.root, file).read_bytes())
        found.update(layout.episodes_path(store.root, file).read_bytes())
        for camera in store.spec.cameras:
            for path in store.video(part, camera).files():
                found.update(str(path.stat().st_size).encode())
    return found.hexdigest()[:16]


def _cameras(spec: EnvSpec) -> str:
    return ", ".join(f"{name} of {size[0]}x{size[1]}" for name, size in sorted(spec.cameras.items()))


def _actions(store: EpisodeStore) -> np.ndarray:
    """(N, D), at least of the first part."""
    parts = []
    for part in range(store.parts):
        parts.append(store.columns(part, layout.ACTION))
        if sum(map(len, parts)) >= LOOK_AT:
            break
    return np.concatenate(parts)
