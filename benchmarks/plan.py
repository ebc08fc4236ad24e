"""What `wmpo plan` foresees, beside what the same steps take when this machine's CPU really does them.

OMP_NUM_THREADS=1 python benchmarks/plan.py --out results/plan.json

The same code goes through the steps twice: with tensors that have no numbers, and with tensors that have, while the
profiler tells what is allocated and freed, of which the fullest moment counts. A CPU imagines a few rows at a time, to
stay in its cache: it takes less there than what is planned for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import tyro
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from wmpo import plan
from wmpo.envs import make_env
from wmpo.recipes import recipe_named
from wmpo.results import commit, this_machine
from wmpo.training.files import write_json
from wmpo.training.plain import to_plain


@dataclass
class Settings:
    recipes: tuple[str, ...] = ("smoke", "place", "wrist", "flow")
    """Recipes to plan and to try."""
    out: Path | None = None
    """Where to write what was measured, as JSON."""


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`plan.blank` with numbers."""
    return torch.zeros(shape, dtype=dtype)


def profiled(mode: AbstractContextManager[Any], work: Callable[[], None]) -> int:
    """`plan.peak` of what really happens: bytes allocated and not yet freed, at the fullest moment."""
    work()  # what is made once and kept belongs to no step
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen, mode:
        work()
    running = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            running += event.nbytes()
            most = max(most, running)
    return most


def main(settings: Settings) -> None:
    rows = []
    for name in settings.recipes:
        recipe = recipe_named(name)
        with closing(make_env(replace(recipe.env, workers=0))) as env:
            spec = env.spec
        foreseen = plan.plan(recipe, spec)
        with patch.multiple(plan, META=torch.device("cpu"), blank=zeros, peak=profiled):
            taken = plan.plan(recipe, spec)
        for before, after in zip(foreseen, taken, strict=True):
            row = {
                "recipe": name,
                "stage": before.stage,
                "planned_mb": round(before.activations / 1e6, 1),
                "taken_mb": round(after.activations / 1e6, 1),
                "planned_to_taken": round(before.activations / after.activations, 2),
            }
            print(row, flush=True)
            rows.append(row)
    if settings.out is not None:
        write_json(settings.out, {"commit": commit(), "machine": to_plain(this_machine()), "activations": rows})


if __name__ == "__main__":
    main(tyro.cli(Settings))
