"""A task of LIBERO, for two CPU cores. Evaluation is on the benchmark's own 50 initial states."""

from __future__ import annotations

from wmpo.config import DemonstrationConfig, EvaluateConfig, GRPOConfig, Recipe
from wmpo.envs.libero.settings import BENCHMARK_STATES, LiberoSettings

LIBERO = Recipe(
    name="libero",
    env=LiberoSettings(suite="libero_spatial", task="2", image_size=64),
    demonstrations=DemonstrationConfig(episodes=50),
    grpo=GRPOConfig(keyframes=128),
    evaluate=EvaluateConfig(episodes=BENCHMARK_STATES),
)
