"""Gymnasium environments as a family."""

from __future__ import annotations

import os
from importlib.util import find_spec

from wmpo.envs.gym.settings import GymSettings, least_reward, make_arguments
from wmpo.envs.tabletop import display
from wmpo.envs.vector import VectorEnv
from wmpo.errors import UserError


class Gym:
    """A Gymnasium environment, simulated by worker processes."""

    Settings = GymSettings

    @classmethod
    def build(cls, settings: GymSettings, disruption: str = "none") -> VectorEnv:
        """Raises UserError where the environment is not there, or lacks what the settings name."""
        settings.check()
        for module in () if settings.python else settings.imports:
            if find_spec(module.partition(".")[0]) is None:
                raise UserError(
                    f"env.imports names {module}, which is no module here: check the name, or install what has it "
                    "(gym-pusht and Gymnasium-Robotics: pip install 'wmpo[gym]')."
                )
        arguments = {
            "id": settings.id,
            "imports": list(settings.imports),
            "kwargs": make_arguments(settings.kwargs),
            "cameras": list(settings.cameras),
            "state": list(settings.state),
            "success": settings.success,
            "reward": least_reward(settings.success),
            "linger": settings.linger,
            "instruction": settings.instruction,
            "image_size": settings.image_size,
            "action_bound": settings.action_bound,
            "repeat": settings.repeat,
            "horizon": settings.horizon,
            "shadows": settings.shadows,
        }
        environ = {"SDL_VIDEODRIVER": "dummy"}  # of pygame, which many draw with
        if "MUJOCO_GL" not in os.environ and display.egl_works():
            display.prepare_environment("egl", environ)
        return VectorEnv(settings, "wmpo.envs.gym.episode:GymEpisode", arguments, environ)
