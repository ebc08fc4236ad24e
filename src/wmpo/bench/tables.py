"""The sections of an experiment's page, each from the results of its cells to Markdown. Nothing is typed by hand.

A rate comes with its 95 % Wilson interval over initial states, all seeds together. A gain is a paired difference in
points with its 95 % interval over initial states; over tasks it is the mean of theirs, each weighing the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from wmpo.bench.cells import CellResult
from wmpo.bench.drawing import drawn
from wmpo.objectives.statistics import Interval, mean_over_seeds, paired_difference, wilson_interval
from wmpo.report.charts import Line, line_chart
from wmpo.report.words import number, percent, points
from wmpo.results import BASE, PolicyResult
from wmpo.training.log import clock

Plots = dict[str, str]  # file name -> SVG
Section = Callable[[Sequence[CellResult], str, Plots], str]
"""(results, name of the experiment, plots to add to) -> Markdown; empty where nothing was measured."""
DASH = "–"


@dataclass(frozen=True)
class Pair:
    """One task and seed: two policies on the same initial states."""

    task: str
    seed: int
    before: PolicyResult
    after: PolicyResult


Group = tuple[str, int]  # label and P


def groups(results: Iterable[CellResult]) -> dict[Group, list[CellResult]]:
    """Label and P -> cells, in order of P."""
    found: dict[Group, list[CellResult]] = {}
    for result in results:
        found.setdefault((result.label, result.budget), []).append(result)
    return dict(sorted(found.items(), key=lambda item: item[0][1] or math.inf))


def over_base(results: Iterable[CellResult], name: str = "", suffix: str = "") -> list[Pair]:
    """The base policy beside the final one, or beside `name`; `suffix` chooses disrupted evaluations."""
    pairs = []
    for result in results:
        before = result.policies.get(BASE + suffix)
        after = result.policies.get((name or result.final) + suffix)
        if before is not None and after is not None and before.starts == after.starts:
            pairs.append(Pair(result.task, result.seed, before, after))
    return pairs


def contrasted(results: Iterable[CellResult], others: Iterable[CellResult]) -> list[Pair]:
    """Final policies of `others` beside those of `results`, where both have met the same initial states."""
    known = {(other.task, other.seed): other.policies[other.final] for other in others}
    pairs = []
    for result in results:
        before, after = known.get((result.task, result.seed)), result.policies[result.final]
        if before is not None and before.starts == after.starts:
            pairs.append(Pair(result.task, result.seed, before, after))
    return pairs


def by_task(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.task, []).append(pair)
    return found


def rate(pairs: Sequence[Pair]) -> Interval:
    hits = [hit for pair in pairs for hit in pair.after.success]
    return wilson_interval(sum(hits), len(hits))


def gain(pairs: Sequence[Pair]) -> Interval:
    """Mean over tasks of the paired difference; initial states are independent, so variances add."""
    parts = []
    for own in by_task(pairs).values():
        before = [hit for pair in own for hit in pair.before.success]
        after = [hit for pair in own for hit in pair.after.success]
        parts.append(paired_difference(before, after))
    value = sum(part.value for part in parts) / len(parts)
    half = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Interval(value, value - half, value + half)


def gain_over_seeds(pairs: Sequence[Pair]) -> Interval:
    """The same with Student's t over seeds, each the mean over its tasks: what another seed may bring."""
    seeds = sorted({pair.seed for pair in pairs})
    return mean_over_seeds([gain([pair for pair in pairs if pair.seed == seed]).value for seed in seeds])


def mean_rate(pairs: Sequence[Pair]) -> Interval:
    """Mean over tasks; the distances of the bounds of independent rates add as variances do (MOVER, 2008)."""
    rates = [rate(own) for own in by_task(pairs).values()]
    value = sum(part.value for part in rates) / len(rates)
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in rates)) / len(rates)
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in rates)) / len(rates)
    return Interval(value, value - below, value + above)


