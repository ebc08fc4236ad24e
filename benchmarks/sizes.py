"""What `wmpo plan` finds for policies of their published sizes: no weights are needed, since plans have no numbers.

python benchmarks/sizes.py --out benchmarks/results/sizes.json
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
import tyro
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from wmpo.cli.planning import META, Need, plan
from wmpo.config import FitConfig, FlowConfig, Recipe
from wmpo.envs import make_env
from wmpo.io.files import write_json
from wmpo.io.provenance import commit
from wmpo.policies.flow_vla import FlowVLA, FlowVLAConfig
from wmpo.policies.openvla_oft import OpenVLAOFT, OpenVLAOFTConfig
from wmpo.policies.openvla_oft.config import LanguageConfig, TowerConfig
from wmpo.policies.openvla_oft.prompt import Prompt
from wmpo.recipes import recipe_named
from wmpo.types import EnvSpec

CHUNK, RANK = 8, 32
GREY = (0.5, 0.5, 0.5)

# The config.json of HuggingFaceTB/SmolVLM2-500M-Video-Instruct, as far as sizes go.
SMOLVLM: dict[str, Any] = {
    "text_config": {
        "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "head_dim": 64,
        "num_attention_heads": 15, "num_key_value_heads": 5, "vocab_size": 49280,
    },
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    },
    "scale_factor": 4, "image_token_id": 49190,
}  # fmt: skip

# DINOv2 ViT-L/14 with registers and SigLIP SO400M/14, each without its last layer; Llama 2 7B.
DINO = TowerConfig(224, 14, 1024, 4096, 23, 16, GREY, GREY, registers=4)
SIGLIP = TowerConfig(224, 14, 1152, 4304, 26, 16, GREY, GREY)
LLAMA = LanguageConfig(vocabulary=32064, padding=64)


@dataclass
class Settings:
    out: Path | None = None
    """Where to write the plans, as JSON."""


def words() -> Tokenizer:
    """It knows what `Prompt` looks for, and reads any sentence as one word."""
    return Tokenizer(WordLevel({"<unk>": 0, "▁": 1, "</s>": 2}, unk_token="<unk>"))


def flow(network: Any, settings: Callable[[], dict[str, Any]], spec: EnvSpec) -> FlowVLA:
    config = FlowVLAConfig(network, settings(), CHUNK, spec.state_dim, spec.action_dim, FlowConfig(steps=10))
    return FlowVLA(config, words().to_str())


def openvla(spec: EnvSpec, **settings: Any) -> OpenVLAOFT:
    cameras = tuple(spec.cameras)
    config = OpenVLAOFTConfig(cameras, None, spec.action_dim, CHUNK, DINO, SIGLIP, LLAMA, **settings)
    return OpenVLAOFT(config, Prompt(words(), "here"))


POLICIES: dict[str, Callable[[EnvSpec], Any]] = {
    "SmolVLA": lambda spec: flow("smolvla", lambda: {"vlm": SMOLVLM}, spec),
    "pi0": lambda spec: flow("pi0", lambda: transformers.PI0Config().to_dict(), spec),
    "OpenVLA-OFT": openvla,
    f"OpenVLA-OFT, lora_rank {RANK}": lambda spec: openvla(spec, lora_rank=RANK),
    f"OpenVLA-OFT, lora_rank {RANK}, checkpointing": lambda spec: openvla(spec, lora_rank=RANK, checkpointing=True),
}


def recipe() -> Recipe:
    """place, with `--policy.chunk 8 --policy.fit.optimizer adamw --policy.fit.batch_size 8 --grpo.micro_batch 1`."""
    place = recipe_named("place")
    fit: FitConfig = replace(place.policy.fit, optimizer="adamw", batch_size=8)
    policy = replace(place.policy, chunk=CHUNK, fit=fit)
    return replace(place, policy=policy, grpo=replace(place.grpo, micro_batch=1))


def row_of(need: Need) -> dict[str, Any]:
    return {
        "stage": need.stage,
        "gb": round(need.total / 1e9, 2),
        "weights_gb": round(need.weights / 1e9, 2),
        "training_gb": round(need.training / 1e9, 2),
        "activations_gb": round(need.activations / 1e9, 2),
        "tflop": round(need.flop / 1e12, 3),
        "steps": need.steps,
    }


def main(settings: Settings) -> None:
    facts = {"commit": commit(), "torch": torch.__version__, "transformers": transformers.__version__}
    with closing(make_env(replace(recipe().env, workers=0, renderer="rays"))) as env:
        spec = env.spec
    rows = []
    for name, build in POLICIES.items():
        with META:
            policy = build(spec)
        policy.eval()
        parameters = list(policy.parameters())
        row = {
            "policy": name,
            "parameters": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
            "stages": [row_of(need) for need in plan(recipe(), spec, policy)],
        }
        print(row, flush=True)
        rows.append(row)
    if settings.out is not None:
        write_json(settings.out, {**facts, "sizes": rows})


if __name__ == "__main__":
    main(tyro.cli(Settings))
