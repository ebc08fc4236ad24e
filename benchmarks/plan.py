"""What `wmpo plan` foresees, beside what the same steps take when one core of this machine, or its GPU, does them.

OMP_NUM_THREADS=1 python benchmarks/plan.py --out benchmarks/results/plan.json
python benchmarks/plan.py --device cuda --recipes place --policies "SmolVLA" "OpenVLA-OFT, lora_rank 32, checkpointing"

The same code goes through the steps twice: with tensors that have no numbers, and with tensors that have, while what is
allocated and freed is counted, of which the fullest moment counts. A CPU imagines a few rows at a time, to stay in
its cache: it takes less there than what is planned for a GPU. Published policies have random weights and the sizes of
`benchmarks/sizes.py`.

Time of a CPU is that of the processor, so that what else runs on the machine counts little. It is compared with the
time that the planned arithmetic would take at the speed of a matrix product: of 1024 x 1024 on a core, of 8192 x 8192
in bfloat16 on a GPU.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import sizes  # beside this file
from wmpo.cli import planning as plan
from wmpo.cli.machine import matmul_gflops
from wmpo.cli.parse import program
from wmpo.config import Recipe
from wmpo.envs import make_env
from wmpo.errors import named
from wmpo.io.files import write_json
from wmpo.io.plain import to_plain
from wmpo.io.provenance import commit, this_machine
from wmpo.opening import pick_device
from wmpo.policies import build_policy
from wmpo.recipes import recipe_named
from wmpo.training.parallel import use_one_thread
from wmpo.types import EnvSpec

HALF = ", bfloat16"  # how the name of a policy ends that computes so


@dataclass
class Settings:
    recipes: tuple[str, ...] = ("smoke", "place", "wrist", "flow")
    """Recipes to plan and to try."""
    policies: tuple[str, ...] = ()
    """Published policies of `benchmarks/sizes.py` to plan and to try; a name that ends in ", bfloat16" computes so."""
    device: str = "cpu"
    """cpu or cuda."""
    out: Path | None = None
    """Where to write what was measured, as JSON."""


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device) -> Tensor:
    """`plan.blank` with numbers."""
    return torch.zeros(shape, dtype=dtype, device=device)


def generator_of(device: torch.device) -> torch.Generator:
    """The default one of a device."""
    return torch.cuda.default_generators[0] if device.type == "cuda" else torch.default_generator


def on_cpu(work: Callable[[], None]) -> tuple[int, float]:
    """Bytes allocated and not yet freed, at the fullest moment, and seconds, the least of three times."""
    work()  # what is made once and kept belongs to no step
    tries = []
    for _ in range(3):
        begin = time.process_time()
        work()
        tries.append(time.process_time() - begin)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    running = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            running += event.nbytes()
            most = max(most, running)
    return most, min(tries)


def on_gpu(work: Callable[[], None]) -> tuple[int, float]:
    """The same of a GPU, from the second time on; the allocator's own records."""
    work()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    tries: list[float] = []
    while sum(tries) < 2.0 and len(tries) < 5:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        tries.append(time.perf_counter() - begin)
    return torch.cuda.max_memory_allocated() - before, min(tries)


def done(
    device: torch.device,
    seconds: list[float],
    mode: AbstractContextManager[Any],
    work: Callable[[], None],
    networks: Any = (),
) -> SimpleNamespace:
    """`plan.go_through` of what really happens. What it took is appended to `seconds`."""
    with mode:
        most, took = (on_cpu if device.type == "cpu" else on_gpu)(work)
    seconds.append(took)
    return SimpleNamespace(peak=most, flop=0)


def tried(recipe: Recipe, spec: EnvSpec, device: torch.device, build: Callable[[], Any]) -> list[dict[str, Any]]:
    """A row per stage: what was planned, and what it took."""
    with plan.META:
        policy = build()
    foreseen = plan.plan(recipe, spec, policy)
    seconds: list[float] = []
    numbers = {"META": device, "blank": partial(zeros, device=device), "go_through": partial(done, device, seconds)}
    with patch.multiple(plan, **numbers), patch.object(torch, "default_generator", generator_of(device)):
        with device:
            policy = build()
        taken = plan.plan(recipe, spec, policy)
    gflops = speed(device, usual(device))
    return [
        {
            "stage": before.stage,
            "planned_mb": round(before.activations / 1e6, 1),
            "taken_mb": round(after.activations / 1e6, 1),
            "planned_to_taken": round(before.activations / max(after.activations, 1), 2),
            "planned_gflop": round(before.flop / 1e9, 2),
            "planned_seconds": round(before.flop / gflops / 1e9, 4),
            "taken_seconds": round(second, 4),
            "taken_to_planned_seconds": round(second / (before.flop / gflops / 1e9), 2),
        }
        for before, after, second in zip(foreseen, taken, seconds, strict=True)
    ]


def published(name: str, spec: EnvSpec) -> Any:
    """One of `benchmarks/sizes.py`, with random weights."""
    name, half, _ = name.partition(HALF)
    policy = sizes.POLICIES[name](spec)
    if half:
        policy.config = replace(policy.config, precision="bfloat16")
    return policy.eval()


def usual(device: torch.device) -> torch.dtype:
    """What its speed is measured in."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@cache
def speed(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of matrix products."""
    return matmul_gflops(dtype, seconds=5.0, device=device)


def main(settings: Settings) -> int:
    recipes = {name: recipe_named(name) for name in settings.recipes}  # all names, before anything takes its time
    for name in settings.policies:
        named("published policy", name.partition(HALF)[0], sizes.POLICIES)
    use_one_thread()
    device = pick_device(settings.device)
    load = os.getloadavg()[0]  # what else runs
    machine = to_plain(this_machine())
    facts = {"commit": commit(), "machine": machine, "load": load, "gflops": round(speed(device, usual(device)), 1)}
    print(facts, flush=True)
    rows = []
    cases: list[tuple[str, Recipe, Callable[[EnvSpec], Any]]] = []
    for name, recipe in recipes.items():
        cases.append((name, recipe, partial(build_policy, recipe.policy)))
    for name in settings.policies:
        cases.append((name, sizes.recipe(), partial(published, name)))
    for name, recipe, build in cases:
        with closing(make_env(replace(recipe.env, workers=0))) as env:
            spec = env.spec
        for row in tried(recipe, spec, device, partial(build, spec)):
            print({"case": name, **row}, flush=True)
            rows.append({"case": name, **row})
        if settings.out is not None:
            write_json(settings.out, {**facts, "steps": rows})
    return 0


if __name__ == "__main__":
    sys.exit(program(Settings, main, "python benchmarks/plan.py"))
