"""A published policy, brought by you (`policy.pretrained`), on `place` at 256 pixels, for one GPU or up to 64 of them.

What makes it fit: bfloat16, gradients of two clips at a time that add up (`accumulate`), blocks that are computed
again for their gradients (`checkpointing`), latents that are computed once (`shift` 0), and caps on the videos and
frames that are imagined, encoded and decoded at once. Dreams, of ten steps a chunk, are compiled (`compile`). `wmpo
plan large-24gb` counts it. The largest trainings and practice are cut into up to 64 parts, so that as many processes
find work. Learning rates are those of the paper, or of the policies' authors; nobody has searched for them here.
"""

from __future__ import annotations

from dataclasses import replace

from wmpo.config import CollectConfig, DemonstrationConfig, FitConfig, GRPOConfig, PolicyConfig, Recipe
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.policies.settings import FlowVLASettings
from wmpo.rewards.settings import VideoMAESettings
from wmpo.world_models.settings import VideoDiffusionSettings

PARTS = 64

DREAM = VideoDiffusionSettings(
    backbone="transformer",
    codec="autoencoder",
    codec_downsample=8,
    codec_width=64,
    codec_rows=64,
    codec_fit=FitConfig(steps=20_000, batch_size=32, precision="bfloat16", lr=1e-3, warmup=500),
    context=4,
    motion_prior=False,
    training_timesteps="all",
    sampling_steps=10,
    imagined_rows=16,
    compile=True,
    width=768,
    depth=14,
    heads=12,
    checkpointing=True,
    precision="bfloat16",
    fit=FitConfig(steps=50_000, batch_size=128, accumulate=PARTS, lr=1e-4, warmup=1000, ema=0.999),
    align=FitConfig(steps=5_000, batch_size=128, accumulate=PARTS, lr=1e-4, warmup=100, ema=0.999),
    shift=0,
)

JUDGE = VideoMAESettings(
    family="videomae",
    clip_length=8,
    width=384,
    depth=12,
    heads=6,
    image_size=224,
    fit=FitConfig(steps=10_000, batch_size=64, accumulate=8, precision="bfloat16", lr=1e-4, warmup=500),
)

LARGE_24GB = Recipe(
    name="large-24gb",
    control=False,
    env=TabletopSettings(task="place", image_size=256, workers=16),
    demonstrations=DemonstrationConfig(episodes=300),
    policy=FlowVLASettings(
        family="smolvla",
        chunk=8,
        fit=FitConfig(steps=20_000, batch_size=64, accumulate=32, precision="bfloat16", lr=1e-4, warmup=1000),
    ),
    collect=CollectConfig(episodes=1280),
    world_model=DREAM,
    reward=JUDGE,
    grpo=GRPOConfig(iterations=100, groups=64, group_size=8, shards=PARTS, lr=1e-5, micro_batch=1),
)

LARGE_80GB = replace(
    LARGE_24GB,
    name="large-80gb",
    policy=PolicyConfig(
        family="openvla_oft",
        chunk=8,
        fit=FitConfig(steps=20_000, batch_size=64, accumulate=32, lr=5e-4, warmup=1000),
    ),
    world_model=replace(DREAM, imagined_rows=64, codec_rows=256, width=1152, depth=28, heads=16),
    reward=replace(JUDGE, width=768, heads=12),
)
