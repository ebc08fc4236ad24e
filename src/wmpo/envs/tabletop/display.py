"""Which renderer works on this machine. Imports no MuJoCo, which may fail to import under a bad MUJOCO_GL."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import MutableMapping
from functools import lru_cache

from wmpo.errors import UserError

RENDERERS = ("auto", "egl", "rays")

_PROBE = """
import mujoco
from mujoco.egl import GLContext
gl = GLContext(8, 8)
gl.make_current()
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
context.free()
gl.free()
print("drawn")
"""


@lru_cache(maxsize=1)
def egl_works() -> bool:
    """Try EGL in a process of its own, since a broken driver may take the process down."""
    env = {**os.environ, "MUJOCO_GL": "egl"}
    env.pop("PYOPENGL_PLATFORM", None)
    try:
        probe = subprocess.run([sys.executable, "-P", "-c", _PROBE], env=env, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0 and b"drawn" in probe.stdout


@lru_cache(maxsize=4)
def choose(renderer: str) -> str:
    """ "egl" or "rays", for a setting of "auto", "egl" or "rays"."""
    if renderer not in RENDERERS:
        raise UserError(f"There is no renderer {renderer!r}; choose one of {', '.join(RENDERERS)}.")
    if renderer == "rays":
        return "rays"
    if egl_works():
        return "egl"
    if renderer == "egl":
        raise UserError(
            "EGL rendering does not work on this machine (Debian/Ubuntu: apt install libegl1 libgl1-mesa-dri); "
            "choose the renderer rays or auto."
        )
    return "rays"


def prepare_environment(chosen: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what MuJoCo reads when it is first imported; a bad MUJOCO_GL would make that import fail."""
    environ["MUJOCO_GL"] = "egl" if chosen == "egl" else "disable"
    if chosen == "egl":
        environ["PYOPENGL_PLATFORM"] = "egl"
    # Software OpenGL starts a thread per core; the worker processes already fill the cores.
    environ.setdefault("LP_NUM_THREADS", "1")
