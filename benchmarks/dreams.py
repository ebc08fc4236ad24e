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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

import plan as steps  # beside this file
from wmpo.cli import exit_status
from wmpo.cli.counting import META, go_through
from wmpo.cli.machine import matmul_gflops
from wmpo.errors import UserError, require_between
from wmpo.io.files import write_json
from wmpo.io.plain import to_plain
from wmpo.io.provenance import commit, this_machine
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
    seconds: float = 10.0
    """What would take longer, once, at the speed of matrix products is left out."""
    device: str = "cpu"
    """cpu or cuda."""
    out: Path | None = None
    """Where to write what was measured, as JSON."""


def world_model(settings: VideoDiffusionSettings, spec: EnvSpec, chunk: int, device: torch.device) -> Any:
    with device:
        return VideoDiffusionModel.build(settings, spec, chunk).eval().to(device)


def imagine(model: Any, spec: EnvSpec, rows: int, device: torch.device) -> Any:
    """What is measured, as a function: a chunk of so many videos."""

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    (size,) = spec.cameras.values()
    first = Observation({"front": zeros(rows, 3, *size, dtype=torch.uint8)}, zeros(rows, spec.state_dim), ("",) * rows)
    memory, actions = model.begin(first), zeros(rows, model.chunk, spec.action_dim)
    generator = torch.default_generator if device.type != "cuda" else torch.cuda.default_generators[0]

    def work() -> None:
        model.decode(model.imagine(memory, actions, generator)[1])

    return work


def measured(
    recipe: str, pixels: int, rows: int, sampling: int, settings: Settings, device: torch.device
) -> dict[str, Any]:
    found = recipe_named(recipe)
    spec = EnvSpec({"front": (pixels, pixels)}, 4, 4, 48, 5)
    if not isinstance(found.world_model, VideoDiffusionSettings) or found.world_model.codec == "diffusers":
        raise UserError(f"The world model of {recipe} can't be measured: it is of another family, or needs weights.")
    # compiling takes longer than all that is measured here
    config = replace(found.world_model, sampling_steps=sampling, student_steps=0, compile=False)
    chunk = found.policy.chunk
    foreseen = world_model(config, spec, chunk, META)
    planned = go_through(torch.no_grad(), imagine(foreseen, spec, rows, META), [foreseen])
    row: dict[str, Any] = {"recipe": recipe, "pixels": pixels, "rows": rows, "sampling_steps": sampling}
    half = config.precision == "bfloat16" or device.type == "cuda"
    gflops = speed(torch.bfloat16 if half else torch.float32, device)
    row |= {"gflop": round(planned.flop / 1e9, 2), "planned_mb": round(planned.peak / 1e6, 1)}
    if planned.flop / 1e9 / gflops > settings.seconds:
        return {**row, "left_out": f"{planned.flop / 1e9 / gflops:.0f} s at the speed of matrix products"}
    torch.manual_seed(0)
    model = world_model(config, spec, chunk, device)
    times: list[float] = []
    taken = steps.done(device, times, torch.no_grad(), imagine(model, spec, rows, device))
    share = planned.flop / 1e9 / times[0] / gflops
    aim = AIM_FRAMES if pixels == 256 and device.type == "cuda" else None
    return row | {
        "taken_mb": round(taken.peak / 1e6, 1),
        "seconds": round(times[0], 4),
        "frames_per_second": round(rows * chunk / times[0], 1),
        "aim_frames_per_second": aim,
        "share_of_matmul": round(share, 3),
        "aim_share_of_matmul": AIM_SHARE,
    }


SPEEDS: dict[torch.dtype, float] = {}


def speed(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of matrix products, measured once."""
    if dtype not in SPEEDS:
        SPEEDS[dtype] = matmul_gflops(dtype, seconds=3.0, device=device)
    return SPEEDS[dtype]


def main(settings: Settings) -> int:
    for name, most in (("pixels", 4096), ("rows", 65536), ("sampling", 1000)):
        for value in getattr(settings, name):
            require_between(f"--{name}", value, 8 if name == "pixels" else 1, most)
    use_one_thread()
    device = pick_device(settings.device)
    facts = {"commit": commit(), "machine": to_plain(this_machine()), "load": os.getloadavg()[0]}
    rows = []
    for recipe in settings.recipes:
        for pixels in settings.pixels:
            for sampling in settings.sampling:
                for videos in settings.rows:
                    rows.append(measured(recipe, pixels, videos, sampling, settings, device))
                    print(rows[-1], flush=True)
                    if settings.out is not None:
                        speeds = {str(dtype).removeprefix("torch."): round(v, 1) for dtype, v in SPEEDS.items()}
                        write_json(settings.out, {**facts, "matmul_gflops": speeds, "dreams": rows})
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Settings))))
