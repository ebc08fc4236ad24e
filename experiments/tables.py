"""The sections of an experiment's page, each from the results of its cells to Markdown. Nothing is typed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from experiments.cells import CellResult
from experiments.drawing import drawn
from experiments.pairs import (
    Pair,
    after_rounds,
    at,
    by_task,
    contrasted,
    first_of_each_seed,
    forgotten,
    gain,
    gain_over_seeds,
    gain_within,
    groups,
    kinds_of,
    mean_of,
    mean_rate,
    over_base,
    places,
    rate,
    rounds_of,
    tasks_of,
)
from wmpo.report.charts import Line, line_plot
from wmpo.report.results import BASE, PolicyResult, times_of
from wmpo.report.statistics import Interval, wilson_interval
from wmpo.report.tables import Table
from wmpo.report.words import number, percent, points
from wmpo.training.log import clock

Plots = dict[str, str]  # file name -> SVG
Section = Callable[[Sequence[CellResult], str, Plots], str]
"""(results, name of the experiment, plots to add to) -> Markdown; empty where nothing was measured."""
DASH = "–"
SURE = "better beyond chance: over states; over seeds"
LATER = 1.5  # horizons within which a gain must hold, to be one of skill
WITHIN = f"within {LATER:g} horizons"


def format_seeds(interval: Interval) -> str:
    return points(interval) if math.isfinite(interval.low) else DASH


def format_budget(budget: int | None) -> str:
    return "no limit" if budget is None else str(budget)


def seeds_of(pairs: Sequence[Pair]) -> str:
    """0, 1, 2; task by task where they differ."""
    found = {task: ", ".join(map(str, sorted({pair.seed for pair in own}))) for task, own in by_task(pairs).items()}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{task} {seeds}" for task, seeds in found.items())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return Table(head, rows).markdown()


# Sections


def success(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Every method on every task, and its gain over the base; their means where there are several tasks."""
    return f"## Success\n\n{rates(results)}"


def rates(results: Sequence[CellResult], suffix: str = "") -> str:
    """The table of `success`; `suffix` chooses disrupted evaluations."""
    tasks = tasks_of(results)
    found = {group: over_base(own, suffix=suffix) for group, own in groups(results).items()}
    varied = any(math.isfinite(gain_over_seeds(pairs).low) for pairs in found.values() if pairs)

    def row(label: str, budget: str, pairs: list[Pair], show: Callable[[list[Pair]], str]) -> list[str]:
        mine = by_task(pairs)
        whole = set(mine) == set(tasks)  # a mean over other tasks could not be compared
        cells = [show(mine[task]) if task in mine else DASH for task in tasks]
        cells += [show(pairs) if whole else DASH] * (len(tasks) > 1)
        cells += [format_seeds(gain_over_seeds(pairs)) if whole and label != "Base" else DASH] * varied
        return [label, budget, seeds_of(pairs), *cells]

    base = over_base(first_of_each_seed(results), BASE, suffix)
    rows = [row("Base", "0", base, lambda pairs: percent(mean_rate(pairs)))]
    rows += [
        row(label, format_budget(budget), pairs, rate_and_gain) for (label, budget), pairs in found.items() if pairs
    ]
    head = ["method", "P", "seeds", *(f"{task}: %, gain" for task in tasks)]
    head += ["mean: %, gain"] * (len(tasks) > 1) + ["gain over seeds"] * varied
    return table(head, rows)


def rate_and_gain(pairs: Sequence[Pair]) -> str:
    return f"{percent(mean_rate(pairs))}, {points(gain(pairs))}"


