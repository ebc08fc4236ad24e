"""What `wmpo plan` finds for policies of their published sizes: no weights are needed, since plans have no numbers.

python benchmarks/sizes.py --out benchmarks/results/sizes.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from wmpo.cli.counting import META
from wmpo.cli.parse import program
from wmpo.cli.planning import Need, plan
from wmpo.config import FitConfig, Recipe
from wmpo.envs import make_env
from wmpo.io.files import write_json
from wmpo.io.provenance import commit
from wmpo.policies.sizes import RANK, openvla_oft, pi0, smolvla
from wmpo.recipes import recipe_named
from wmpo.types import EnvSpec

CHUNK = 8


@dataclass
class Settings:
    out: Path | None = None
    """Where to write the plans, as JSON."""


POLICIES: dict[str, Callable[[EnvSpec], Any]] = {
    "SmolVLA": lambda spec: smolvla(spec, CHUNK),
    "pi0": lambda spec: pi0(spec, CHUNK),
    "OpenVLA-OFT": lambda spec: openvla_oft(spec, CHUNK),
    f"OpenVLA-OFT, lora_rank {RANK}": lambda spec: openvla_oft(spec, CHUNK, lora_rank=RANK),
    f"OpenVLA-OFT, lora_rank {RANK}, checkpointing": lambda spec: openvla_oft(
        spec, CHUNK, lora_rank=RANK, checkpointing=True
    ),
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
    sys.exit(program(Settings, main, "python benchmarks/sizes.py"))
