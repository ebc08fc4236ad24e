"""One policy measured by wmpo and by vla-eval: `python -m experiments.harness EVALUATION AGGREGATE`.

EVALUATION is what `wmpo evaluate` has kept of LIBERO, AGGREGATE what `vla-eval run` has written of the same policy
behind `wmpo serve`; docs/serve.md has all commands, and .ci/libero_by_vla_eval runs them. Episodes are compared pair by
pair, since both begin with the benchmark's initial states in their order.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.store import add_line
from experiments.tables import table
from wmpo.cli.parse import program
from wmpo.envs.libero.settings import CONTROL, FPS
from wmpo.errors import UserError
from wmpo.io.files import read_json
from wmpo.io.plain import to_plain
from wmpo.report.results import PolicyResult, RunResult
from wmpo.report.statistics import mcnemar_exact, paired_difference, wilson_interval
from wmpo.report.words import percent, points

Plain = dict[str, Any]
REPEAT = CONTROL // FPS
NEEDED = ("label", "task", "ours", "theirs")  # what each line has


@dataclass(frozen=True)
class Options:
    """Adds a line to the results, and prints what both say."""

    evaluation: tyro.conf.Positional[Path]
    """A file of FOLDER/evaluations."""
    aggregate: tyro.conf.Positional[Path]
    """*_aggregate.json in vla-eval's output folder."""
    label: str
    """What was run, in a few words: vla-eval's LIBERO, MuJoCo 3.2.3. A line of this label is replaced."""
    policy: str = "base"
    """Its name in EVALUATION."""
    out: Path = Path("experiments/results/harness.jsonl")
    """Where results are added."""

    def execute(self) -> int:
        found = compared(RunResult.load(self.evaluation), self.policy, read_json(self.aggregate))
        name = {"label": self.label}
        add_line(self.out, name, found)
        print(harness_table([{**name, **found}]))
        return 0


def compared(run: RunResult, policy: str, theirs: Mapping[str, Any]) -> Plain:
    """Both outcomes per initial state, and what they were made with. Raises UserError where they can't be compared."""
    if policy not in run.policies:
        raise UserError(f"There is no policy {policy!r} in the evaluation, but only {', '.join(run.policies)}.")
    ours, [task, *more] = run.policies[policy], theirs["tasks"]
    suite, environment = theirs["config"]["params"]["suite"], run.recipe["env"]
    if more or suite != environment["suite"] or "+" in environment["task"]:
        raise UserError(f"Compare one task: the evaluation is of {environment['suite']} {environment['task']}.")
    broken = [each["failure_reason"] for each in task["episodes"] if each.get("failure_reason")]
    if broken:
        raise UserError(f"vla-eval could not run {len(broken)} of its episodes: {broken[0]}.")
    episodes = {each["episode_id"]: each for each in task["episodes"]}
    steps, limit = theirs["config"]["max_steps"], ours.time_limit * REPEAT
    if steps != limit:
        raise UserError(f"Episodes may last {limit} steps of the controller here and {steps} there: set max_steps.")
    if not episodes or sorted(episodes) != list(range(len(episodes))) or len(episodes) > len(ours.success):
        raise UserError(f"vla-eval's episodes aren't the first ones of the {len(ours.success)} evaluated here.")
    return {
        "task": run.task, "seed": run.seed, "commit": run.commit, "machine": to_plain(run.machine),
        "versions": run.versions, "vla-eval": theirs["harness_version"], "config": theirs["config"],
        "ours": [frame * REPEAT for frame in first(ours, len(episodes))],
        "theirs": [episodes[i]["steps"] if episodes[i]["metrics"]["success"] else 0 for i in range(len(episodes))],
    }  # fmt: skip


def first(result: PolicyResult, count: int) -> list[int]:
    """Frames of success in the first `count` episodes; 0 where there was none."""
    return [frame if hit else 0 for frame, hit in zip(result.finish_step, result.success, strict=True)][:count]


def harness_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """For docs/serve.md."""
    rows = []
    for line in lines:
        here, there = ([step > 0 for step in line[who]] for who in ("ours", "theirs"))
        n = len(here)
        pairs = list(zip(here, there, strict=True))
        both = [(mine, other) for mine, other in zip(line["ours"], line["theirs"], strict=True) if mine and other]
        later = sorted(other - mine for mine, other in both)
        rows.append([
            line["label"], line["task"], str(n),
            percent(wilson_interval(sum(here), n)), percent(wilson_interval(sum(there), n)),
            points(paired_difference(here, there)), f"{mcnemar_exact(here, there):.2f}",
            f"{sum(mine == other for mine, other in pairs)}", f"{pairs.count((True, False))}",
            f"{pairs.count((False, True))}", f"{later[len(later) // 2]:+d}" if later else "–",
        ])  # fmt: skip
    head = ("measured by", "task", "states", "success here, %", "there, %", "there minus here", "McNemar's p", "agree",
            "only here", "only there", "steps later there, median")  # fmt: skip
    return table(head, rows)


def main(args: Sequence[str] | None = None) -> int:
    """The exit status: bad input ends with one sentence and 2."""
    return program(Options, Options.execute, "python -m experiments.harness", args)


if __name__ == "__main__":
    sys.exit(main())
