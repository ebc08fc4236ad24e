"""What `wmpo plan` foresees, beside what the same steps take when one core of this machine really does them.

OMP_NUM_THREADS=1 python benchmarks/plan.py --out results/plan.json

The same code goes through the steps twice: with tensors that have no numbers, and with tensors that have, while the
profiler tells what is allocated and freed, of which the fullest moment counts. A CPU imagines a few rows at a time, to
stay in its cache: it takes less there than what is planned for a GPU.

Time is that of the processor, so that what else runs on the machine counts little; it is compared with the time that
the planned arithmetic would take at the speed of a matrix product of 1024 x 1024.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import tyro
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from wmpo import plan
from wmpo.doctor import matmul_gflops
from wmpo.envs import make_env
from wmpo.recipes import recipe_named
from wmpo.results import commit, this_machine
from wmpo.training.files import write_json
from wmpo.training.plain import to_plain
from wmpo.training.shares import one_core_each


@dataclass
class Settings:
    recipes: tuple[str, ...] = ("smoke", "place", "wrist", "flow")
    """Recipes to plan and to try."""
    out: Path | None = None
    """Where to write what was measured, as JSON."""


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`plan.blank` with numbers."""
    return torch.zeros(shape, dtype=dtype)


def done(
    seconds: list[float], mode: AbstractContextManager[Any], work: Callable[[], None], networks: Any
) -> SimpleNamespace:
    """`plan.go_through` of what really happens: bytes allocated and not yet freed, at the fullest moment.

    The seconds that it took are appended, the least of three times.
    """
    with mode:
        work()  # what is made once and kept belongs to no step
        tries = []
        for _ in range(3):
            begin = time.process_time()
            work()
            tries.append(time.process_time() - begin)
        seconds.append(min(tries))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            work()
    running = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            running += event.nbytes()
            most = max(most, running)
    return SimpleNamespace(peak=most, flop=0)


def main(settings: Settings) -> None:
    one_core_each()
    gflops = matmul_gflops(torch.float32, seconds=5.0)
    load = os.getloadavg()[0]  # what else runs
    facts = {"commit": commit(), "machine": to_plain(this_machine()), "load": load, "gflops": round(gflops, 1)}
    print(facts, flush=True)
    rows = []
    for name in settings.recipes:
        recipe = recipe_named(name)
        with closing(make_env(replace(recipe.env, workers=0))) as env:
            spec = env.spec
        foreseen = plan.plan(recipe, spec)
        seconds: list[float] = []
        with patch.multiple(plan, META=torch.device("cpu"), blank=zeros, go_through=partial(done, seconds)):
            taken = plan.plan(recipe, spec)
        for before, after, second in zip(foreseen, taken, seconds, strict=True):
            row = {
                "recipe": name,
                "stage": before.stage,
                "planned_mb": round(before.activations / 1e6, 1),
                "taken_mb": round(after.activations / 1e6, 1),
                "planned_to_taken": round(before.activations / after.activations, 2),
                "planned_gflop": round(before.flop / 1e9, 2),
                "planned_seconds": round(before.flop / gflops / 1e9, 4),
                "taken_seconds": round(second, 4),
                "taken_to_planned_seconds": round(second / (before.flop / gflops / 1e9), 2),
            }
            print(row, flush=True)
            rows.append(row)
    if settings.out is not None:
        write_json(settings.out, {**facts, "steps": rows})


if __name__ == "__main__":
    main(tyro.cli(Settings))
