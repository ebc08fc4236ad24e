"""All stages of `push`, as small as they can be: minutes on two slow cores. It shows that everything works together,
not that anything is learned. All that two processes can share is in two parts.
"""

from __future__ import annotations

from wmpo.config import (
    CollectConfig,
    DemonstrationConfig,
    EvaluateConfig,
    FitConfig,
    GRPOConfig,
    Recipe,
    SelfImitationConfig,
)
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.policies.settings import MiniVLASettings
from wmpo.rewards.settings import ConvSettings
from wmpo.world_models.settings import VideoDiffusionSettings

SMOKE = Recipe(
    name="smoke",
    env=TabletopSettings(task="push", image_size=32),
    demonstrations=DemonstrationConfig(episodes=48),
    policy=MiniVLASettings(width=32, hidden=128, fit=FitConfig(steps=100, batch_size=64, cpu_shards=2)),
    collect=CollectConfig(episodes=32),
    world_model=VideoDiffusionSettings(
        width=32,
        depth=1,
        kinematics_fit=FitConfig(optimizer="muon", steps=60, batch_size=16, cpu_shards=2, lr=5e-3, warmup=10),
        fit=FitConfig(steps=80, batch_size=16, cpu_shards=2, ema=0.98),
        align=FitConfig(steps=30, batch_size=16, cpu_shards=2, lr=5e-4, ema=0.98),
    ),
    reward=ConvSettings(width=16, threshold="half", fit=FitConfig(steps=80, batch_size=32, cpu_shards=2)),
    self_imitation=SelfImitationConfig(steps=20),
    grpo=GRPOConfig(iterations=3, groups=4, group_size=4, shards=2, n_initial_states=16, max_resamples=1),
    evaluate=EvaluateConfig(episodes=32, practice_eval_freq=2, practice_eval_episodes=8),
)
