"""One recipe per task of the embedded simulator, for two CPU cores. Sizes not named here are the defaults."""

from __future__ import annotations

from dataclasses import replace

from wmpo.config import DemonstrationConfig, GRPOConfig, Recipe
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.policies.settings import MiniVLASettings
from wmpo.world_models.settings import VideoDiffusionSettings

POLICY = MiniVLASettings()
SHORT = replace(POLICY, fit=replace(POLICY.fit, steps=300))  # where demonstrations are few
PRACTICE = GRPOConfig(keyframes=128, lr=1e-3, imitation_coef=0.3)
FEW = DemonstrationConfig(episodes=75)  # so that the base succeeds less than half of the time, with time to spare

PUSH = Recipe(name="push", env=TabletopSettings(task="push"))

PLACE = Recipe(name="place", env=TabletopSettings(task="place"), demonstrations=FEW, grpo=PRACTICE)

WRIST = Recipe(
    name="wrist", env=TabletopSettings(task="place", cameras=("front", "wrist")), demonstrations=FEW, grpo=PRACTICE
)

FLOW = Recipe(
    name="flow",
    env=TabletopSettings(task="place"),
    demonstrations=FEW,
    grpo=GRPOConfig(keyframes=128),
    policy=replace(POLICY, head="flow"),
)

DREAM = VideoDiffusionSettings()
TRANSFORMER = replace(
    PLACE,
    name="transformer",
    world_model=replace(
        DREAM,
        backbone="transformer",
        codec="autoencoder",
        codec_downsample=8,
        codec_fit=replace(DREAM.codec_fit, optimizer="muon", steps=500),
        motion_prior=False,
        width=128,
        depth=3,
        fit=replace(DREAM.fit, steps=300),
        align=replace(DREAM.align, steps=700, lr=2e-3),
        shift=0,  # so that each frame is encoded once
    ),
)

STACK = Recipe(name="stack", env=TabletopSettings(task="stack"), grpo=PRACTICE)

SENTENCES = Recipe(
    name="sentences",
    env=TabletopSettings(task="place+place-blue"),
    policy=replace(POLICY, fit=replace(POLICY.fit, steps=900)),  # two tasks want more of them
)

INSERT = Recipe(
    name="insert", env=TabletopSettings(task="insert"), demonstrations=replace(FEW, episodes=60), grpo=PRACTICE
)
