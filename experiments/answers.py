"""What an experiment found, in a few sentences at the head of its page, by rules and from the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from experiments.cells import WMPO, CellResult
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
    groups,
    kinds_of,
    mean_of,
    mean_rate,
    not_better,
    over_base,
    places,
    rate,
    rounds_of,
    tasks_of,
)
from experiments.statistics import pearson
from experiments.tables import Plots, format_budget, format_places, format_share, rate_and_gain
from experiments.trust import Exploited, gaps_of, known_in_both, worlds
from wmpo.report.results import BASE
from wmpo.report.words import number, percent, points, signed


def in_short(sentences: Iterable[str]) -> str:
    items = [f"- {sentence}" for sentence in sentences]
    return "\n".join(["## In short", "", *items]) if items else ""


def beside(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """What the first arm gains at each P, and which others it differs from, in the cells that both have."""
    found, ours = groups(results), results[0].label
    sentences = []
    for (label, budget), own in found.items():
        if label != ours:
            continue
        gained = over_base(own)
        compared: dict[tuple[str, str], list[str]] = {}
        for (other, its), cells in found.items():
            pairs = contrasted(own, cells) if other != ours and its == budget else []
            if pairs:
                fewer = "" if format_places(pairs) == format_places(gained) else f"on {format_places(pairs)} "
                compared.setdefault((fewer, sureness(pairs)), []).append(
                    f"{other} ({signed(gain(pairs).value)}{exceptions(pairs)})"
                )
        order = sorted(compared, key=lambda key: (bool(key[0]), SURENESS.index(key[1])))
        rest = "; ".join(f"{fewer}{words} {', '.join(compared[fewer, words])}" for fewer, words in order)
        many = sum(map(len, compared.values()))
        chance = f" By chance one in 20 of such comparisons stands out, of {many} here." if many > 5 else ""
        sentences.append(
            f"P = {format_budget(budget)}: **{ours} gains {points(gain(gained))}** points over its base on "
            f"{format_places(gained)}{f'. It is {rest}' if rest else ''}.{chance}"
        )
    return in_short(sentences)


ALIKE = "not distinguishable from"
SURENESS = (
    "better than",
    "better over states, though not beyond chance over seeds, than",
    "better over states, with one seed, than",
    "worse than",
    "worse over states, though not beyond chance over seeds, than",
    "worse over states, with one seed, than",
    ALIKE,
)


def sureness(pairs: Sequence[Pair]) -> str:
    """How sure a difference is, over initial states and over seeds."""
    states, seeds = gain(pairs), gain_over_seeds(pairs)
    if states.low <= 0 <= states.high:
        return ALIKE
    doubt = 2 if not math.isfinite(seeds.low) else 1 if seeds.low <= 0 <= seeds.high else 0
    return SURENESS[doubt + 3 * (states.high < 0)]


def exceptions(pairs: Sequence[Pair]) -> str:
    """The tasks on which a policy is not better that is so on their mean."""
    tasks = not_better(pairs)
    return f"; not on {', '.join(tasks)}" if tasks and gain(pairs).low > 0 else ""


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


FLOOR = 0.05  # success below which a policy is said to fail


def under_disruption(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    sentences = []
    for kind in kinds_of(results):
        found = [(label, over_base(own, suffix=f" {kind}")) for (label, _), own in groups(results).items()]
        known = [(label, pairs) for label, pairs in found if pairs]
        base = over_base(first_of_each_seed(results), BASE, f" {kind}")
        gains = ", ".join(f"{label} {points(gain(pairs))}" for label, pairs in known)
        text = f"{kind.capitalize()}: of a base of {percent(mean_rate(base))} %, the gains are {gains}."
        floors = [task for task, pairs in by_task(base).items() if rate(pairs).value < FLOOR]
        if len(floors) == len(by_task(base)) and all(mean_rate(pairs).value < FLOOR for _, pairs in known):
            text = f"{kind.capitalize()}: the base and all methods fail, in at least 95 % of the states of every task."
        elif floors:
            text += f" On {', '.join(floors)} the base nearly always fails."
        sentences.append(text)
    return in_short(sentences)


def round_by_round(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """What each method has gained after each round, which lost beyond chance, and what was forgotten."""
    sentences = []
    for (label, _), own in groups(result for result in results if not result.tasks).items():
        fell: dict[int, list[str]] = {}
        so_far, whole, turns = [], True, rounds_of(own)
        for turn in range(1, turns + 1):
            steps = after_rounds(own, turn - 1, turn)
            so_far.append(points(gain(after_rounds(own, 0, turn))))
            whole = whole and gain(steps).high >= 0
            for task, step in by_task(steps).items():
                if gain(step).high < 0:
                    fell.setdefault(turn, []).append(f"on {task} by {points(gain(step))}")
        changes = "; ".join(f"round {turn} changes success {', '.join(where)}" for turn, where in fell.items())
        if changes and whole and len(tasks_of(own)) > 1:
            changes += ", over its tasks together by no more than chance may"
        since = f"; from the first to the last {points(gain(after_rounds(own, 1, turns)))}" if turns > 1 else ""
        sentences.append(
            f"{label} on {format_places(over_base(own))}: {', then '.join(so_far)} over the base, round by round{since}"
            f"; {changes or 'on no task a round falls beyond chance'}."
        )
        if lost := forgotten(over_base(own)):
            sentences[-1] += f" Of the states that the base solves, it fails {format_share(lost)} % in the end."
    for (label, _), own in groups(result for result in results if result.tasks).items():
        for task in own[0].task.split("+")[1:]:
            pairs = over_base(result.of_task(task) for result in own)
            sentences.append(f"{label}: {task}, which it knew and never practised, changes by {points(gain(pairs))}.")
    return in_short(sentences)


def dreams_trusted(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    found = gaps_of(results)
    ours = known_in_both([result for result in results if result.label == results[0].label])
    if not found or not ours:
        return ""

    def correlation(tasks: Sequence[str]) -> str:
        gaps = [gap for _, task, gap in found if task in tasks]
        return number(pearson(*worlds(gaps)).value, 2)

    tasks = tasks_of(results)
    sentences = [
        f"Correlation of imagined with real success over {len(found)} policies (Pearson): "
        f"{', '.join(f'{correlation([task])} on {task}' for task in tasks)}; {correlation(tasks)} over all tasks. They "
        f"are {number(100 * mean_of(abs(gap.excess) for _, _, gap in found))} points apart on average.",
    ]
    for (label, _), own in groups(known_in_both([result for result in results if result.method == WMPO])).items():
        sentences.append(f"{label} on {format_places(over_base(own))}: {describe_exploitation(own)}.")
        same = at(ours, places(own))
        if label != ours[0].label and len(same) == len(own) < len(ours):
            sentences[-1] += f" {ours[0].label} there: {describe_exploitation(same)}."
    doubts = [r.doubt for r in ours if r.doubt is not None]
    if doubts:
        before, after = mean_of(d.precision for d in doubts), mean_of(d.precision_kept for d in doubts)
        sentences.append(
            f"Dropping the imagined successes that a second dream does not confirm changes the share of real ones by "
            f"{signed(after - before)} points."
        )
    return in_short(sentences)


def describe_exploitation(results: Sequence[CellResult]) -> str:
    made = Exploited.of(results)
    return (
        f"of an imagined gain of {signed(made.imagined)} points, {signed(made.real)} is real; the gap is "
        f"{signed(made.before)} before practice and {signed(made.after)} after it"
    )
