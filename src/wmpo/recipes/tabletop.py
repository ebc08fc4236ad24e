"""One recipe per task of the embedded simulator, for two CPU cores. Sizes not named here are the defaults."""

from __future__ import annotations

from dataclasses import replace

from wmpo.config import EnvConfig, PolicyConfig, Recipe

POLICY = PolicyConfig()

PUSH = Recipe(name="push", env=EnvConfig(task="push"))

PLACE = Recipe(name="place", env=EnvConfig(task="place"))

WRIST = Recipe(name="wrist", env=EnvConfig(task="place", cameras=("front", "wrist")))

FLOW = Recipe(name="flow", env=EnvConfig(task="place"), policy=replace(POLICY, head="flow"))

STACK = Recipe(name="stack", env=EnvConfig(task="stack"))

SENTENCES = Recipe(
    name="sentences",
    env=EnvConfig(task="place+place-blue"),
    policy=replace(POLICY, fit=replace(POLICY.fit, steps=900)),  # two tasks want more of them
)

INSERT = Recipe(name="insert", env=EnvConfig(task="insert"))
