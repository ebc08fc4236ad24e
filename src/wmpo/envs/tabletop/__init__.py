"""The embedded simulator. Importing this registers every task with Gymnasium, as wmpo/TabletopPush-v0 and so on.

Kept light: MuJoCo is imported when an environment is made.
"""

from __future__ import annotations

import os
import sys
from ctypes.util import find_library

import gymnasium

from wmpo.envs.tabletop.tasks import TASKS

_GL = os.environ.get("MUJOCO_GL", "")
if "mujoco" not in sys.modules and (_GL not in ("", "egl", "disable") or (_GL == "egl" and not find_library("EGL"))):
    # The environment asks for a graphics library that may be missing: then already `import mujoco` would fail.
    os.environ["MUJOCO_GL"] = "disable"


def gymnasium_id(task: str) -> str:
    """push-blue -> wmpo/TabletopPushBlue-v0"""
    return f"wmpo/Tabletop{task.title().replace('-', '')}-v0"


for _task in TASKS:
    if gymnasium_id(_task) not in gymnasium.registry:
        gymnasium.register(
            id=gymnasium_id(_task), entry_point="wmpo.envs.tabletop.env:TabletopEnv", kwargs={"task": _task}
        )
