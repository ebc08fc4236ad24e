"""A task of LIBERO, for two CPU cores. Evaluation is on the benchmark's own 50 initial states."""

from __future__ import annotations

from dataclasses import replace

from wmpo.config import DemonstrationConfig, EvaluateConfig, Recipe
from wmpo.envs.libero.settings import BENCHMARK_STATES, LiberoSettings
from wmpo.recipes.tabletop import POLICY, PRACTICE
from wmpo.rewards.settings import ConvSettings
from wmpo.world_models.settings import VideoDiffusionSettings

DREAM, REWARD = VideoDiffusionSettings(), ConvSettings()

LIBERO = Recipe(
    name="libero",
    env=LiberoSettings(suite="libero_spatial", task="2", cameras=("front",), image_size=64, horizon=40),
    demonstrations=DemonstrationConfig(episodes=15),  # so that the base succeeds less than half of the time
    policy=replace(POLICY, fit=replace(POLICY.fit, steps=300)),
    world_model=replace(DREAM, fit=replace(DREAM.fit, steps=400), align=replace(DREAM.align, steps=300)),
    reward=replace(REWARD, fit=replace(REWARD.fit, steps=200)),
    grpo=replace(PRACTICE, iterations=12, groups=32, n_initial_states=64),
    evaluate=EvaluateConfig(episodes=BENCHMARK_STATES, time_factor=1.0, practice_eval_freq=0),
)
