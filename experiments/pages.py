"""The pages and tables that are made from stored results: `python -m experiments.pages` writes them anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from docs.generate import with_generated
from experiments.cells import CellResult, read_cells, result_of
from experiments.grids import EXPERIMENTS
from experiments.pairs import Pair, at, contrasted, gain, gain_over_seeds, groups, not_better, over_base, places, rate
from experiments.store import read_results
from experiments.tables import format_seeds, table
from wmpo.io.files import read_json
from wmpo.report.results import RunResult
from wmpo.report.words import percent, points

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
SPEEDS = ROOT / "benchmarks" / "results"
SPEED = 25  # TFLOP/s, at which published policies are planned: 40 % of an H100's 67 in float32
SIZES = {"openvla_oft.md": ("OpenVLA-OFT",), "flow_policies.md": ("SmolVLA", "pi0")}
BESIDES = (
    " For more demonstrations the expert tries until as many have succeeded. WMPO is also given 256 first pictures to "
    "practise from, where nothing is done. Seeds 0 and 1 were seen when its settings were chosen, seed 2 was not."
)


def summary_table(folder: Path) -> str:
    """For README: one row per recipe, over the seeds of its runs."""
    runs = list(read_results(folder / "runs.jsonl", RunResult).values())
    rows = []
    for name in dict.fromkeys(run.recipe["name"] for run in runs):
        own = [run for run in runs if run.recipe["name"] == name]
        before = [Pair(name, run.seed, run.policies["base"], run.policies["base"]) for run in own]
        after = [Pair(name, run.seed, run.policies["base"], run.policies[run.final]) for run in own]
        control = [
            Pair(name, run.seed, run.policies["base"], run.policies["control"])
            for run in own
            if "control" in run.policies
        ]
        seeds = ", ".join(str(run.seed) for run in own)
        shuffled = points(gain(control)) if control else "–"
        if 0 < len(control) < len(own):
            shuffled += f", seed {', '.join(str(pair.seed) for pair in control)}"
        rows.append((name, seeds, percent(rate(before)), percent(rate(after)), points(gain(after)), shuffled))
    shown = table(("recipe", "seeds", "before, %", "after practice in imagination, %", "gain", "control"), rows)
    stored = read_cells(folder / "table1.jsonl")
    cells = (result_of(cell, stored) for cell in EXPERIMENTS["table1"].cells())
    return "\n\n".join(filter(None, [shown, comparison(filter(None, cells))]))


def comparison(results: Iterable[CellResult], budget: int = 128) -> str:
    """What each method makes of the same rollouts, on the tasks and seeds that all of them have been run on; and there
    of more, as far as it has been run."""
    found = groups(results)
    labels = [label for label, spent in found if spent == budget]
    common = set.intersection(*(places(found[label, budget]) for label in labels)) if labels else set()
    if not common:
        return ""
    there = {group: over_base(at(cells, common)) for group, cells in found.items() if places(cells) >= common}
    budgets = sorted({spent for _, spent in there if spent >= budget})

    def cells_of(label: str, spent: int) -> tuple[str, str]:
        pairs = there.get((label, spent), [])
        return (points(gain(pairs)), format_seeds(gain_over_seeds(pairs))) if pairs else ("–", "–")

    labels.sort(key=lambda label: -gain(there[label, budget]).value)
    rows = [(label, *(text for spent in budgets for text in cells_of(label, spent))) for label in labels]
    head = ("method", *(text for spent in budgets for text in (f"gain from {spent} real tries", "over seeds")))
    tasks = ", ".join(sorted({task for task, _ in common}))
    seeds = ", ".join(map(str, sorted({seed for _, seed in common})))
    text = f"What other methods make of the same real tries; mean gain over {tasks}; seeds {seeds}.{BESIDES}"
    for spent in budgets[1:]:
        ours = found.get(("WMPO", spent), [])
        if more := contrasted(ours, found.get(("WMPO", budget), [])):
            text += f" WMPO gains {points(gain(more))} more from {spent} than from {budget}."
        others = {label: found[label, its] for label, its in there if its == spent and label != "WMPO"}
        even = {label: not_better(contrasted(ours, cells)) for label, cells in others.items()}
        if no_better := "; ".join(f"{label} on {', '.join(where)}" for label, where in even.items() if where):
            text += f" From {spent} it is not better than {no_better}."
    for label, cells in ((label, found[label, spent]) for label, spent in there if not spent):
        episodes = max(result.interactions["rollouts"].episodes for result in cells)
        text += f" {label} gains {cells_of(label, 0)[0]} from {episodes}."
    return f"{text}\n\n{table(head, rows)}"


def results_page(folder: Path) -> str:
    """`experiments/docs/results.md`, from `runs.jsonl` and `evaluations.jsonl` in `folder`."""
    runs = read_results(folder / "runs.jsonl", RunResult)
    parts = [
        "# Measured results",
        "Made by `wmpo run place --seed 1`, say; its `result.json` is then a line of\n"
        "[runs.jsonl](../results/runs.jsonl), by `python -m experiments.store`. Success is real,\n"
        "greedy, of the last policy, on held-out initial states, with 95 % Wilson intervals; gains are paired\n"
        "differences in points with 95 % intervals (Agresti and Min). A run of several tasks has a row for each too.\n"
        "Every line holds its whole recipe: defaults have changed between commits (CHANGELOG.md).\n"
        "This page is generated by `python -m experiments.pages`.",
        runs_table(runs),
        "## How true the dreams are",
        "Imagined against real frames after the same actions, at the end of the longest episodes, beside the first\n"
        "frame itself (still). State: root mean square error in standard deviations, over all dimensions.",
        fidelity_table(runs),
        "## Changed scenes and sentences",
        "The policies of a run above, from the same initial states, under a disruption of `wmpo evaluate`.",
        disruptions_table(folder / "evaluations.jsonl"),
    ]
    return "\n\n".join(parts) + "\n"


def runs_table(runs: Mapping[str, RunResult]) -> str:
    columns = (
        "run",
        "states",
        "base %",
        "after practice %",
        "gain",
        "control's gain",
        "imagined success, after",
        "verdicts: accuracy, F1",
        "real rollouts",
        "minutes",
        "commit",
    )
    rows = []
    for name, result in runs.items():
        gap, agreement = result.gaps.get(result.final), result.agreement
        rows.append(
            [
                name,
                *success_cells(result),
                f"{gap.imagined:.0%}" if gap else "–",
                f"{agreement.accuracy:.2f}, {agreement.f1:.2f}" if agreement else "–",
                str(result.interactions["rollouts"].episodes),
                f"{sum(stage.seconds for stage in result.stages.values()) / 60:.0f}",
                f"`{result.commit}`",
            ]
        )
        for task in result.tasks:
            own = [f"{name}: {task}", *success_cells(result.of_task(task))]
            rows.append(own + ["–"] * (len(columns) - len(own)))
    return table(columns, rows)


def fidelity_table(runs: Mapping[str, RunResult]) -> str:
    rows = []
    for name, result in runs.items():
        last = max((at.frames for at in result.fidelity), default=0)
        rows += [
            (name, at.camera, str(at.frames), f"{at.psnr:.1f}", f"{at.still_psnr:.1f}", f"{at.ssim:.2f}")
            for at in result.fidelity
            if at.frames == last
        ]
        if result.state_fidelity:
            state = result.state_fidelity[-1]
            rows.append((name, "state", str(state.frames), f"{state.rms:.2f}", f"{state.still_rms:.2f}", "–"))
    return table(("run", "camera", "frames", "PSNR, dB", "still", "SSIM"), rows)


def disruptions_table(file: Path) -> str:
    rows = []
    for name, result in read_results(file, RunResult).items():
        for part, own in {"": result, **{f": {task}": result.of_task(task) for task in result.tasks}}.items():
            disruption = own.policies["base"].disruption
            rows.append((f"{name}{part}", disruption, *success_cells(own)[:-1]))
    return table(("evaluation", "disruption", "states", "base %", "after practice %", "gain"), rows)


def success_cells(result: RunResult) -> list[str]:
    """States, success before and after, and both gains."""
    summary = result.summary()
    gains = {name: points(gain.difference) for name, gain in summary.gains.items()}
    return [
        str(len(result.policies["base"].initial_states)),
        percent(summary.rates["base"]),
        percent(summary.rates[result.final]),
        gains.get(result.final, "–"),
        gains.get("control", "–"),
    ]


def sizes_table(path: Path, *names: str) -> str:
    """What `benchmarks/sizes.py` has planned for the policies whose names begin so, per stage and for a whole run."""
    columns = ("policy", "parameters, M", "trained, M", "imitate, GB", "imagine, GB", "update, GB", "imitate, PFLOP",
               "practise, PFLOP", f"hours at {SPEED} TFLOP/s")  # fmt: skip
    rows = []
    for planned in read_json(path)["sizes"]:
        if not planned["policy"].startswith(names):
            continue
        gigabytes = {stage["stage"]: stage["gb"] for stage in planned["stages"]}
        work = {stage["stage"]: stage["tflop"] * stage["steps"] for stage in planned["stages"]}
        numbers = (
            *(planned[name] / 1e6 for name in ("parameters", "trained")),
            *(gigabytes[stage] for stage in ("imitate", "practise: imagine", "practise: update")),
            work["imitate"] / 1000,
            (work["practise: imagine"] + work["practise: update"]) / 1000,
            sum(work.values()) / SPEED / 3600,
        )
        rows.append((planned["policy"], *(f"{number:,.1f}" for number in numbers)))
    return table(columns, rows)


def gpu_tables(results: Path, speeds: Path) -> str:
    """For docs/gpu.md: the main job with and without a GPU, and single steps on it beside what was planned."""
    taken, plain = (read_results(results / f"{name}.jsonl", RunResult)["place-seed0"] for name in ("gpu", "runs"))
    gpu = f"{taken.machine.gpu}, {taken.machine.cores} cores"
    seconds = [
        (name, f"{plain.stages[name].seconds:.0f}", f"{stage.seconds:.0f}", f"{stage.peak_gpu_memory_mb / 1000:.1f}")
        for name, stage in taken.stages.items()
    ]
    outcome = [
        (where, *success_cells(run), f"`{run.commit}`")
        for where, run in ((f"{plain.machine.cores} cores of {plain.machine.cpu}", plain), (gpu, taken))
    ]
    measured = read_json(speeds / "plan-gpu.json")
    columns = ("networks", "step", "planned, GB", "taken, GB", "planned, TFLOP", "milliseconds", "TFLOP/s",
               "hours in a run")  # fmt: skip
    sizes = {size["policy"]: size["stages"] for size in read_json(speeds / "sizes.json")["sizes"]}
    often = {(name, stage["stage"]): stage["steps"] for name, stages in sizes.items() for stage in stages}
    steps = [
        (
            step["case"],
            step["stage"],
            f"{step['planned_mb'] / 1000:.2f}",
            f"{step['taken_mb'] / 1000:.2f}",
            f"{step['planned_gflop'] / 1000:,.2f}",
            f"{1000 * step['taken_seconds']:,.0f}",
            f"{step['planned_gflop'] / step['taken_seconds'] / 1000:,.0f}",
            f"{often[policy, step['stage']] * step['taken_seconds'] / 3600:,.1f}" if policy in sizes else "–",
        )
        for step in measured["steps"]
        for policy in [step["case"].removesuffix(", bfloat16")]
        if policy not in sizes or "model" not in step["stage"]  # those of place, beside a published policy
    ]
    return "\n\n".join(
        (
            table(("stage", f"{plain.machine.cores} cores, seconds", f"{gpu}, seconds", "its memory, GB"), seconds),
            table(("main job", "states", "base %", "after practice %", "gain", "control's gain", "commit"), outcome),
            f"Steps, on {measured['machine']['gpu']} (bfloat16 products of 8192 x 8192: "
            f"{measured['gflops'] / 1000:.0f} TFLOP/s), commit `{measured['commit']}`:",
            table(columns, steps),
        )
    )


def pages() -> dict[Path, str]:
    """Page -> its text, of all pages that show stored results but those of the experiments."""
    generated = {ROOT / "README.md": summary_table(RESULTS), ROOT / "docs" / "gpu.md": gpu_tables(RESULTS, SPEEDS)}
    generated |= {ROOT / "docs" / page: sizes_table(SPEEDS / "sizes.json", *names) for page, names in SIZES.items()}
    return {ROOT / "experiments" / "docs" / "results.md": results_page(RESULTS)} | {
        page: with_generated(page.read_text(encoding="utf-8"), text) for page, text in generated.items()
    }


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
