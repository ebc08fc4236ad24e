"""What the evidence aimed at, beside what was measured: reached or missed, by rules and from the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from experiments.cells import CellResult
from experiments.pairs import (
    Group,
    Pair,
    at,
    by_task,
    contrasted,
    gain,
    gain_over_seeds,
    gain_within,
    groups,
    mean_of,
    over_base,
    places,
    tasks_of,
)
from experiments.statistics import difference_of_shares, pearson
from experiments.tables import LATER, Plots, format_budget, format_places, format_seeds, table
from experiments.trust import Exploited, gaps_of, known_in_both, task_by_task, worlds
from wmpo.report.results import BASE, PolicyResult
from wmpo.report.statistics import wilson_interval
from wmpo.report.words import number, points

Row = tuple[str, str, str]
"""What is aimed at, what was measured, whether that reaches it."""

CORRELATED, POLICIES, GAP = 0.9, 12, 5.0  # imagined and real success, of how many policies; points
F1, IMAGINED_F1, THRESHOLDS = 0.95, 0.90, (0.05, 0.95)  # of verdicts; within which thresholds are to lie
AUROC = 0.8
TASKS = 2  # on which more must be recovered from


@dataclass(frozen=True)
class Gained:
    """What is asked of the gain at some P."""

    least: float
    """Points: the paper's."""
    aim: float
    above: tuple[str, ...]
    """Methods with as many rollouts that it is to be above."""


GAINS = {
    128: Gained(13.5, 20.0, ("Online GRPO", "DPO", "Filtered BC", "Filtered BC, lr 0.0003")),
    1280: Gained(24.0, 35.0, ("Online GRPO", "DPO", "Filtered BC")),
}


