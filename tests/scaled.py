"""The large presets with small sizes, and a program that runs one: by `test_large` alone, or several processes of it.

torchrun --nproc-per-node 2 tests/scaled.py FOLDER large-24gb
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from wmpo.algorithm import optimise
from wmpo.cli import exit_status
from wmpo.config import FitConfig, Recipe
from wmpo.opening import open_run
from wmpo.policies.openvla_oft.config import LanguageConfig, TowerConfig
from wmpo.policies.sizes import GREY, openvla_oft, smolvla
from wmpo.recipes import RECIPES
from wmpo.training import ranks
from wmpo.types import EnvSpec
from wmpo.world_models.autoencoder import SDXL_VAE

PIXELS = 64
VLM: dict[str, Any] = {
    "text_config": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 16, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128, "pad_token_id": 0,
    },
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": PIXELS, "patch_size": 8,
    },
    "scale_factor": 4, "image_token_id": 120,
}  # fmt: skip
TOWER = TowerConfig(56, 14, 32, 64, 2, 2, GREY, GREY)
LLAMA = LanguageConfig(320, 32, width=64, hidden=128, depth=2, heads=4, kv_heads=4, positions=128)
VAE: dict[str, Any] = {**SDXL_VAE, "block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}


def publish(name: str, spec: EnvSpec, folder: Path) -> Path:
    """What the preset reads from a folder, with random weights: its policy, or the autoencoder of `paper`."""
    made: Any
    if name == "paper":
        import diffusers

        made = diffusers.AutoencoderKL(**VAE)
    elif name == "large-24gb":
        made = smolvla(spec, 8, VLM)
    else:
        made = openvla_oft(
            spec, 8, dino=TOWER, siglip=TOWER, language=LLAMA, lora_rank=4, checkpointing=True, precision="bfloat16"
        )
    made.save_pretrained(folder)
    return folder


def few(fit: FitConfig, parts: int = 2) -> FitConfig:
    """Two steps, each in so many parts of two samples, whose weights processes share."""
    return replace(fit, steps=2, warmup=1, batch_size=2 * parts, accumulate=parts, fsdp=True)


def scaled(name: str, published: Path) -> Recipe:
    """A preset with its code paths: bfloat16, parts of batches, blocks computed again, latents once, caps."""
    recipe = RECIPES[name]
    policy: Any = recipe.policy
    world: Any = recipe.world_model
    if name == "paper":
        policy, world = replace(policy, width=32, hidden=64), replace(world, codec_path=str(published))
    else:
        policy = replace(policy, pretrained=str(published))
    reward: Any = recipe.reward
    env: Any = recipe.env
    return replace(
        recipe,
        device="cpu",
        env=replace(env, image_size=PIXELS, workers=1, renderer="rays"),
        demonstrations=replace(recipe.demonstrations, episodes=4),
        collect=replace(recipe.collect, episodes=4),
        policy=replace(policy, fit=few(policy.fit)),
        world_model=replace(
            world, width=96, depth=3, heads=4, sampling_steps=2, codec_width=16, codec_rows=16, imagined_rows=2,
            kinematics_fit=few(world.kinematics_fit, 1), codec_fit=few(world.codec_fit, 1), fit=few(world.fit),
            align=few(world.align),
        ),
        reward=replace(
            reward, width=64, depth=3, heads=2, image_size=PIXELS, threshold="half", fit=few(reward.fit)
        ),
        self_imitation=replace(recipe.self_imitation, steps=2),
        grpo=replace(
            recipe.grpo, iterations=1, groups=2, group_size=2, shards=2, minibatches=1, n_initial_states=4,
            min_group_success=0.0, max_group_success=1.0,
        ),
        evaluate=replace(recipe.evaluate, episodes=4, practice_eval_freq=0, time_factor=1.0),
    )  # fmt: skip


def main() -> int:
    ranks.start()
    folder, name = Path(sys.argv[1]), sys.argv[2]
    with open_run(scaled(name, folder / "published"), folder / "run") as run:
        optimise(run)
    ranks.end()
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
