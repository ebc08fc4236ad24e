"""All headline figures as one JSON, from stored outcomes alone: `python -m experiments summary`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.cells import CellResult, read_cells, result_of
from experiments.grids import EXPERIMENTS, Experiment
from experiments.pairs import (
    Pair,
    after_rounds,
    at_time,
    by_task,
    first_of_each_seed,
    gain,
    gain_over_seeds,
    gain_within,
    groups,
    kinds_of,
    mean_of,
    over_base,
    rate,
    rounds_of,
    tasks_of,
)
from experiments.statistics import pearson
from experiments.trust import gaps_of, worlds
from wmpo.report.results import BASE, PolicyResult, times_of
from wmpo.report.statistics import Interval, wilson_interval

Plain = dict[str, Any]


def summary(out: Path) -> Plain:
    """Experiment -> its figures, of the cells that have been run; rates in [0, 1], gains in points."""
    found = {}
    for name, experiment in EXPERIMENTS.items():
        cells = experiment.cells()
        file, *others = experiment.files(out, name)
        if not file.exists():
            continue  # others' results alone make no experiment
        stored = read_cells(file, *others)
        results = [result for cell in cells if (result := result_of(cell, stored)) is not None]
        if results:
            found[name] = figures(experiment, results, len(cells))
    return found


def figures(experiment: Experiment, results: Sequence[CellResult], cells: int) -> Plain:
    whole: Plain = {
        "title": experiment.title,
        "cells": {"run": len(results), "of": cells},
        "base": {task: base_figures([r for r in results if r.task == task]) for task in tasks_of(results)},
        "methods": [
            {"method": label, "P": budget, **method_figures(own)} for (label, budget), own in groups(results).items()
        ],
    }
    trust = {task: trust_figures([r for r in results if r.task == task]) for task in tasks_of(results)}
    return whole | {"trust": {task: figures for task, figures in trust.items() if figures}}


def base_figures(results: Sequence[CellResult]) -> Plain:
    bases = [result.policies[BASE] for result in first_of_each_seed(results)]
    times = {f"{factor:g}": rate([Pair("", 0, b, at_time(b, factor)) for b in bases]) for factor in times_of(bases)}
    return {
        "horizon": bases[0].horizon,
        "success at horizons": {factor: interval_of(value) for factor, value in times.items()},
        "median steps": plain(mean_of(base.median_steps for base in bases)),
        "recovery": recovery_of(bases),
    }


def method_figures(results: Sequence[CellResult]) -> Plain:
    pairs = over_base(results)
    both = [policy for pair in pairs for policy in (pair.before, pair.after)]
    found: Plain = {
        **gain_of(pairs),
        "tasks": {task: {"success": interval_of(rate(own)), **gain_of(own)} for task, own in by_task(pairs).items()},
        "gain at horizons": {f"{factor:g}": points_of(gain_within(pairs, factor)) for factor in times_of(both)},
        "recovery": {
            task: recovery_of([r.policies[r.final] for r in results if r.task == task]) for task in tasks_of(results)
        },
    }
    turns = rounds_of(results)
    if turns > 1:
        found["rounds"] = [gain_of(after_rounds(results, turn, turn + 1)) for turn in range(turns)]
    for kind in kinds_of(results):
        found.setdefault("disruptions", {})[kind] = gain_of(over_base(results, suffix=f" {kind}"))
    return found


def gain_of(pairs: Sequence[Pair]) -> Plain:
    """Over the base, or between rounds: over initial states, over seeds, and how many there are."""
    if not pairs:
        return {}
    return {
        "gain over states": points_of(gain(pairs)),
        "gain over seeds": points_of(gain_over_seeds(pairs)),
        "seeds": sorted({pair.seed for pair in pairs}),
        "n": sum(len(pair.after.success) for pair in pairs),
    }


def recovery_of(policies: Sequence[PolicyResult]) -> Plain:
    """Share that succeeds of the episodes whose first attempt failed or was disturbed, and of the disturbed ones."""
    kinds = {
        "failed or disturbed": [hit for policy in policies for hit in policy.recoveries()],
        "disturbed": [hit for policy in policies for hit in policy.recoveries(disturbed_only=True)],
    }
    return {
        kind: {"share": interval_of(wilson_interval(sum(hits), len(hits))), "n": len(hits)}
        for kind, hits in kinds.items()
        if hits
    }


def trust_figures(results: Sequence[CellResult]) -> Plain:
    """Imagined against real success of the policies of one task."""
    gaps = [gap for _, _, gap in gaps_of(results)]
    if len(gaps) < 2:
        return {}
    ends = [abs(r.gaps[r.final].excess) for r in results if r.final in r.gaps]
    doubts = [r.doubt.auroc for r in results if r.doubt is not None]
    verdicts = [r.agreement.f1 for r in results if r.agreement is not None]
    return {
        "policies": len(gaps),
        "pearson": interval_of(pearson(*worlds(gaps))),
        "gap at the end, points": plain(100 * mean_of(ends)),
        "F1 in the dream": plain(mean_of(verdicts)),
        "F1 on real video": plain(mean_of(r.reward.f1 for r in results if r.reward is not None)),
        "AUROC of disagreement": plain(mean_of(doubts)),
    }


def interval_of(interval: Interval) -> list[float | None]:
    """[estimate, low, high]."""
    return [plain(value) for value in interval]


def points_of(interval: Interval) -> list[float | None]:
    return [plain(100 * value) for value in interval]


def plain(value: float) -> float | None:
    """JSON knows no NaN and no infinity."""
    return round(value, 4) if math.isfinite(value) else None