def seeds_told(interval: Interval) -> str:
    return points(interval) if math.isfinite(interval.low) else DASH


def budget_told(budget: int) -> str:
    return str(budget) if budget else "no limit"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def tasks_of(results: Iterable[CellResult]) -> list[str]:
    return list(dict.fromkeys(result.task for result in results))


# Sections


def success(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Every method on every task, and its gain over the base; their means where there are several tasks."""
    tasks = tasks_of(results)
    several = len(tasks) > 1
    base = by_task([Pair(r.task, r.seed, r.policies[BASE], r.policies[BASE]) for r in first_of_each_seed(results)])
    cells = [percent(rate(base[task])) for task in tasks]
    mean = [percent(mean_rate([pair for own in base.values() for pair in own])), DASH] if several else []
    rows = [["Base", "0", *cells, *mean, DASH]]
    for (label, budget), own in groups(results).items():
        pairs = over_base(own)
        mine = by_task(pairs)
        cells = [f"{percent(rate(mine[task]))}, {points(gain(mine[task]))}" if task in mine else DASH for task in tasks]
        whole = set(mine) == set(tasks)  # a mean over other tasks could not be compared
        means = [percent(mean_rate(pairs)), points(gain(pairs))] if whole else [DASH, DASH]
        last = seeds_told(gain_over_seeds(pairs)) if whole else DASH
        rows.append([label, budget_told(budget), *cells, *(means if several else []), last])
    means = ["mean %", "mean gain"] if several else []
    head = ("method", "P", *(f"{task}: %, gain" for task in tasks), *means, "gain over seeds")
    return f"## Success\n\n{table(head, rows)}"


def first_of_each_seed(results: Iterable[CellResult]) -> list[CellResult]:
    """One cell of each task and seed: they share the base policy."""
    return list({(result.task, result.seed): result for result in results}.values())


def against(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """The first arm minus each other at the same P."""
    found = groups(results)
    ours = results[0].label
    rows = []
    for (label, budget), others in found.items():
        pairs = contrasted(found.get((ours, budget), []), others)
        if label != ours and pairs:
            rows.append([label, budget_told(budget), *difference_told(pairs)])
    if not rows:
        return ""
    return f"## {ours} beside each\n\n" + table(
        ("beside", "P", "tasks", f"{ours} minus it, mean over tasks", "better beyond chance"), rows
    )


def difference_told(pairs: Sequence[Pair]) -> list[str]:
    """On which tasks, the mean difference over them, and whether it is better beyond chance."""
    difference = gain(pairs)
    sure = "yes" if difference.low > 0 else "no, it is worse" if difference.high < 0 else "no"
    return [", ".join(by_task(pairs)), points(difference), sure]


def seeds(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """The mean gain of each seed by itself, where it has been run on all tasks."""
    numbers = sorted({result.seed for result in results})
    tasks = set(tasks_of(results))
    rows = []
    for (label, budget), own in groups(results).items():
        parts = [over_base([result for result in own if result.seed == seed]) for seed in numbers]
        gains = [points(gain(pairs)) if set(by_task(pairs)) == tasks else DASH for pairs in parts]
        if set(gains) != {DASH}:
            rows.append([label, budget_told(budget), *gains])
    head = ("method", "P", *(f"seed {seed}" for seed in numbers))
    return f"## Seed by seed\n\nMean gain over tasks.\n\n{table(head, rows)}" if rows else ""


def growth(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """What a method makes of more real rollouts: each P minus the one before."""
    found = groups(results)
    rows = []
    for label in dict.fromkeys(label for label, _ in found):
        budgets = [budget for its, budget in found if its == label and budget]
        for less, more in pairwise(budgets):
            pairs = contrasted(found[label, more], found[label, less])
            if pairs:
                rows.append([label, f"{less} to {more}", *difference_told(pairs)])
    head = ("method", "P", "tasks", "gain, mean over tasks", "better beyond chance")
    return f"## More rollouts\n\n{table(head, rows)}" if rows else ""


def cost(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """What a method took, per cell."""
    rows = []
    for (label, budget), own in groups(results).items():

        def mean(purpose: str, own: list[CellResult] = own) -> str:
            values = [r.interactions[purpose].episodes for r in own if purpose in r.interactions]
            return f"{sum(values) / len(values):.0f}" if values else DASH

        seconds = [sum(stage.seconds for stage in result.stages.values()) for result in own]
        took = clock(sum(seconds) / len(seconds))
        rows.append([label, budget_told(budget), mean("demonstrations"), mean("rollouts"), took])
    head = ("method", "P", "demonstrations tried", "real rollouts used", "time, shared stages included")
    return f"## Cost of a cell\n\n{table(head, rows)}"


def budget_plot(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Mean success over tasks against P, which is 0 for the base."""
    tasks = set(tasks_of(results))
    start = over_base(first_of_each_seed(results), BASE)
    found: dict[str, list[tuple[float, Interval]]] = {}
    for (label, budget), own in groups(results).items():
        pairs = over_base(own)
        if budget and {pair.task for pair in pairs} == tasks:
            found.setdefault(label, [(0.0, mean_rate(start))]).append((float(budget), mean_rate(pairs)))
    if not found:
        return ""
    lines = []
    for i, (label, values) in enumerate(found.items()):
        centres = [(budget, interval.value) for budget, interval in values]
        lines.append(Line(label, centres, f"arm{i}"))
        lines.append(Line(label, centres, f"arm{i}", whiskers=[(v.low, v.high) for _, v in values]))
    chart = line_chart(lines, x_label="real rollouts P", y_label="real success, mean over tasks")
    plots[f"{name}-budget.svg"] = drawn(chart, list(found))
    return f"## Success against P\n\n![success against P]({name}-budget.svg)"


def disruptions(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Gains over the base under each disruption, mean over tasks."""
    kinds = list(dict.fromkeys(p.disruption for r in results for p in r.policies.values() if p.disruption != "none"))
    rows = []
    base = [[Pair(r.task, r.seed, r.policies[n], r.policies[n]) for r in first_of_each_seed(results)
             if (n := f"{BASE} {kind}") in r.policies] for kind in kinds]  # fmt: skip
    rows.append(["Base", "0", *(percent(mean_rate(pairs)) for pairs in base)])
    for (label, budget), own in groups(results).items():
        found = [over_base(own, suffix=f" {kind}") for kind in kinds]
        cells = [f"{percent(mean_rate(pairs))}, {points(gain(pairs))}" if pairs else DASH for pairs in found]
        rows.append([label, budget_told(budget), *cells])
    if not kinds:
        return ""
    return f"## Disruptions\n\n{table(('method', 'P', *(f'{kind}: %, gain' for kind in kinds)), rows)}"


def rounds(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Success after each round, what the round gained, and what has been lost since the base; one task at a time."""
    single = [result for result in results if not result.tasks]
    tasks = tasks_of(single) if len(tasks_of(single)) > 1 else []
    rows = []
    for (label, budget), own in groups(single).items():
        turns = own[0].turns
        for turn, (before, policy) in enumerate(pairwise([BASE, *turns]), start=1):
            pairs = over_base(own, policy)
            steps = [Pair(r.task, r.seed, r.policies[before], r.policies[policy]) for r in own]
            solved = [(b, a) for p in pairs for b, a in zip(p.before.success, p.after.success, strict=True) if b]
            lost = f"{100 * sum(not a for _, a in solved) / len(solved):.1f}" if solved else DASH
            mine = by_task(pairs)
            cells = [number(100 * rate(mine[task]).value) if task in mine else DASH for task in tasks]
            rows.append([label, str(budget * turn // len(turns)), str(turn), *cells, percent(mean_rate(pairs)),
                         points(gain(steps)), points(gain(pairs)), lost])  # fmt: skip
    if not rows:
        return ""
    heads = (f"{task} %" for task in tasks)
    head = ("method", "P so far", "round", *heads, "mean %", "gain of the round", "gain over base", "forgotten, %")
    return (
        f"## Round by round\n\n{table(head, rows)}\n\nMeans are over the tasks that a method has been run on. "
        "Forgotten: of the initial states that the base policy solves, the share that the policy fails."
    )


def old_tasks(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Where one policy knows several tasks and only the first was tried and practised: what became of each."""
    rows = []
    for (label, _), own in groups(result for result in results if result.tasks).items():
        for told in own[0].task.split("+"):
            parts = [result.of_task(told) for result in own]
            cells = [percent(mean_rate(over_base(parts, BASE)))]
            for turn in own[0].turns:
                pairs = over_base(parts, turn)
                cells.append(f"{percent(mean_rate(pairs))}, {points(gain(pairs))}")
            practised = "yes" if told == own[0].task.split("+")[0] else "no"
            rows.append([label, told, practised, *cells])
    if not rows:
        return ""
    head = ("method", "task", "practised", "base %", *(f"round {i}: %, gain" for i in range(1, len(rows[0]) - 3)))
    return f"## Old tasks\n\n{table(head, rows)}"


def dream_quality(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """How good the dreams were that a policy practised in."""
    rows = []
    for (label, budget), own in groups(results).items():
        dreamt = [r for r in own if r.fidelity and r.agreement is not None and r.final in r.gaps]
        if dreamt:
            values = [
                mean_of(r.fidelity_at_the_end.psnr for r in dreamt),
                100 * mean_of(r.agreement.accuracy for r in dreamt if r.agreement),
                mean_of(r.agreement.f1 for r in dreamt if r.agreement),
                100 * mean_of(r.gaps[r.final].imagined - r.gaps[r.final].real for r in dreamt),
            ]
            rows.append([label, budget_told(budget), *(number(value, 2) for value in values)])
    head = ("arm", "P", "PSNR at the end, dB", "verdicts right, %", "F1 of verdicts", "imagined minus real, points")
    return f"## The dreams\n\n{table(head, rows)}" if rows else ""


def mean_of(values: Iterable[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else math.nan


def attempts(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Second attempts, and how long successes take, beside the base."""
    rows = [attempts_row("Base", "0", first_of_each_seed(results), lambda result: BASE)]
    for (label, budget), own in groups(results).items():
        rows.append(attempts_row(label, budget_told(budget), own, lambda result: result.final))
    head = ("method", "P", "first attempt failed", "of these succeeded, %", "attempts per episode",
            "length of successes, beside the base's")  # fmt: skip
    return f"## Attempts\n\n{table(head, rows)}"


def attempts_row(
    label: str, budget: str, results: Sequence[CellResult], name: Callable[[CellResult], str]
) -> list[str]:
    known = [result for result in results if name(result) in result.attempts]
    tries = [count for result in known for count in result.attempts[name(result)]]
    hits = [hit for result in known for hit in result.policies[name(result)].success]
    failed_first = [hit for count, hit in zip(tries, hits, strict=True) if count > 1 or (count == 1 and not hit)]
    share = percent(wilson_interval(sum(failed_first), len(failed_first))) if failed_first else DASH
    ratio = mean_of(r.policies[name(r)].steps_to_success / r.policies[BASE].steps_to_success for r in known)
    length = f"{100 * ratio:.1f} %" if ratio == ratio else DASH
    return [label, budget, str(len(failed_first)), share, number(mean_of(map(float, tries)), 2), length]


def summary_of(missing: Mapping[str, int], there: int) -> str:
    """How much of the grid the page rests on."""
    total = there + sum(missing.values())
    text = f"{there} of {total} cells have been run."
    if missing:
        text += " Missing: " + ", ".join(f"{label} ({count})" for label, count in missing.items()) + "."
    return text
