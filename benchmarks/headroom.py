"""How far unlimited online GRPO in the simulator takes the base policy: the most that any dream could give.

    python benchmarks/headroom.py RUN_FOLDER [--iterations 60] [--out results/headroom-push.json]

Starts from a run's base policy and settings, but practises in the real environment, as often as it likes. Evaluated
on the same held-out initial states as the run. Resumable: progress is kept in RUN_FOLDER/headroom.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from wmpo.commands.opening import load_recipe, open_run
from wmpo.evaluate import evaluate
from wmpo.policies.minivla import MiniVLA
from wmpo.practice import practise
from wmpo.results import RunResult
from wmpo.training.log import RunLog


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a run that has its base policy")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--every", type=int, default=10, help="iterations between evaluations")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipe = load_recipe(options.folder)
    cfg = replace(recipe.grpo, iterations=options.iterations)
    place = options.folder / "headroom"
    result = RunResult.begin(recipe)
    with open_run(recipe, options.folder) as run, RunLog(place) as log:
        policy = MiniVLA.from_pretrained(options.folder / "policies" / "base").to(run.device)
        numbers = run.starts("evaluate", recipe.evaluate.episodes)

        def measure(name: str, who: Any) -> None:
            played = evaluate(run.env, who, numbers, temperature=0.0, seed=run.seed(8))
            result.policies[name] = played.result(temperature=0.0)
            log.say(f"{name}: real success {played.rate:.1%} of {len(numbers)}")

        def watch(iteration: int, who: Any) -> None:
            if iteration % options.every == 0:
                measure(f"online_{iteration}", who)

        measure("base", policy)
        practise(
            run.env,
            policy,
            run.starts("practise", cfg.starts, 1),
            cfg,
            seed=run.seed(7, 1),
            generator=torch.Generator(),
            folder=place,
            name="online",
            log=log,
            watch=watch,
        )
        measure("online_final", policy)
    result.read_logs(place)
    result.save(options.out or place / "result.json")


if __name__ == "__main__":
    main()
