"""Memory of each process that trains a world model: alone, and in several that share it (fsdp), beside what is planned.

    python benchmarks/fsdp.py [--processes 1 2 3] [--width 384] [--out benchmarks/results/fsdp.json]

Counts what the machine gives a process for the third step, over what it gave for starting and for a tiny model, and
without the whole weights that each keeps aside for the end. Linux only. On GPUs other allocators count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from wmpo.cli.counting import META
from wmpo.cli.planning import MARGIN, held, training, video_batch
from wmpo.config import FitConfig
from wmpo.data.clips import VideoBatch
from wmpo.io.files import write_json
from wmpo.io.plain import to_plain
from wmpo.io.provenance import commit, this_machine
from wmpo.training import ranks
from wmpo.training.fit import Learner
from wmpo.types import EnvSpec
from wmpo.world_models.settings import VideoDiffusionSettings
from wmpo.world_models.video_diffusion import VideoDiffusionModel

SPEC = EnvSpec({"front": (16, 16)}, 3, 2, 24, 5)
FIT = FitConfig(batch_size=8, accumulate=4, ema=0.9, fsdp=True)
CHUNK, STEPS = 4, 3
UNIT = 8  # of widths: twice the heads


def model(width: int) -> VideoDiffusionModel:
    settings = VideoDiffusionSettings(
        backbone="transformer", motion_prior=False, width=width, depth=6, heads=4, checkpointing=True,
        precision="float32",
    )  # fmt: skip
    return VideoDiffusionModel.build(settings, SPEC, CHUNK)


def batch(context: int) -> VideoBatch:
    """What `video_batch` plans, with numbers."""
    with torch.device("cpu"):
        planned = video_batch(SPEC, FIT.batch_size, context, CHUNK, {"front": (3, 16, 16)})
    return VideoBatch(*(
        {name: torch.zeros(frames.shape, dtype=frames.dtype) for name, frames in part.items()}
        if isinstance(part, dict) else torch.zeros(part.shape)
        for part in vars(planned).values()
    ))  # fmt: skip


def megabytes(key: str) -> float:
    """VmRSS: now; VmHWM: at most, since that was asked for."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024 / 1e6


def train(width: int) -> float:
    """The most that the last step took, in MB."""
    before = megabytes("VmRSS")
    network = model(width)
    learner = Learner(network, FIT, torch.device("cpu"), 0, ranks.world() > 1)
    learner.module.train()
    given = batch(network.context)
    for step in range(STEPS):
        Path("/proc/self/clear_refs").write_text("5")  # forget what was the most so far
        learner.step(given, step)
    return megabytes("VmHWM") - before - (held(network) / 1e6 if learner.shares else 0)


def work(width: int) -> None:
    torch.set_num_threads(1)
    ranks.start()
    train(24)  # torch imports much at first
    most = max(found for (found,) in ranks.gather((train(width),)))
    if ranks.rank() == 0:
        with torch.device(META):
            network = model(width)
        shapes = {"front": (3, 16, 16)}
        need = training("", network, video_batch(SPEC, FIT.batch_size, network.context, CHUNK, shapes), FIT, "")
        planned = need.total_of(ranks.world()) / MARGIN / 1e6
        row = {"processes": ranks.world(), "taken_mb": most, "planned_mb": planned, "weights_mb": held(network) / 1e6}
        print(json.dumps({name: round(value) for name, value in row.items()}))
    ranks.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--out", type=Path, help="where to write what was measured, as JSON")
    parser.add_argument("--worker", action="store_true", help="be one of the processes")
    options = parser.parse_args()
    if min(options.processes) < 1:
        parser.error(f"--processes is {min(options.processes)}; it must be at least 1")
    if options.width < 1 or options.width % UNIT:
        parser.error(f"--width is {options.width}; it must be a multiple of {UNIT}, above 0")
    if options.worker:
        work(options.width)
        return
    # memory that is let go is given back at once, so that what the machine counts is what is in use
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "32768"}
    rows = []
    for count in options.processes:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] * (count > 1)
        command = [sys.executable, *launcher, __file__, "--worker", "--width", str(options.width)]
        told = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
        print(told, end="", flush=True)
        rows.append(json.loads(told))
    if options.out is not None:
        write_json(options.out, {"commit": commit(), "machine": to_plain(this_machine()), "fsdp": rows})


if __name__ == "__main__":
    main()
