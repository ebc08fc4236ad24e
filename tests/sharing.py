"""A program for several processes, started by `test_fsdp`: each keeps a share of a small world model that it trains.

torchrun --nproc-per-node 2 tests/sharing.py FOLDER [as usual | kill | whole]
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
from wmpo.data.clips import VideoBatch
from wmpo.training import ranks
from wmpo.training.fit import fit
from wmpo.training.log import RunLog
from wmpo.types import EnvSpec
from wmpo.world_models.settings import VideoDiffusionSettings
from wmpo.world_models.video_diffusion import VideoDiffusionModel

SPEC = EnvSpec({"front": (16, 16)}, 2, 3, 24, 5)
SETTINGS = VideoDiffusionSettings(
    backbone="transformer", motion_prior=False, codec="pixels", width=36, depth=2, heads=3, checkpointing=True,
    precision="float32", context=2,
)  # fmt: skip
FITS = {
    "adamw": FitConfig(steps=25, batch_size=7, warmup=5, lr=1e-3, weight_decay=0.1, ema=0.9, accumulate=3, fsdp=True),
    "muon": FitConfig("muon", steps=6, batch_size=8, warmup=2, lr=1e-3, cpu_shards=2, fsdp=True),
}
TROUBLE = 12


def sample(step: int) -> VideoBatch:
    generator, rows = torch.Generator().manual_seed(step), 7

    def pictures(*frames: int) -> dict[str, torch.Tensor]:
        return {"front": torch.randint(0, 256, (rows, *frames, 3, 16, 16), generator=generator, dtype=torch.uint8)}

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=generator)

    images = pictures(SETTINGS.context), pictures(), pictures(4)
    return VideoBatch(*images, normal(4, 3), normal(5, 2), normal(2), normal(3))


def learn(folder: Path, trouble: str = "") -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    found = {}

    def troubled(step: int) -> VideoBatch:
        if trouble == "kill" and step == TROUBLE and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return sample(step)

    with RunLog(folder, quiet=True) as log:
        for name, config in FITS.items():
            torch.manual_seed(0)
            model = VideoDiffusionModel.build(SETTINGS, SPEC, 4)
            config = replace(config, fsdp=config.fsdp and trouble != "whole")
            often = 0.0 if trouble else 20.0
            fit(model, troubled, config, folder=folder, name=name, log=log, checkpoint_seconds=often)
            found |= {f"{name}/{key}": tensor for key, tensor in model.state_dict().items()}
    return found


def main() -> int:
    ranks.start()
    weights = learn(Path(sys.argv[1]), sys.argv[2])
    for other in ranks.gather(weights):
        assert all(torch.equal(other[name], weights[name]) for name in weights)
    ranks.end()
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