def aims(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """The first arm against all that was asked of it."""
    rows = [*gains(results), *recovered(results), *trusted(results)]
    head = ("aim", "measured", "reached")
    missed = "[What was tried](../../docs/evidence.md) where one is missed, and what may stand in the way."
    return f"## Aims\n\n{table(head, rows)}\n\n{missed}" if rows else ""


def said(reached: bool) -> str:
    return "yes" if reached else "no"


def gains(results: Sequence[CellResult]) -> Iterator[Row]:
    """Enough, more than others gain, more the more rollouts there are, and not for want of time alone."""
    found, ours = groups(results), results[0].label
    for budget, asked in GAINS.items():
        own = found.get((ours, budget), [])
        pairs = over_base(own)
        if not pairs:
            continue
        gained, tasks, tried = gain(pairs), tasks_of(results), by_task(pairs)
        some = "" if len(tried) == len(tasks) else f", on {len(tried)} of {len(tasks)} tasks"
        enough = 100 * gained.value >= asked.least
        further = f"; {asked.aim:g}: {said(100 * gained.value >= asked.aim)}" if enough else ""
        yield (
            f"P = {budget}: {asked.least:g} points over the base, or even {asked.aim:g}",
            f"{points(gained)} on {format_places(pairs)}",
            f"{said(enough)}{further}{some}",
        )
        later = gain_within(pairs, LATER)
        yield f"P = {budget}: a gain within {LATER:g} horizons, too", points(later), f"{said(later.low > 0)}{some}"
        others: list[tuple[str, Group]] = [(label, (label, budget)) for label in asked.above]
        for label, group in [*others, *fewer(found, ours, budget)]:
            if more := contrasted(own, found.get(group, [])):
                yield f"P = {budget}: above {label}, beyond chance", *difference(more)


def fewer(found: dict[Group, list[CellResult]], label: str, budget: int) -> list[tuple[str, Group]]:
    """The same method with the next smaller P."""
    known = [P for its, P in found if its == label and P is not None]
    return [(f"P = {less}", (label, less)) for less, more in pairwise(known) if more == budget]


def difference(pairs: Sequence[Pair]) -> tuple[str, str]:
    states, seeds = gain(pairs), gain_over_seeds(pairs)
    several = math.isfinite(seeds.low)
    over_seeds = f"; over seeds {format_seeds(seeds)}" if several else ""
    doubt = "over states, not over seeds" if several else "over states; too few seeds"
    sure = "no" if states.low <= 0 else "yes" if several and seeds.low > 0 else doubt
    return f"{points(states)}{over_seeds} on {format_places(pairs)}", sure


def recovered(results: Sequence[CellResult]) -> Iterator[Row]:
    """Of the episodes that went wrong at first, the first arm's share that succeeds, at the smallest P."""
    found, ours = groups(results), results[0].label
    budgets = [P for label, P in found if label == ours and P]
    if not budgets:
        return
    own = found[ours, min(budgets)]
    for other in ("Base", "DPO"):
        parts, better = [], 0
        for task in tasks_of(own):
            mine = [result for result in own if result.task == task]
            if other == "Base":
                its = [result.policies[BASE] for result in mine]
            else:
                its = [r.policies[r.final] for r in at(found.get((other, min(budgets)), []), places(mine))]
            shares = recovering(its), recovering([r.policies[r.final] for r in mine])
            if all(shares):
                more = difference_of_shares(*(wilson_interval(sum(hits), len(hits)) for hits in shares))
                parts.append(f"{task} {points(more)}")
                better += more.low > 0
        if parts:
            asked = (
                f"P = {min(budgets)}: success after a failed or disturbed first attempt more often than {other}, "
                f"beyond chance, on {TASKS} tasks"
            )
            yield asked, "; ".join(parts), said(better >= TASKS)


def recovering(policies: Sequence[PolicyResult]) -> list[int]:
    """0 or 1 for each episode that went wrong at first."""
    return [hit for policy in policies for hit in policy.recoveries()]


def trusted(results: Sequence[CellResult]) -> Iterator[Row]:
    """Whether the dream tells success as reality does, and the verdicts are right."""
    gaps = gaps_of(results)
    tasks = list(dict.fromkeys(task for _, task, _ in gaps))
    if tasks:
        of_task = {task: [gap for _, its, gap in gaps if its == task] for task in tasks}
        found = {task: pearson(*worlds(own)).value for task, own in of_task.items()}
        yield (
            f"Imagined and real success of {POLICIES} policies or more: Pearson {CORRELATED:g} within each task",
            "; ".join(f"{task} {number(found[task], 2)} ({len(own)})" for task, own in of_task.items()),
            said(all(found[task] >= CORRELATED and len(own) >= POLICIES for task, own in of_task.items())),
        )
    for (label, budget), cells in groups(known_in_both(results)).items():
        if label == results[0].label and budget:
            apart = {task: 100 * Exploited.of([r for r in cells if r.task == task]).after for task in tasks_of(cells)}
            asked = f"P = {budget}: imagined minus real success at the end {GAP:g} points at most, either way"
            told = "; ".join(f"{task} {number(gap)}" for task, gap in apart.items())
            yield asked, told, said(all(abs(gap) <= GAP for gap in apart.values()))
    for (label, budget), cells in groups(results).items():
        judged = [result for result in cells if result.reward is not None and result.agreement is not None]
        if label == results[0].label and budget and judged:
            yield from judgement(format_budget(budget), judged)


def judgement(budget: str, results: Sequence[CellResult]) -> Iterator[Row]:
    """Means over cells that have been judged, of each task and of all; that of all is asked for."""
    thresholds = [result.reward.threshold for result in results if result.reward]
    low, high = THRESHOLDS
    parts = task_by_task(results)
    real = {its: mean_of(r.reward.f1 for r in own if r.reward) for its, own in parts}
    imagined = {its: mean_of(r.agreement.f1 for r in own if r.agreement) for its, own in parts}
    doubted = {its: mean_of(r.doubt.auroc for r in own if r.doubt) for its, own in parts}
    yield f"P = {budget}: F1 of verdicts on real video {F1:g}", *least(real, F1)
    yield f"P = {budget}: F1 in the dream {IMAGINED_F1:g}", *least(imagined, IMAGINED_F1)
    yield (
        f"P = {budget}: thresholds of the reward model within {low:g} and {high:g}",
        f"{number(min(thresholds), 2)} to {number(max(thresholds), 2)}",
        said(low <= min(thresholds) and max(thresholds) <= high),
    )
    if not math.isnan(list(doubted.values())[-1]):
        asked = f"P = {budget}: disagreement of two dreams predicts wrong verdicts, AUROC {AUROC:g}"
        yield asked, *least(doubted, AUROC)


def least(means: Mapping[str, float], asked: float) -> tuple[str, str]:
    """Task -> its mean, that of all last: which is to be so much at least, and on which tasks it is."""
    *tasks, everywhere = means.items()
    met = [task for task, mean in tasks if mean >= asked]
    some = f", but on {', '.join(met)}" if met and everywhere[1] < asked else ""
    return "; ".join(f"{its} {number(mean, 3)}" for its, mean in means.items()), said(everywhere[1] >= asked) + some
