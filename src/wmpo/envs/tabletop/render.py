"""Drawing without a screen: OpenGL through EGL where it works, MuJoCo's own ray casting where it doesn't.

Both draw the same scene; colours agree to a few grey levels, edges do not agree exactly, so every data set
records who drew it. Shadows, reflections and multisampling are off: they cost five times the rest together.
"""

from __future__ import annotations

import atexit
from functools import lru_cache
from typing import Protocol

import mujoco
import numpy as np

from wmpo.envs.tabletop.settings import UNSEEN


class Renderer(Protocol):
    name: str

    def draw(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """(H, W, 3) uint8. Valid until the next call."""
        ...


class EglRenderer:
    """OpenGL off screen, in the least number of calls."""

    name = "egl"

    def __init__(self, model: mujoco.MjModel, size: int, maxgeom: int = 64) -> None:
        from mujoco.egl import GLContext

        self.gl = GLContext(size, size)
        self.gl.make_current()
        self.model = model
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        self.scene = mujoco.MjvScene(model, maxgeom=maxgeom)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.scene.flags[flag] = 0
        self.option, self.perturb = mujoco.MjvOption(), mujoco.MjvPerturb()
        self.camera = mujoco.MjvCamera()
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.viewport = mujoco.MjrRect(0, 0, size, size)
        self.pixels = np.empty((size, size, 3), np.uint8)
        atexit.register(self.close)  # before EGL itself is shut down, or freeing fails

    def draw(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        self.gl.make_current()  # cheap, and nobody else in this process can then draw into our picture
        self.camera.fixedcamid = self.model.camera(camera).id
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self.model, data, self.option, self.perturb, self.camera, every, self.scene)
        mujoco.mjr_render(self.viewport, self.scene, self.context)
        mujoco.mjr_readPixels(self.pixels, None, self.viewport, self.context)
        return self.pixels[::-1]  # OpenGL's first row is the lowest

    def close(self) -> None:
        if self.gl is not None:
            self.gl.make_current()
            self.context.free()
            self.gl.free()
            self.gl = None


class RayRenderer:
    """One ray per pixel and flat shading, for machines without any OpenGL."""

    name = "rays"

    def __init__(self, model: mujoco.MjModel, size: int) -> None:
        self.model, self.size = model, size
        count = size * size
        self.geom = np.empty(count, np.int32)
        self.distance = np.empty(count, np.float64)
        centre = (np.arange(size) + 0.5) / size * 2 - 1
        right, up = np.meshgrid(centre, -centre)
        rays = np.stack([right, up, np.full_like(right, -1.0)], -1).reshape(count, 3)
        self.rays: dict[str, np.ndarray] = {}
        for index in range(model.ncam):
            half = np.tan(np.radians(model.cam_fovy[index]) / 2)
            scaled = rays * (half, half, 1.0)
            self.rays[model.camera(index).name] = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
        self.groups = np.ones(6, np.uint8)
        self.groups[UNSEEN] = 0
        light = -model.light_dir[0]
        self.light = light / np.linalg.norm(light)
        self.ambient = float(model.vis.headlight.ambient[0])
        self.head = float(model.vis.headlight.diffuse[0])
        self.diffuse = float(model.light_diffuse[0][0])

    def draw(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        cam = self.model.camera(camera).id
        eye, turn = data.cam_xpos[cam], data.cam_xmat[cam].reshape(3, 3)
        rays = self.rays[camera] @ turn.T
        self._cast(data, eye, rays)
        image = np.zeros((len(rays), 3), np.uint8)
        for geom in np.flatnonzero(np.bincount(self.geom + 1, minlength=self.model.ngeom + 1)) - 1:
            if geom >= 0:  # -1: the ray met nothing
                seen = np.flatnonzero(self.geom == geom)
                image[seen] = self._shade(data, int(geom), eye, rays[seen], self.distance[seen])
        return image.reshape(self.size, self.size, 3)

    def _shade(
        self, data: mujoco.MjData, geom: int, eye: np.ndarray, rays: np.ndarray, distance: np.ndarray
    ) -> np.ndarray:
        """(n, 3) colours in [0, 255] of n rays that hit one box."""
        turn = data.geom_xmat[geom].reshape(3, 3)
        local = ((eye - data.geom_xpos[geom]) @ turn + (rays @ turn) * distance[:, None]) / self.model.geom_size[geom]
        face = np.abs(local).argmax(1)  # the face that was hit is the one of the largest coordinate
        outward = np.sign(local[np.arange(len(face)), face])
        lit = np.maximum(outward * (self.light @ turn)[face], 0)
        faced = np.maximum(-outward * np.take_along_axis(rays @ turn, face[:, None], 1)[:, 0], 0)
        shade = self.ambient + self.diffuse * lit + self.head * faced
        return np.minimum(shade[:, None] * self.model.geom_rgba[geom, :3], 1) * 255

    def _cast(self, data: mujoco.MjData, eye: np.ndarray, rays: np.ndarray) -> None:
        """Fill self.geom (which geom each ray hits) and self.distance."""
        flat, count = rays.reshape(-1), len(rays)
        normals = (None,) if _RAYS_HAVE_NORMALS else ()
        mujoco.mj_multiRay(
            self.model, data, eye, flat, self.groups, 1, -1, self.geom, self.distance, *normals, count, 50.0
        )


# Newer versions of MuJoCo return the normals too, in an argument before the number of rays.
_RAYS_HAVE_NORMALS = "normal" in (mujoco.mj_multiRay.__doc__ or "")


@lru_cache(maxsize=8)
def renderer(model: mujoco.MjModel, size: int, chosen: str) -> Renderer:
    """The renderer of a scene, shared by all episodes of a process."""
    return EglRenderer(model, size) if chosen == "egl" else RayRenderer(model, size)
