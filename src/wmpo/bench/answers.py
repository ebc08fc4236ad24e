"""What an experiment found, in a few sentences at the head of its page, by rules and from the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from wmpo.bench.cells import CellResult
from wmpo.bench.pairs import (
    Pair,
    between,
    by_task,
    contrasted,
    first_of_each_seed,
    gain,
    groups,
    kinds_of,
    mean_of,
    mean_rate,
    over_base,
    tasks_of,
)
from wmpo.bench.tables import Plots, budget_told, rate_and_gain, second_tries, second_tries_told, verdict
from wmpo.bench.trust import Exploited, gaps_of, known_in_both
from wmpo.objectives.statistics import pearson
from wmpo.report.words import number, percent, points, signed
from wmpo.results import BASE


def in_short(sentences: Iterable[str]) -> str:
    told = [f"- {sentence}" for sentence in sentences]
    return "\n".join(["## In short", "", *told]) if told else ""


def beside(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """What the first arm gains at each P, and which others it is told apart from, in the cells that both have."""
    found, ours = groups(results), results[0].label
    sentences = []
    for (label, budget), own in found.items():
        if label != ours:
            continue
        told: dict[str, list[str]] = {}
        for (other, its), cells in found.items():
            pairs = contrasted(own, cells) if other != ours and its == budget else []
            if pairs:
                told.setdefault(verdict(gain(pairs)), []).append(f"{other} ({signed(gain(pairs).value)})")
        words = {"yes": "better than", "no, it is worse": "worse than", "no": "not told apart from"}
        rest = "; ".join(f"{words[key]} {', '.join(told[key])}" for key in words if key in told)
        pairs = over_base(own)
        sentences.append(
            f"P = {budget_told(budget)}: **{ours} gains {points(gain(pairs))}** points over its base on "
            f"{', '.join(by_task(pairs))}{f'. It is {rest}' if rest else ''}."
        )
    return in_short(sentences)


def chosen(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """The best arm of each method, by its mean gain over all tasks."""
    tasks = set(tasks_of(results))
    best: dict[str, tuple[float, str, list[Pair]]] = {}
    for (label, _), own in groups(results).items():
        pairs = over_base(own)
        if set(by_task(pairs)) == tasks:
            mean = gain(pairs).value
            if own[0].method not in best or mean > best[own[0].method][0]:
                best[own[0].method] = (mean, label, pairs)
    return in_short(f"Best of its method: **{label}**, {rate_and_gain(pairs)}." for _, label, pairs in best.values())


def under_disruption(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    sentences = []
    for kind in kinds_of(results):
        found = [(label, over_base(own, suffix=f" {kind}")) for (label, _), own in groups(results).items()]
        known = [(label, pairs) for label, pairs in found if pairs]
        base = mean_rate(over_base(first_of_each_seed(results), BASE, f" {kind}"))
        gains = ", ".join(f"{label} {points(gain(pairs))}" for label, pairs in known)
        floor = " Nothing is learned from a floor." if base.high < 0.02 else ""
        sentences.append(f"{kind.capitalize()}: of a base of {percent(base)} %, the gains are {gains}.{floor}")
    return in_short(sentences)


def round_by_round(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """What each method has gained in the end, and which of its rounds lost beyond chance."""
    sentences = []
    for (label, _), own in groups(result for result in results if not result.tasks).items():
        lost = []
        for number_of, (before, after) in enumerate(pairwise([BASE, *own[0].turns]), start=1):
            step = gain(between(own, before, after))
            if step.high < 0:
                lost.append(f"round {number_of} lost {points(step)}")
        tasks, total = ", ".join(tasks_of(own)), points(gain(over_base(own)))
        fell = "; ".join(lost) or "no round lost beyond chance"
        sentences.append(f"{label} ({tasks}): {total} after {len(own[0].turns)} rounds; {fell}.")
    return in_short(sentences)


def dreams_trusted(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    found = gaps_of(results)
    ours = known_in_both([result for result in results if result.label == results[0].label])
    if not found or not ours:
        return ""
    within = []
    for task in tasks_of(results):
        own = [gap for _, its, gap in found if its == task]
        r = pearson([gap.imagined for gap in own], [gap.real for gap in own])
        within.append(f"{number(r, 2)} on {task}")
    found_out = Exploited.of(ours)
    sentences = [
        f"Over {len(found)} policies, imagined and real success go together: Pearson {', '.join(within)}.",
        f"The dream of the base policy is off by {signed(found_out.before)} points, that of the "
        f"practised one ({results[0].label}) by {signed(found_out.after)}: of an imagined gain of "
        f"{signed(found_out.imagined)}, {signed(found_out.real)} is real.",
    ]
    doubts = [r.doubt for r in ours if r.doubt is not None]
    if doubts:
        before, after = mean_of(d.precision for d in doubts), mean_of(d.precision_kept for d in doubts)
        sentences.append(
            f"Dropping the imagined successes that a second dream does not confirm changes the share of real ones by "
            f"{signed(after - before)} points."
        )
    return in_short(sentences)


def trying_again(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    sentences = []
    for task in tasks_of(results):
        own = [result for result in results if result.task == task]
        parts = [f"Base {second_tries_told(second_tries(first_of_each_seed(own), lambda result: BASE))}"]
        for (label, _), cells in groups(own).items():
            parts.append(f"{label} {second_tries_told(second_tries(cells, lambda result: result.final))}")
        sentences.append(f"{task}: of first attempts that fail, so many succeed later, in %: {', '.join(parts)}.")
    return in_short(sentences)
