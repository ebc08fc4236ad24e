"""Meshes with fewer triangles, in a compiled model: drawing them is most of the time that a frame takes.

Vertices in one cell of a grid become one, and triangles that collapse are left out. Only meshes that nothing collides
with are touched, so the physics stays as it was, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import mujoco
import numpy as np

from wmpo.io.files import atomic_path

GRIDS = (192, 128, 96, 72, 56, 44, 36, 28, 22, 16, 12, 8)  # cells along the longest side, tried from the finest


def lighten(model: mujoco.MjModel, faces: int) -> None:
    """Leave each mesh that is only seen about `faces` triangles, in place. Results are kept in the user's cache."""
    meshes = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    touched = meshes & ((model.geom_contype != 0) | (model.geom_conaffinity != 0))
    for mesh in set(model.geom_dataid[meshes].tolist()) - set(model.geom_dataid[touched].tolist()):
        if model.mesh_facenum[mesh] > faces:
            _lighten(model, mesh, faces)


def _lighten(model: mujoco.MjModel, mesh: int, faces: int) -> None:
    first, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    vertex, vertices = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    triangles = model.mesh_face[first : first + count]
    points = model.mesh_vert[vertex : vertex + vertices]
    kept, corners = _cached(triangles, points, faces)
    for array in (model.mesh_facenormal, model.mesh_facetexcoord):  # each corner keeps its own, so textures stay sharp
        if len(array) >= first + count:
            array[first : first + len(kept)] = array[first : first + count][kept]
    model.mesh_face[first : first + len(kept)] = corners
    model.mesh_facenum[mesh] = len(kept)


def _cached(triangles: np.ndarray, points: np.ndarray, faces: int) -> tuple[np.ndarray, np.ndarray]:
    digest = hashlib.sha256(triangles.tobytes() + points.tobytes() + str((GRIDS, faces)).encode()).hexdigest()[:32]
    root = os.environ.get("WMPO_CACHE") or Path.home() / ".cache" / "wmpo"
    path = Path(root) / "meshes" / f"{digest}.npz"
    try:
        with np.load(path, allow_pickle=False) as known:
            kept, corners = known["kept"], known["corners"]
        if (
            corners.shape == (len(kept), 3)
            and len(kept)
            and corners.max() < len(points)
            and kept.max() < len(triangles)
        ):
            return kept, corners
    except (OSError, ValueError, KeyError):  # not there, or damaged
        pass
    kept, corners = clustered(triangles, points, faces)
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, kept=kept, corners=corners)
    except OSError:  # a cache that can't be written costs time only
        pass
    return kept, corners


def clustered(triangles: np.ndarray, points: np.ndarray, faces: int) -> tuple[np.ndarray, np.ndarray]:
    """Which triangles (N, 3) of `points` (V, 3) are left, (n,), and their corners now, (n, 3)."""
    low = points.min(0)
    side = max(float((points.max(0) - low).max()), 1e-9)
    for cells in GRIDS:
        cell = np.floor((points - low) / side * cells).astype(np.int64) @ np.array([1, 1000, 1000000])
        _, inverse = np.unique(cell, return_inverse=True)
        count = np.bincount(inverse)
        middle = np.stack([np.bincount(inverse, points[:, axis]) / count for axis in range(3)], 1)
        # The vertex nearest to the middle of its cell stands for all of them.
        order = np.lexsort((((points - middle[inverse]) ** 2).sum(1), inverse))
        speaker = order[np.searchsorted(inverse[order], np.arange(len(count)))]
        corners = speaker[inverse][triangles]
        whole = (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]) & (corners[:, 0] != corners[:, 2])
        kept = np.flatnonzero(whole)
        if len(kept):
            # The same triangle twice is one, but its other side is another, of a wall that has lost its thickness.
            turned = corners[kept][np.arange(len(kept))[:, None], (corners[kept].argmin(1)[:, None] + np.arange(3)) % 3]
            _, once = np.unique(turned, axis=0, return_index=True)
            kept = kept[np.sort(once)]
        if 0 < len(kept) <= faces:
            return kept.astype(np.int32), corners[kept].astype(np.int32)
    kept = kept if len(kept) else np.arange(len(triangles))
    return kept.astype(np.int32), corners[kept].astype(np.int32)
