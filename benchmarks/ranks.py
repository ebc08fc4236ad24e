"""How much faster several processes are than one: a training and a practice of the recipe smoke, made a little longer.

    python benchmarks/ranks.py [--processes 2] [--repeats 3] [--out benchmarks/results/ranks.json]

Counts the time from the first step to the last, not that for starting. One process and several are measured in turns;
each process has one core. The aim for two is 1.9 times the speed of one. Where other work runs beside it the figure is
noisy; processor time, that of the busiest process, then tells what it would be on free cores, but for the waiting.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from wmpo.data.clips import RewardBatch
from wmpo.data.normalizer import Normalizer
from wmpo.grpo import practise
from wmpo.imagination import ImaginedEnv
from wmpo.io.files import write_json
from wmpo.io.plain import to_plain
from wmpo.io.provenance import commit, this_machine
from wmpo.losses.verdicts import matching_threshold
from wmpo.policies import build_policy
from wmpo.protocols import RewardModel
from wmpo.recipes import RECIPES
from wmpo.rewards import build_reward_model
from wmpo.rollout import rollout
from wmpo.training import ranks
from wmpo.training.fit import fit
from wmpo.training.log import RunLog
from wmpo.training.parallel import use_one_thread
from wmpo.types import EnvSpec, Observation
from wmpo.world_models import build_world_model

AIM = 1.9  # for two processes
EPISODES, SIZE, DIMENSIONS = 16, 64, 4


def first_frames() -> Observation:
    dice = torch.Generator().manual_seed(0)
    images = torch.randint(256, (EPISODES, 3, SIZE, SIZE), generator=dice, dtype=torch.uint8)
    return Observation({"front": images}, torch.rand(EPISODES, DIMENSIONS, generator=dice), ("push it",) * EPISODES)


@contextmanager
def measuring(name: str, found: dict[str, tuple[float, float]]) -> Iterator[None]:
    """Add seconds, and processor seconds of the busiest process, to `found`."""
    ranks.agree(True)  # all are ready
    began, busy = time.monotonic(), time.process_time()
    yield
    busy = max(seconds for (seconds,) in ranks.gather((time.process_time() - busy,)))
    found[name] = time.monotonic() - began, busy


def work() -> dict[str, tuple[float, float]]:
    """(seconds, processor seconds) that a training and a practice take, on noise."""
    use_one_thread()
    smoke = RECIPES["smoke"]
    spec = EnvSpec({"front": (SIZE, SIZE)}, DIMENSIONS, DIMENSIONS, 32, 8)
    torch.manual_seed(0)
    policy = build_policy(smoke.policy, spec)
    world_model = build_world_model(smoke.world_model, spec, smoke.policy.chunk)
    judge = build_reward_model(smoke.reward, spec)
    normalizer = Normalizer.fit(*(torch.rand(64, DIMENSIONS).numpy() for _ in range(2)))
    policy.set_normalizer(normalizer)
    world_model.set_normalizer(normalizer)
    batch = RewardBatch(
        torch.randint(256, (64, smoke.reward.clip_length, 3, SIZE, SIZE), dtype=torch.uint8),
        (torch.arange(64) % 2).float(),
        ("push it",) * 64,
    )
    generator, numbers = torch.Generator(), list(range(EPISODES))
    found: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = ranks.first(lambda: Path(name))
        with RunLog(folder, quiet=True) as log:
            few, many = (replace(smoke.reward.fit, steps=steps) for steps in (1, 60))
            fit(judge, lambda step: batch, few, folder=folder, name="few", log=log)  # torch imports much at first
            with measuring("training", found):
                fit(judge, lambda step: batch, many, folder=folder, name="many", log=log)

            def dream(judge: RewardModel) -> ImaginedEnv:
                return ImaginedEnv(
                    world_model, judge, spec, first_frames(), numbers, generator=generator, stop=False, stride=2
                )

            some = dream(judge)
            rollout(some, policy, numbers, temperature=0.5, generator=generator.manual_seed(0))
            judge = judge.with_threshold(matching_threshold(some.best_scores(), 0.5))
            cfg = replace(
                smoke.grpo, iterations=2, groups=8, group_size=8, min_group_success=0.0, max_group_success=1.0
            )
            with measuring("practice", found):
                practise(
                    dream(judge), policy, numbers, cfg, seed=0, generator=generator, folder=folder, name="practice",
                    log=log,
                )  # fmt: skip
        ranks.agree(True)  # nobody removes the folder before
    return found


def measured(processes: int) -> dict[str, tuple[float, float]]:
    """`work` by so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] * (processes > 1)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, __file__, "--worker"], env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, tuple[float, float]] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where to write what was measured, as JSON")
    parser.add_argument("--worker", action="store_true", help="be one of the processes")
    options = parser.parse_args()
    for name in ("processes", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if options.worker:
        ranks.start()
        found = work()
        if ranks.rank() == 0:
            print(json.dumps(found))
        ranks.end()
        return
    facts = {"commit": commit(), "machine": to_plain(this_machine()), "load": os.getloadavg()[0]}
    turns = [(measured(1), measured(options.processes)) for _ in range(options.repeats)]
    rows = []
    for name in turns[0][0]:
        for kind, what in enumerate(("seconds", "processor seconds of the busiest")):
            one, several = (min(turn[place][name][kind] for turn in turns) for place in range(2))
            print(
                f"{name}, {what}: {one:.1f} with one process, {several:.1f} with {options.processes}: "
                f"{one / several:.2f} times (aim for two: {AIM})"
            )
            row = {"one_process": round(one, 2), "several": round(several, 2), "ratio": round(one / several, 2)}
            rows.append({"work": name, "counted": what, **row, "aim_for_two": AIM})
    if options.out is not None:
        write_json(options.out, {**facts, "processes": options.processes, "turns": len(turns), "ranks": rows})


if __name__ == "__main__":
    main()