def against(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """The first arm minus each other at the same P."""
    differences = beside_each(results)
    return f"## {results[0].label} beside each\n\n{differences}" if differences else ""


def beside_each(results: Sequence[CellResult], suffix: str = "") -> str:
    """The table of `against`; `suffix` chooses disrupted evaluations."""
    found = groups(results)
    ours = results[0].label
    rows = []
    for (label, budget), others in found.items():
        pairs = contrasted(found.get((ours, budget), []), others, suffix)
        if label != ours and pairs:
            rows.append([label, format_budget(budget), *difference_cells(pairs)])
    head = ("beside", "P", "seeds", "tasks", f"{ours} minus it, mean over tasks", "over seeds", SURE, WITHIN)
    return table(head, rows) if rows else ""


def difference_cells(pairs: Sequence[Pair]) -> list[str]:
    """Where it was measured, the difference on each task and their mean, and whether it is better beyond chance."""
    states, seeds = gain(pairs), gain_over_seeds(pairs)
    sure = f"{verdict(states)}; {verdict(seeds) if math.isfinite(seeds.low) else DASH}"
    parts = by_task(pairs)
    each = "; ".join(f"{task} {points(gain(own))}" for task, own in parts.items()) if len(parts) > 1 else min(parts)
    timed = LATER in times_of(policy for pair in pairs for policy in (pair.before, pair.after))
    later = points(gain_within(pairs, LATER)) if timed else DASH
    return [seeds_of(pairs), each, points(states), format_seeds(seeds), sure, later]


def format_places(pairs: Sequence[Pair]) -> str:
    """place, stack (seeds 0, 1)."""
    seeds = seeds_of(pairs)
    return f"{', '.join(by_task(pairs))} (seed{'s' * (not seeds.isdigit())} {seeds})"


def verdict(difference: Interval) -> str:
    return "yes" if difference.low > 0 else "no, it is worse" if difference.high < 0 else "no"


def seeds(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """The mean gain of each seed by itself, where it has been run on all tasks."""
    numbers = sorted({result.seed for result in results})
    tasks = set(tasks_of(results))
    rows = []
    for (label, budget), own in groups(results).items():
        parts = [over_base([result for result in own if result.seed == seed]) for seed in numbers]
        gains = [points(gain(pairs)) if set(by_task(pairs)) == tasks else DASH for pairs in parts]
        if set(gains) != {DASH}:
            rows.append([label, format_budget(budget), *gains])
    head = ("method", "P", *(f"seed {seed}" for seed in numbers))
    return f"## Seed by seed\n\nMean gain over tasks.\n\n{table(head, rows)}" if rows else ""


def growth(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """What a method makes of more real rollouts: each P minus the one before."""
    found = groups(results)
    rows = []
    for label in dict.fromkeys(label for label, _ in found):
        budgets = [budget for its, budget in found if its == label and budget is not None]
        for less, more in pairwise(budgets):
            pairs = contrasted(found[label, more], found[label, less])
            if pairs:
                rows.append([label, f"{less} to {more}", *difference_cells(pairs)])
    head = ("method", "P", "seeds", "tasks", "gain, mean over tasks", "over seeds", SURE, WITHIN)
    return f"## More rollouts\n\n{table(head, rows)}" if rows else ""


def cost(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """What a method took, per cell."""
    rows = []
    for (label, budget), own in groups(results).items():

        def mean(purpose: str, own: list[CellResult] = own) -> str:
            values = [r.interactions[purpose].episodes for r in own if purpose in r.interactions]
            return f"{sum(values) / len(values):.0f}" if values else "0"

        seconds = [sum(stage.seconds for stage in result.stages.values()) for result in own]
        took = clock(sum(seconds) / len(seconds))
        used = map(mean, ("demonstrations", "rollouts", "practice_resets", "watching_practice"))
        rows.append([label, format_budget(budget), *used, took])
    head = ("method", "P", "demonstrations tried", "real rollouts used", "first pictures used",
            "only watched", "time, shared stages included")  # fmt: skip
    return (
        f"## Cost of a cell\n\n{table(head, rows)}\n\nDemonstrations are tried until enough have succeeded. First "
        "pictures are resets of the real environment, in which nothing is done. Only watched: episodes that measure a "
        "policy while it practises; nothing learns from them."
    )


def budget_plot(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Mean success over tasks against P, which is 0 for the base."""
    tasks = set(tasks_of(results))
    start = over_base(first_of_each_seed(results), BASE)
    budgets = sorted({result.budget for result in results if result.budget})
    place = {budget: 1 + math.log2(budget / budgets[0]) for budget in budgets}  # one step per doubling
    place[0] = 0.5  # between the base and those with rollouts
    found: dict[str, list[tuple[float, Interval]]] = {}
    for (label, budget), own in groups(results).items():
        pairs = over_base(own)
        if budget is not None and {pair.task for pair in pairs} == tasks:
            found.setdefault(label, [(0.0, mean_rate(start))]).append((place[budget], mean_rate(pairs)))
    if not found:
        return ""
    lines = []
    for i, (label, values) in enumerate(found.items()):
        centres = [(x, interval.value) for x, interval in values]
        lines.append(Line(label, centres, f"arm{i}"))
        lines.append(Line(label, centres, f"arm{i}", whiskers=[(v.low, v.high) for _, v in values]))
    marks = [(0.0, "base"), (0.5, "0"), *((place[budget], str(budget)) for budget in budgets)]
    plot = line_plot(lines, x_label="real rollouts P", y_label="real success, mean over tasks", x_marks=marks)
    plots[f"{name}-budget.svg"] = drawn(plot, list(found))
    return f"## Success against P\n\n![success against P]({name}-budget.svg)"


def disruptions(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """The same as `success` under each disruption."""
    parts = []
    for kind in kinds_of(results):
        measured = [result for result in results if f"{BASE} {kind}" in result.policies]
        parts.append(f"## Disrupted {kind}\n\n{rates(measured, f' {kind}')}\n\n{beside_each(measured, f' {kind}')}")
    return "\n\n".join(parts)


def rounds(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Success after each round, what the round gained, and what has been lost since the base; one task at a time."""
    single = [result for result in results if not result.tasks]
    tasks = tasks_of(single) if len(tasks_of(single)) > 1 else []
    rows = []
    for (label, _), own in groups(single).items():
        for turn in range(1, rounds_of(own) + 1):
            pairs, steps = after_rounds(own, 0, turn), after_rounds(own, turn - 1, turn)
            mine = by_task(pairs)
            cells = [number(100 * rate(mine[task]).value) if task in mine else DASH for task in tasks]
            so_far = turn * own[0].recipe["collect"]["episodes"]  # practice may end before all are paid for
            rows.append([label, str(so_far), str(turn), *cells, percent(mean_rate(pairs)),
                         points(gain(steps)), points(gain(pairs)), format_share(forgotten(pairs))])  # fmt: skip
    if not rows:
        return ""
    heads = (f"{task} %" for task in tasks)
    head = ("method", "P so far", "round", *heads, "mean %", "gain of the round", "gain over base", "forgotten, %")
    return (
        f"## Round by round\n\n{table(head, rows)}\n\nMeans are over the tasks that a method has been run on. "
        "Forgotten: of the initial states that the base policy solves, the share that the policy fails. Where a round "
        "ended practice, its policy counts in the rounds after it, too."
    )


def old_tasks(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Where one policy knows several tasks and only the first was tried and practised: what became of each."""
    rows = []
    for (label, _), own in groups(result for result in results if result.tasks).items():
        for task in own[0].task.split("+"):
            parts = [result.of_task(task) for result in own]
            cells = [percent(mean_rate(over_base(parts, BASE)))]
            for turn in range(1, rounds_of(own) + 1):
                pairs = after_rounds(parts, 0, turn)
                cells.append(f"{percent(mean_rate(pairs))}, {points(gain(pairs))}")
            practised = "yes" if task == own[0].task.split("+")[0] else "no"
            rows.append([label, task, practised, *cells])
    if not rows:
        return ""
    head = ("method", "task", "practised", "base %", *(f"round {i}: %, gain" for i in range(1, len(rows[0]) - 3)))
    return f"## Old tasks\n\n{table(head, rows)}"


def dream_quality(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """How good the dreams were that a policy practised in; beside each the first arm's in the same cells."""
    dreamt = [r for r in results if r.fidelity and r.agreement is not None and r.final in r.gaps]
    found = groups(dreamt)
    rows = []
    for (label, budget), own in found.items():
        ours = at(found.get((results[0].label, budget), []), places(own))
        cells = [number(value, 2) for value in dream_values(own)]
        if label != results[0].label and len(ours) == len(own):
            beside = (number(value, 2) for value in dream_values(ours))
            cells = [f"{value} ({other})" for value, other in zip(cells, beside, strict=True)]
        rows.append([label, format_budget(budget), str(len(own)), *cells])
    head = ("arm", "P", "cells", "PSNR at the end, dB", "verdicts right, %", "F1 of verdicts", "imagined minus real")
    text = f"## The dreams\n\nIn parentheses: {results[0].label} in the same cells.\n\n"
    return text + table(head, rows) if rows else ""


def dream_values(results: Sequence[CellResult]) -> list[float]:
    """Means: PSNR in dB, share of right verdicts in percent, their F1, the gap at the end in points."""
    verdicts = [result.agreement for result in results if result.agreement is not None]
    return [
        mean_of(result.fidelity_at_the_end.psnr for result in results),
        100 * mean_of(found.accuracy for found in verdicts),
        mean_of(found.f1 for found in verdicts),
        100 * mean_of(result.gaps[result.final].excess for result in results),
    ]


def success_against_steps(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Whether a gain is skill or haste: success when episodes may last longer, and the median time that it takes."""
    rows = []
    times = times_of(policy for result in results for policy in result.policies.values())
    shown = format_budget(min((result.budget for result in results if result.budget), default=0))
    for task in tasks_of(results):
        own = [result for result in results if result.task == task]
        bases = over_base(first_of_each_seed(own), BASE)
        found = [
            ("Base", "0", bases),
            *((label, format_budget(P), over_base(r)) for (label, P), r in groups(own).items()),
        ]
        lines = []
        for label, budget, pairs in found:
            if not pairs:
                continue
            horizon = pairs[0].after.horizon
            cells = []
            for factor in times:
                hits = [hit for pair in pairs for hit in pair.after.within(factor * horizon)]
                more = "" if label == "Base" else f", {points(gain_within(pairs, factor))}"
                cells.append(f"{percent(wilson_interval(sum(hits), len(hits)))}{more}")
            median = mean_of(pair.after.median_steps for pair in pairs)
            rows.append([task, label, budget, *cells, number(median)])
            if label == "Base" or budget == shown:
                lines.append(Line(label, mean_curve([pair.after.curve() for pair in pairs]), f"arm{len(lines)}"))
        if lines:
            horizon = bases[0].after.horizon
            marks = [(factor * horizon, f"{factor * horizon:g}") for factor in times]
            plot = line_plot(lines, x_label="actions", y_label="real success", x_marks=marks)
            plots[f"{name}-{task}-steps.svg"] = drawn(plot, [line.label for line in lines])
    if not rows:
        return ""
    head = ("task", "method", "P", *(f"% within {factor:g} horizons, gain" for factor in times), "median steps")
    pictures = "\n\n".join(f"![{task}: success against steps]({name}-{task}-steps.svg)" for task in tasks_of(results))
    return f"## Success against the number of steps\n\n{table(head, rows)}\n\nP = {shown}:\n\n{pictures}"


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    return [(points[0][0], mean_of(y for _, y in points)) for points in zip(*curves, strict=True)]


def recoveries(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Of the episodes in which something went wrong first, how many succeed within the horizon."""
    rows = []
    for task in tasks_of(results):
        own = [result for result in results if result.task == task]
        bases = [result.policies[BASE] for result in first_of_each_seed(own)]
        rows.append([task, "Base", "0", *recovery_cells(bases)])
        for (label, budget), cells in groups(own).items():
            finals = [result.policies[result.final] for result in cells]
            rows.append([task, label, format_budget(budget), *recovery_cells(finals)])
    head = ("task", "method", "P", "first attempt failed or disturbed", "of these succeeded, %", "disturbed",
            "of these succeeded, %", "grasps per episode", "drops per episode")  # fmt: skip
    return (
        f"## Recovery\n\n{table(head, rows)}\n\nBy events of the simulator: the object was disturbed (nudged away, or "
        "it slipped), lost in the air, gripped more than once, or gripped in an episode that failed. Each policy is "
        "judged on its own such episodes."
    )


def recovery_cells(policies: Sequence[PolicyResult]) -> list[str]:
    failed = [hit for policy in policies for hit in policy.recoveries()]
    disturbed = [hit for policy in policies for hit in policy.recoveries(disturbed_only=True)]
    counts = (mean_of(n for policy in policies for n in policy.events.get(event, ())) for event in ("grasps", "drops"))
    return [str(len(failed)), format_share(failed), str(len(disturbed)), format_share(disturbed),
            *(number(count, 2) for count in counts)]  # fmt: skip


def format_share(hits: Sequence[int]) -> str:
    return percent(wilson_interval(sum(hits), len(hits))) if hits else DASH


def summary_of(missing: Mapping[str, int], there: int) -> str:
    """How much of the grid the page rests on."""
    total = there + sum(missing.values())
    text = f"{there} of {total} cells have been run."
    if missing:
        listed = ", ".join(f"{label} ({count})" for label, count in missing.items())
        text += f" Missing, or measured with other settings: {listed}."
    return text
