"""Three tasks of MetaWorld in which something is grasped, for two CPU cores. Demonstrations are so few that the base
succeeds in 20 to 50 % with the seed on which they were chosen, 100."""

from __future__ import annotations

from dataclasses import replace

from wmpo.config import DemonstrationConfig, Recipe
from wmpo.envs.metaworld.settings import MetaWorldSettings
from wmpo.recipes.tabletop import POLICY, PRACTICE, SHORT

# The front camera shows a puck as a single pixel; two that move with the hand show what it holds. The first one judges.
CLOSE = ("behind", "wrist")

PEG = Recipe(
    name="metaworld",
    env=MetaWorldSettings(task="peg-insert-side-v3", cameras=("wrist", "front"), horizon=48),
    demonstrations=DemonstrationConfig(episodes=40),
    policy=SHORT,
    grpo=PRACTICE,
)

PICK_PLACE = replace(
    PEG,
    name="metaworld-pick-place",
    env=MetaWorldSettings(task="pick-place-v3", cameras=CLOSE),
    demonstrations=DemonstrationConfig(episodes=60),
    policy=replace(POLICY, fit=replace(POLICY.fit, steps=400)),
)

BIN_PICKING = replace(
    PEG,
    name="metaworld-bin-picking",
    env=MetaWorldSettings(task="bin-picking-v3", cameras=CLOSE),
    demonstrations=DemonstrationConfig(episodes=12),
)
