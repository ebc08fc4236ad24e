"""A program for several processes, started by `test_fsdp`: they share small networks that they train.

torchrun --nproc-per-node 2 tests/sharing.py FOLDER [as usual | kill]
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from wmpo.cli import exit_status
from wmpo.config import FitConfig
from wmpo.data.clips import ImitationBatch, VideoBatch
from wmpo.errors import UserError
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.training import fsdp, ranks
from wmpo.training.fit import fit
from wmpo.training.log import RunLog
from wmpo.types import EnvSpec, Observation
from wmpo.world_models.settings import VideoDiffusionSettings
from wmpo.world_models.video_diffusion import VideoDiffusionModel

SPEC = EnvSpec({"front": (16, 16)}, 3, 2, 24, 5)
UNET = VideoDiffusionSettings(width=36, depth=1, precision="float32", context=2)
TRANSFORMER = replace(UNET, backbone="transformer", motion_prior=False, depth=2, heads=3, checkpointing=True)
POLICY = MiniVLASettings(chunk=4, width=8, hidden=24)
TRAININGS = {
    "transformer": (TRANSFORMER, FitConfig(steps=8, warmup=2, weight_decay=0.1, ema=0.9, accumulate=3, fsdp=True)),
    "unet": (UNET, FitConfig("muon", steps=3, warmup=2, cpu_shards=2, fsdp=True)),
    "policy": (POLICY, FitConfig(steps=3, warmup=1, ema=0.9, accumulate=3, fsdp=True)),
}
TROUBLE = 5


def network(name: str) -> VideoDiffusionModel | MiniVLA:
    torch.manual_seed(0)
    settings = TRAININGS[name][0]
    if isinstance(settings, VideoDiffusionSettings):
        return VideoDiffusionModel.build(settings, SPEC, 4)
    policy = MiniVLA.build(settings, SPEC)
    policy.text.requires_grad_(False)  # as most of a published policy
    policy.look.bias.requires_grad_(False)  # changes nothing: AdamW would make steps of its gradient's rounding
    return policy


def shown(step: int) -> ImitationBatch:
    video = sample(step)
    seen = Observation(video.anchor, video.first_state, ("push it", "lift it", "push it", "", "lift", "it", "push"))
    return ImitationBatch(seen, video.action.tanh(), torch.arange(28).view(7, 4) % 5 > 0)


def sample(step: int) -> VideoBatch:
    generator, rows = torch.Generator().manual_seed(step), 7

    def pictures(*frames: int) -> dict[str, torch.Tensor]:
        return {"front": torch.randint(0, 256, (rows, *frames, 3, 16, 16), generator=generator, dtype=torch.uint8)}

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=generator)

    images = pictures(UNET.context), pictures(), pictures(4)
    return VideoBatch(*images, normal(4, 2), normal(5, 3), normal(3), normal(2))


def learn(folder: Path, trouble: str = "") -> dict[str, torch.Tensor]:
    """All networks, whole or shared by processes."""
    torch.set_num_threads(1)
    found = {}

    def troubled(step: int) -> VideoBatch | ImitationBatch:
        if trouble == "kill" and step == TROUBLE and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "stop" and step == TROUBLE:
            raise UserError("That is enough.")
        return shown(step) if name == "policy" else sample(step)

    with RunLog(folder, quiet=True) as log:
        for name, (_, config) in TRAININGS.items():
            model = fit(
                network(name), troubled, config, folder=folder, name=name, log=log,
                checkpoint_seconds=0.0 if trouble else 20.0,
            )  # fmt: skip
            found |= {f"{name}/{key}": tensor for key, tensor in model.state_dict().items()}
    return found


def main() -> int:
    ranks.start()
    model = network("transformer")
    shared = fsdp.shared(model, torch.device("cpu"))
    whole, own = (
        sum(map(torch.Tensor.numel, some)) for some in (model.parameters(), map(fsdp.local, shared.parameters()))
    )
    assert 0.7 < own * ranks.world() / whole < 1.3
    weights = learn(Path(sys.argv[1]), sys.argv[2])
    for other in ranks.gather(weights):
        assert all(torch.equal(other[name], weights[name]) for name in weights)
    ranks.end()
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
