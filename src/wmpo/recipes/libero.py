"""A task of LIBERO, for two CPU cores. Evaluation is on the benchmark's own 50 initial states."""

from __future__ import annotations

from wmpo.config import DemonstrationConfig, EvaluateConfig, Recipe
from wmpo.envs.libero.settings import BENCHMARK_STATES, LiberoSettings
from wmpo.recipes.tabletop import PRACTICE, SHORT

LIBERO = Recipe(
    name="libero",
    env=LiberoSettings(suite="libero_spatial", task="2", image_size=64),
    demonstrations=DemonstrationConfig(episodes=12),  # of task 0, seed 100: the base succeeds in 19 of 50
    policy=SHORT,
    grpo=PRACTICE,
    evaluate=EvaluateConfig(episodes=BENCHMARK_STATES, time_factor=1.5, practice_eval_freq=0),
)
