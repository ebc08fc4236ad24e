"""How many frames a second are imagined, by size of the picture, videos at once, and steps of the sampler.

OMP_NUM_THREADS=1 python benchmarks/dreams.py --out benchmarks/results/dreams.json
python benchmarks/dreams.py --device cuda --recipes place large-24gb large-80gb

The world models of recipes, with random weights, on one camera; a chunk is imagined, from a history that is there
already, and all of its frames are decoded. Beside the frames a second stand the aim for 256 x 256 pixels on a GPU, the
share of the speed of matrix products that the arithmetic reaches, and the memory, taken and planned. As in
`benchmarks/plan.py`, time of a CPU is that of one core, and what would take too long is left out and named.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

import plan as steps  # beside this file
from wmpo.cli.counting import META, go_through
from wmpo.cli.parse import program
from wmpo.errors import UserError, require_between
from wmpo.io.files import write_json
from wmpo.io.plain import to_plain
from wmpo.io.provenance import commit, this_machine
from wmpo.nn.precision import is_half
from wmpo.opening import pick_device
from wmpo.recipes import recipe_named
from wmpo.training.parallel import use_one_thread
from wmpo.types import EnvSpec, Observation
from wmpo.world_models.settings import VideoDiffusionSettings
from wmpo.world_models.video_diffusion import VideoDiffusionModel

AIM_FRAMES, AIM_SHARE = 230, 0.5  # at 256 x 256 pixels on a GPU; of the speed of matrix products


@dataclass
class Settings:
    recipes: tuple[str, ...] = ("place", "transformer")
    """Recipes whose world models imagine."""
    pixels: tuple[int, ...] = (64, 128, 256)
    """Heights and widths of the picture."""
    rows: tuple[int, ...] = (1, 32)
    """Videos imagined at once."""
    sampling: tuple[int, ...] = (1, 4, 30)
    """Steps of the sampler in a chunk."""
    compiled: bool = False
    """Also by compiled denoisers (`world_model.compile`), on a GPU by CUDA graphs as well; a minute more a row."""
    seconds: float = 10.0
    """What would take longer, once, at the speed of matrix products is left out."""
    device: str = "cpu"
    """cpu or cuda."""
    out: Path | None = None
    """Where to write what was measured, as JSON."""


def found(recipe: str) -> tuple[VideoDiffusionSettings, int]:
    """World model and chunk of a recipe. Raises UserError where it has no weights of its own, or another family's."""
    named = recipe_named(recipe)
    world = named.world_model
    if not isinstance(world, VideoDiffusionSettings) or world.codec == "diffusers":
        raise UserError(f"The world model of {recipe} can't be measured: it is of another family, or needs weights.")
    # a student imagines as its teacher does, in fewer steps; compiled denoisers are asked for by a setting
    return replace(world, student_steps=0, compile=False, cuda_graphs=False), named.policy.chunk


def imagine(model: VideoDiffusionModel, spec: EnvSpec, rows: int, device: torch.device) -> Callable[[], None]:
    """What is measured, as a function: a chunk of so many videos."""
    zeros = partial(steps.zeros, device=device)
    pictures = {name: zeros(rows, 3, *size, dtype=torch.uint8) for name, size in spec.cameras.items()}
    memory = model.begin(Observation(pictures, zeros(rows, spec.state_dim), ("",) * rows))
    actions = zeros(rows, model.chunk, spec.action_dim)

    def work() -> None:
        model.decode(model.imagine(memory, actions, steps.generator_of(device))[1])

    return work


def measured(
    config: VideoDiffusionSettings, spec: EnvSpec, chunk: int, rows: int, most: float, gflops: float,
    device: torch.device, compiled: bool,
) -> dict[str, Any]:  # fmt: skip
    """Of so many videos, unless it would take more than `most` seconds at `gflops`."""

    def build(device: torch.device, config: VideoDiffusionSettings = config) -> VideoDiffusionModel:
        with device:
            return VideoDiffusionModel.build(config, spec, chunk).eval().to(device)

    foreseen = build(META)
    planned = go_through(torch.no_grad(), imagine(foreseen, spec, rows, META), [foreseen])
    least = planned.flop / 1e9 / gflops
    row = {"gflop": round(planned.flop / 1e9, 2), "planned_mb": round(planned.peak / 1e6, 1)}
    if least > most:
        return {**row, "left_out": f"{least:.0f} s at the speed of matrix products"}
    torch.manual_seed(0)
    times: list[float] = []
    taken = steps.done(device, times, torch.no_grad(), imagine(build(device), spec, rows, device))
    ways = {"compiled": False, "graphs": True} if device.type == "cuda" else {"compiled": False}
    for name, graphs in ways.items() if compiled else ():
        quick = build(device, replace(config, compile=True, cuda_graphs=graphs))
        steps.done(device, times, torch.no_grad(), imagine(quick, spec, rows, device))
        row |= {f"{name}_seconds": round(times[-1], 4), f"{name}_ratio": round(times[0] / times[-1], 2)}
    on_gpu = device.type == "cuda" and spec.cameras["front"] == (256, 256)
    return {
        **row,
        "taken_mb": round(taken.peak / 1e6, 1),
        "seconds": round(times[0], 4),
        "frames_per_second": round(rows * chunk / times[0], 1),
        "aim_frames_per_second": AIM_FRAMES if on_gpu else None,
        "share_of_matmul": round(least / times[0], 3),
        "aim_share_of_matmul": AIM_SHARE,
    }


def main(settings: Settings) -> int:
    for name, least, most in (("pixels", 8, 4096), ("rows", 1, 65536), ("sampling", 1, 1000)):
        for value in getattr(settings, name):
            require_between(f"--{name}", value, least, most)
    worlds = {recipe: found(recipe) for recipe in settings.recipes}
    use_one_thread()
    device = pick_device(settings.device)
    facts = {"commit": commit(), "machine": to_plain(this_machine()), "load": os.getloadavg()[0]}
    rows, speeds = [], {}
    grid = product(settings.recipes, settings.pixels, settings.sampling, settings.rows)
    for recipe, pixels, sampling, videos in grid:
        world, chunk = worlds[recipe]
        dtype = torch.bfloat16 if is_half(world.precision, device) else torch.float32
        gflops = steps.speed(device, dtype)
        speeds[str(dtype).removeprefix("torch.")] = round(gflops, 1)
        spec, config = EnvSpec({"front": (pixels, pixels)}, 4, 4, 48, 5), replace(world, sampling_steps=sampling)
        row = {"recipe": recipe, "pixels": pixels, "rows": videos, "sampling_steps": sampling}
        rows.append(row | measured(config, spec, chunk, videos, settings.seconds, gflops, device, settings.compiled))
        print(rows[-1], flush=True)
        if settings.out is not None:
            write_json(settings.out, {**facts, "matmul_gflops": speeds, "dreams": rows})
    return 0


if __name__ == "__main__":
    sys.exit(program(Settings, main, "python benchmarks/dreams.py"))
