"""One recipe per task of the embedded simulator, for two CPU cores. Sizes not named here are the defaults."""

from __future__ import annotations

from dataclasses import replace

from wmpo.config import Recipe
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.policies.settings import MiniVLASettings

POLICY = MiniVLASettings()

PUSH = Recipe(name="push", env=TabletopSettings(task="push"))

PLACE = Recipe(name="place", env=TabletopSettings(task="place"))

WRIST = Recipe(name="wrist", env=TabletopSettings(task="place", cameras=("front", "wrist")))

FLOW = Recipe(name="flow", env=TabletopSettings(task="place"), policy=replace(POLICY, head="flow"))

STACK = Recipe(name="stack", env=TabletopSettings(task="stack"))

SENTENCES = Recipe(
    name="sentences",
    env=TabletopSettings(task="place+place-blue"),
    policy=replace(POLICY, fit=replace(POLICY.fit, steps=900)),  # two tasks want more of them
)

INSERT = Recipe(name="insert", env=TabletopSettings(task="insert"))
