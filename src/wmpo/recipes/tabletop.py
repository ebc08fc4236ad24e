"""One recipe per task of the embedded simulator, for two CPU cores. Sizes not named here are the defaults."""

from __future__ import annotations

from wmpo.config import EnvConfig, Recipe

PUSH = Recipe(name="push", env=EnvConfig(task="push"))

PLACE = Recipe(name="place", env=EnvConfig(task="place"))

WRIST = Recipe(name="wrist", env=EnvConfig(task="place", cameras=("front", "wrist")))

STACK = Recipe(name="stack", env=EnvConfig(task="stack"))

SENTENCES = Recipe(name="sentences", env=EnvConfig(task="place+place-blue"))

INSERT = Recipe(name="insert", env=EnvConfig(task="insert"))
