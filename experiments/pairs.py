"""Cells beside each other: which are compared with which, and how sure one may be of what they gained.

A rate comes with its 95 % Wilson interval over initial states, all seeds together. A gain is a paired difference in
points with its 95 % interval over initial states; over tasks it is the mean of theirs, each weighing the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from experiments.cells import CellResult
from experiments.statistics import mean_over_seeds
from wmpo.report.results import BASE, PolicyResult
from wmpo.report.statistics import Interval, paired_difference, wilson_interval


@dataclass(frozen=True)
class Pair:
    """One task and seed: two policies on the same initial states."""

    task: str
    seed: int
    before: PolicyResult
    after: PolicyResult


Group = tuple[str, int | None]  # label and P


def groups(results: Iterable[CellResult]) -> dict[Group, list[CellResult]]:
    """Label and P -> cells, in order of P."""
    found: dict[Group, list[CellResult]] = {}
    for result in results:
        found.setdefault((result.label, result.budget), []).append(result)
    return dict(sorted(found.items(), key=lambda item: math.inf if item[0][1] is None else item[0][1]))


def over_base(results: Iterable[CellResult], name: str = "", suffix: str = "") -> list[Pair]:
    """The base policy beside the final one, or beside `name`; `suffix` chooses disrupted evaluations."""
    return [pair for r in results for pair in between([r], BASE + suffix, (name or r.final) + suffix)]


def between(results: Iterable[CellResult], first: str, second: str) -> list[Pair]:
    """Two policies of each cell, by their names, where it has both on the same initial states."""
    return [
        pair for result in results for pair in paired(result, result.policies.get(first), result.policies.get(second))
    ]


def rounds_of(results: Iterable[CellResult]) -> int:
    """How many rounds the longest of some cells has had: practice that does harm ends."""
    return max(len(result.turns) for result in results)


def after_rounds(results: Iterable[CellResult], first: int, second: int) -> list[Pair]:
    """The policies after so many rounds of each cell, 0 for the base; where practice ended before, the last one."""
    return [pair for result in results for pair in between([result], result.after(first), result.after(second))]


def contrasted(results: Iterable[CellResult], others: Iterable[CellResult], suffix: str = "") -> list[Pair]:
    """Final policies of `others` beside those of `results`, where both have met the same initial states; `suffix`
    chooses disrupted evaluations."""
    known = {(other.task, other.seed): other.policies.get(other.final + suffix) for other in others}
    return [
        pair
        for result in results
        for pair in paired(result, known.get((result.task, result.seed)), result.policies.get(result.final + suffix))
    ]


def paired(result: CellResult, before: PolicyResult | None, after: PolicyResult | None) -> list[Pair]:
    """The pair, where both policies were measured and on the same initial states; else none."""
    if before is None or after is None or before.initial_states != after.initial_states:
        return []
    return [Pair(result.task, result.seed, before, after)]


def by_task(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.task, []).append(pair)
    return found


def rate(pairs: Sequence[Pair]) -> Interval:
    hits = [hit for pair in pairs for hit in pair.after.success]
    return wilson_interval(sum(hits), len(hits))


def gain(pairs: Sequence[Pair]) -> Interval:
    """Mean over tasks of the paired difference; initial states are independent."""
    parts = []
    for own in by_task(pairs).values():
        before = [hit for pair in own for hit in pair.before.success]
        after = [hit for pair in own for hit in pair.after.success]
        parts.append(paired_difference(before, after))
    return mean_of_independent(parts)


def gain_within(pairs: Sequence[Pair], factor: float) -> Interval:
    """`gain`, where all that is done within so many horizons counts as success, in both policies."""
    return gain(
        [replace(pair, before=at_time(pair.before, factor), after=at_time(pair.after, factor)) for pair in pairs]
    )


def at_time(policy: PolicyResult, factor: float) -> PolicyResult:
    """The same outcomes, where all that is done within so many horizons counts as success."""
    return replace(policy, success=policy.within(factor * policy.horizon))


def not_better(pairs: Sequence[Pair]) -> list[str]:
    """The tasks on which the second policy is not better than the first beyond chance, over initial states."""
    return [task for task, own in by_task(pairs).items() if gain(own).low <= 0]


def forgotten(pairs: Iterable[Pair]) -> list[bool]:
    """Of the initial states that the policy before solves: whether the policy after fails."""
    both = (states for pair in pairs for states in zip(pair.before.success, pair.after.success, strict=True))
    return [not after for before, after in both if before]


def gain_over_seeds(pairs: Sequence[Pair]) -> Interval:
    """The same with Student's t over the seeds that all tasks have, each its mean over them: what another may bring."""
    parts = [[pair for pair in pairs if pair.seed == seed] for seed in sorted({pair.seed for pair in pairs})]
    whole = [gain(own).value for own in parts if set(by_task(own)) == set(by_task(pairs))]
    return mean_over_seeds(whole) if whole else Interval(gain(pairs).value, -math.inf, math.inf)


def mean_rate(pairs: Sequence[Pair]) -> Interval:
    """Mean over tasks."""
    return mean_of_independent([rate(own) for own in by_task(pairs).values()])


def mean_of_independent(parts: Sequence[Interval]) -> Interval:
    """Mean of independent estimates; the distances of their bounds add as variances do (MOVER, Zou and Donner 2008)."""
    value = sum(part.value for part in parts) / len(parts)
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Interval(value, value - below, value + above)


def tasks_of(results: Iterable[CellResult]) -> list[str]:
    return list(dict.fromkeys(result.task for result in results))


def places(results: Iterable[CellResult]) -> set[tuple[str, int]]:
    """Where something has been run: tasks and seeds."""
    return {(result.task, result.seed) for result in results}


def at(results: Iterable[CellResult], where: set[tuple[str, int]]) -> list[CellResult]:
    """Those of some tasks and seeds."""
    return [result for result in results if (result.task, result.seed) in where]


def first_of_each_seed(results: Iterable[CellResult]) -> list[CellResult]:
    """One cell of each task and seed: they share the base policy, but for the machine that it was trained on."""
    found: dict[tuple[str, int], CellResult] = {}
    for result in results:
        found.setdefault((result.task, result.seed), result)
    return [*found.values()]


def kinds_of(results: Iterable[CellResult]) -> list[str]:
    """Which disruptions were measured."""
    found = (policy.disruption for result in results for policy in result.policies.values())
    return [kind for kind in dict.fromkeys(found) if kind != "none"]


def mean_of(values: Iterable[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else math.nan
