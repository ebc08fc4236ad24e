"""Imagined beside real success: whether a dream ranks policies rightly, and whether practice exploits it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from experiments.cells import CellResult
from experiments.drawing import drawn
from experiments.pairs import first_of_each_seed, groups, mean_of, tasks_of
from experiments.statistics import pearson, spearman
from experiments.tables import Plots, format_budget, table
from wmpo.report.charts import Line, line_plot
from wmpo.report.results import BASE, Gap
from wmpo.report.statistics import normal_quantile
from wmpo.report.words import number, signed

WINDOW = 5  # iterations whose imagined success is averaged: one iteration's groups are few


def gaps_of(results: Sequence[CellResult]) -> list[tuple[str, str, Gap]]:
    """(label, task, imagined and real success) of every policy that was measured in both, each base policy once."""
    found = [("Base", r.task, r.gaps[BASE]) for r in first_of_each_seed(results) if BASE in r.gaps]
    return found + [(r.label, r.task, r.gaps[r.final]) for r in results if r.final in r.gaps]


def worlds(gaps: Sequence[Gap]) -> tuple[list[float], list[float]]:
    """Imagined and real success."""
    return [gap.imagined for gap in gaps], [gap.real for gap in gaps]


def gains_of(results: Sequence[CellResult]) -> list[tuple[str, float, float]]:
    """(task, imagined gain, real gain) of every cell that was measured in both."""
    both = [(r.task, r.gaps[BASE], r.gaps[r.final]) for r in known_in_both(results)]
    return [(task, end.imagined - start.imagined, end.real - start.real) for task, start, end in both]


class Exploited(NamedTuple):
    """What practice has made of a dream, as means over cells."""

    before: float  # imagined minus real success of the base
    after: float  # and of the final policy
    doubt: float  # half of the 95 % interval of that, as if both worlds were sampled independently
    imagined: float  # gain
    real: float  # gain

    @staticmethod
    def of(results: Sequence[CellResult]) -> Exploited:
        start, end = [r.gaps[BASE] for r in results], [r.gaps[r.final] for r in results]
        gained = gains_of(results)
        return Exploited(
            mean_of(gap.excess for gap in start),
            mean_of(gap.excess for gap in end),
            normal_quantile(0.95) * math.sqrt(sum(gap.variance for gap in end)) / len(end),
            mean_of(imagined for _, imagined, _ in gained),
            mean_of(real for _, _, real in gained),
        )


def known_in_both(results: Sequence[CellResult]) -> list[CellResult]:
    """Those whose base and final policy were measured in the dream as well as for real."""
    return [result for result in results if {BASE, result.final} <= set(result.gaps)]


def correlation(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    found = gaps_of(results)
    if not found:
        return ""
    labels = list(dict.fromkeys(label for label, _, _ in found))
    gained = gains_of(results)
    rows = []
    for task in [*dict.fromkeys(task for _, task, _ in found), "all tasks"]:
        own = [gap for _, its, gap in found if task in (its, "all tasks")]
        error = mean_of(abs(gap.excess) for gap in own)
        gains = [(imagined, real) for its, imagined, real in gained if task in (its, "all tasks")]
        between = related([imagined for imagined, _ in gains], [real for _, real in gains])
        rows.append([task, *related(*worlds(own)), number(100 * error), *between])
    lines = []
    for i, label in enumerate(labels):
        points = [(gap.imagined, gap.real) for its, _, gap in found if its == label]
        lines.append(Line(label, points, f"arm{i}", whiskers=[(y, y) for _, y in points]))
    lines.append(Line("equal", [(0.0, 0.0), (1.0, 1.0)], "level"))
    plot = line_plot(lines, x_label="imagined success", y_label="real success", x_end=1.0)
    plots[f"{name}-scatter.svg"] = drawn(plot, labels)
    head = (
        "task", "policies", "Pearson", "Spearman", "mean distance, points", "cells", "gains: Pearson", "gains: Spearman"
    )  # fmt: skip
    return (
        f"## Imagined and real success\n\n{table(head, rows)}\n\nIntervals as if policies were independent; those of "
        f"one seed share their base and their dream. Gains, imagined and real, are over the base of the same cell: "
        "what a dream credits base and policy with alike is left out.\n\n"
        f"![imagined and real success]({name}-scatter.svg)"
    )


def related(imagined: Sequence[float], real: Sequence[float]) -> list[str]:
    """How many there are, and how imagined goes with real."""
    bounds = pearson(imagined, real)
    sure = f"{number(bounds.value, 2)} ({number(bounds.low, 2)} to {number(bounds.high, 2)})"
    return [str(len(real)), sure, number(spearman(imagined, real), 2)]


def exploitation(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Imagined minus real: at the end of training, and along it."""
    rows = []
    for (label, budget), own in groups(known_in_both(results)).items():
        rows += [[label, format_budget(budget), task, *gap_row(its)] for task, its in task_by_task(own)]
    if not rows:
        return ""
    text = (
        "## Exploitation gap\n\n"
        "Imagined minus real success, in points. What the gap grows by, imagined minus real gain, is what the dream "
        "credits a method with and reality does not. In parentheses 95 %, as if both worlds were sampled "
        "independently: rather too wide, since their first pictures are the same. Distance: KL divergence of the "
        "policy's choices from those that it began with, in nats (natural units of information) per chunk, at the "
        "last iteration; the stop rule (`grpo.target_kl`) goes by it alone, and needs no real episode.\n\n"
    ) + table(
        ("method", "P", "task", "cells", "gap of the base", "gap at the end", "imagined gain", "real gain",
         "iterations", "distance"), rows
    )  # fmt: skip
    lines = courses([result for result in results if result.label == results[0].label])
    if lines:
        low = min(0.0, *(y for points in lines.values() for _, y in points))
        high = max(0.1, *(y for points in lines.values() for _, y in points))
        plot = line_plot(
            [Line(task, points, f"arm{i}") for i, (task, points) in enumerate(lines.items())],
            x_label="iteration of practice", y_label="imagined minus real success", y_range=(low, high),
        )  # fmt: skip
        plots[f"{name}-gap.svg"] = drawn(plot, list(lines))
        text += (
            f"\n\n![the gap along practice]({name}-gap.svg)\n\nAlong practice imagined success is sampled, from the "
            "states of practice, and real success is greedy, from others: its course tells more than its level."
        )
    return text


