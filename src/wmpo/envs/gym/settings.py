"""What to ask of a Gymnasium environment. Needs neither Gymnasium nor the environment to be looked up."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated

from wmpo.config import Between, EnvConfig
from wmpo.errors import UserError
from wmpo.io.plain import JsonObject

RENDER, WHOLE = "render", "observation"  # in place of a key: env.render(), and an observation that is no Dict
TERMINATED = "terminated"
_REWARD = re.compile(r"reward\s*>=\s*(\S+)")


@dataclass(frozen=True)
class GymSettings(EnvConfig):
    """Any Gymnasium environment with pictures and a Box of actions."""

    family: str = "gym"
    """Which environment: any of Gymnasium."""
    id: str = ""
    """Its id, as gymnasium.make takes it, FetchPickAndPlace-v4 say."""
    imports: tuple[str, ...] = ()
    """Modules that register it, imported first; those that Gymnasium finds by itself needn't be named."""
    kwargs: str = "{}"
    """Further arguments of gymnasium.make, as a JSON object."""
    cameras: tuple[str, ...] = (RENDER,)
    """Where the pictures are: keys of the observation, nested ones joined by dots; observation, where the whole of it
    is one; render, for what env.render() draws. Each is a camera. The reward model watches the first one."""
    state: tuple[str, ...] = ()
    """What the policy feels: keys of the observation, whose numbers are joined; observation, where the whole of it is a
    vector; nothing: no state."""
    success: str = "is_success"
    """What counts as success: a key of the info, nested ones joined by dots; terminated; or a reward, "reward>=0.9"."""
    linger: Annotated[int, Between(0, 1000)] = 4
    """Frames recorded after the first success, until the episode is done; it is done as well where the environment
    terminates."""
    instruction: str = "do the task"
    """The sentence that says what to do."""
    image_size: Annotated[int, Between(8, 1024)] = 96
    """Height and width of the cameras, in pixels, to which pictures are resized with antialiasing."""
    action_bound: Annotated[float, Between(1e-6, 1e6)] = 1.0
    """Actions are in the environment's units, within its own bounds; where it has none, within plus and minus this."""
    repeat: Annotated[int, Between(1, 1000)] = 1
    """Each action is repeated so often: that makes one frame."""
    horizon: Annotated[int, Between(1, 1000000)] = 100
    """Longest episode, in actions of the policy; the environment's own time limit is left out."""
    shadows: bool = False
    """Draw shadows, reflections and smooth edges; only asked of MuJoCo, where they cost several times the rest."""

    def check(self) -> None:
        """Raises UserError for what no environment could fulfil."""
        if not self.id or ":" in self.id:
            raise UserError(
                f"env.id is {self.id!r}: give the id of a Gymnasium environment, as --env.id NAME; a module that "
                "registers it belongs into env.imports."
            )
        for module in self.imports:
            if not all(part.isidentifier() for part in module.split(".")):
                raise UserError(f"env.imports names {module!r}, which is no name of a module.")
        for what, names in (("cameras", self.cameras), ("state", self.state)):
            if len(set(names)) < len(names) or not all(names):
                raise UserError(f"env.{what} must name different keys of the observation, not {list(names)}.")
        if not self.cameras:
            raise UserError("env.cameras is empty: name a key of the observation that holds a picture, or render.")
        if not self.instruction.strip():
            raise UserError("env.instruction is empty: give the sentence that says what to do.")
        make_arguments(self.kwargs)
        least_reward(self.success)


def make_arguments(kwargs: str) -> JsonObject:
    """The setting `kwargs`, read. Raises UserError."""
    try:
        found = json.loads(kwargs)
    except (ValueError, RecursionError) as error:
        raise UserError(f"env.kwargs is no JSON, {kwargs!r:.60}: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f'env.kwargs must be a JSON object, such as {{"obs_type": "pixels"}}, not {kwargs!r:.60}.')
    return found


def least_reward(success: str) -> float | None:
    """Of the setting `success`; None where it isn't by reward. Raises UserError."""
    if not success:
        raise UserError('env.success is empty: name a key of the info, terminated, or "reward>=0.9".')
    match = _REWARD.fullmatch(success)
    try:
        least = float(match[1]) if match else None
    except ValueError:
        least = float("nan")
    if (least is not None and not abs(least) < float("inf")) or (not match and set(success) & set("<>= ")):
        raise UserError(f'env.success is {success!r}: name a key of the info, terminated, or "reward>=0.9".')
    return least
