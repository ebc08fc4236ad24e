"""The paper's numbers, where this package has a setting for them. It needs GPUs, and an SDXL autoencoder on disk.

Where the paper and its code disagree this follows the paper: every setting that is marked [paper ...] has that value,
but for what stands in place of a 7B OpenVLA-OFT: the policy is MiniVLA, so its width and learning rates are ours.

What makes it fit GPUs of 80 GB, and up to 64 of them find work, is as in the recipes for large networks;
parts of a batch have random numbers of their own, so that they change a result as another seed would.
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
from wmpo.recipes.large import PARTS
from wmpo.rewards.settings import VideoMAESettings
from wmpo.world_models.settings import VideoDiffusionSettings

PAPER = Recipe(
    name="paper",
    env=TabletopSettings(task="stack", image_size=256, state=False, workers=16),
    demonstrations=DemonstrationConfig(episodes=300, noise=0.2),
    policy=MiniVLASettings(
        chunk=8, bins=256, width=128, hidden=1024, fit=FitConfig(steps=20_000, batch_size=128, lr=5e-4, warmup=500)
    ),
    collect=CollectConfig(episodes=128, temperature=1.6),
    world_model=VideoDiffusionSettings(
        backbone="transformer",
        codec="diffusers",
        context=4,
        anchor=False,
        motion_prior=False,
        action_conditioning="frame",
        objective="epsilon",
        context_noise=0.05,
        training_timesteps="all",
        sampling_steps=30,
        width=1152,
        depth=28,
        heads=16,
        checkpointing=True,
        precision="bfloat16",
        imagined_rows=64,
        codec_rows=64,
        compile=True,
        fit=FitConfig(steps=100_000, batch_size=128, accumulate=PARTS, lr=1e-4, warmup=1000, grad_clip=0.1, ema=0.9999),
        align=FitConfig(steps=10_000, batch_size=128, accumulate=PARTS, lr=1e-4, warmup=0, grad_clip=0.1, ema=0.9999),
        align_fraction=1.0,
        shift=0,
    ),
    reward=VideoMAESettings(
        family="videomae",
        clip_length=8,
        shift=0,
        stride=1,
        threshold="f1",
        imagined_fraction=0.0,
        width=768,
        depth=12,
        heads=12,
        image_size=224,
        fit=FitConfig(steps=10_000, batch_size=128, accumulate=8, precision="bfloat16", lr=1e-4, warmup=500),
    ),
    self_imitation=SelfImitationConfig(steps=0),
    grpo=GRPOConfig(
        iterations=100,
        groups=64,
        group_size=8,
        shards=PARTS,
        lr=5e-6,
        warmup=0,
        minibatches=4,
        clip_low=0.20,
        clip_high=0.28,
        ratio="chunk",
        temperature=1.6,
        min_group_success=0.01,  # only groups that all fail or all succeed are dropped
        max_group_success=0.99,
        max_resamples=8,
        ema=0.0,
    ),
    evaluate=EvaluateConfig(episodes=128),
)