def gap_row(results: Sequence[CellResult]) -> list[str]:
    made = Exploited.of(results)
    curves = [result.curves.get("practice-1", {}) for result in results]
    return [
        str(len(results)),
        signed(made.before),
        f"{signed(made.after)} (± {number(100 * made.doubt)})",
        signed(made.imagined),
        signed(made.real),
        number(mean_of(float(len(curve["success"])) for curve in curves if "success" in curve)),
        number(mean_of(curve["distance"][-1][1] for curve in curves if "distance" in curve), 2),
    ]


def courses(results: Sequence[CellResult]) -> dict[str, list[tuple[float, float]]]:
    """Task -> (iteration, imagined minus real success, mean over seeds), wherever practice was watched in reality."""
    found: dict[str, dict[int, list[float]]] = {}
    for result in results:
        curves = result.curves.get("practice-1", {})
        imagined = dict(curves.get("success", []))
        for iteration, real in curves.get("real_success", []):
            recent = [imagined[i] for i in range(iteration - WINDOW + 1, iteration + 1) if i in imagined]
            if recent:
                gap = sum(recent) / len(recent) - real
                found.setdefault(result.task, {}).setdefault(iteration, []).append(gap)
    return {task: [(float(i), mean_of(gaps)) for i, gaps in sorted(own.items())] for task, own in found.items()}


def task_by_task(results: Sequence[CellResult]) -> list[tuple[str, list[CellResult]]]:
    """The results of each task and, where there are several, of all."""
    found = [(task, [result for result in results if result.task == task]) for task in tasks_of(results)]
    return [*found, ("mean", list(results))] if len(found) > 1 else found


def verdicts(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """The reward model on what the final policies really did, and on dreams of it."""
    rows = []
    for (label, budget), own in groups(results).items():
        known = [r for r in own if r.reward is not None and r.agreement is not None]
        for task, its in task_by_task(known):
            values = [
                mean_of(r.reward.f1 for r in its if r.reward),
                mean_of(r.reward.calibration_error for r in its if r.reward),
                mean_of(r.agreement.f1 for r in its if r.agreement),
                mean_of(math.nan if r.dream_calibration is None else r.dream_calibration for r in its),
            ]
            rows.append([label, format_budget(budget), task, *(number(value, 3) for value in values)])
    head = ("method", "P", "task", "real: F1", "real: calibration error", "dream: F1", "dream: calibration error")
    text = (
        "On real episodes of the final policy, and on imagined replays of their actions: each policy's own, so rows of "
        "different methods are of different episodes ([F1](../../docs/metrics.md))."
    )
    return f"## Verdicts\n\n{text}\n\n{table(head, rows)}" if rows else ""


def doubts(results: Sequence[CellResult], name: str, plots: Plots) -> str:
    """Two dreams of the same actions with different noise: does it help to believe only what both show?"""
    rows = []
    for (label, budget), own in groups(results).items():
        for task, its in task_by_task([result for result in own if result.doubt is not None]):
            known = [result.doubt for result in its if result.doubt is not None]
            values = [
                number(mean_of(doubt.auroc for doubt in known), 2),
                number(100 * mean_of(doubt.precision for doubt in known)),
                number(100 * mean_of(doubt.precision_kept for doubt in known)),
                number(100 * mean_of(doubt.kept for doubt in known)),
                number(mean_of(doubt.psnr for doubt in known)),
            ]
            rows.append([label, format_budget(budget), task, *values])
    head = ("method", "P", "task", "AUROC for wrong verdicts", "successes that are real, %", "of those confirmed, %",
            "kept, %", "PSNR of one beside the other, dB")  # fmt: skip
    return f"## Two dreams of one episode\n\nEach real episode is dreamt twice.\n\n{table(head, rows)}" if rows else ""
