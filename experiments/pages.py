"""The pages and tables that are made from stored results: `python -m experiments.pages` writes them anew."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from docs.generate import with_generated, write
from experiments import harness, labels, students
from experiments.cells import CellResult
from experiments.store import read_lines, read_results
from experiments.summary import Plain, summary
from experiments.tables import format_budget, table
from wmpo.errors import UserError
from wmpo.io.files import read_json
from wmpo.report.results import TIMES, RunResult
from wmpo.report.statistics import Interval
from wmpo.report.words import percent, points

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
SPEEDS = ROOT / "benchmarks" / "results"
SPEED = 25  # TFLOP/s, at which published policies are planned: 40 % of an H100's 67 in float32
SIZES = {"openvla_oft.md": ("OpenVLA-OFT",), "flow_policies.md": ("SmolVLA", "pi0")}


def readme_tables(found: Plain) -> str:
    """For README, from `table1` in the summary of all results: the tasks, then what each method makes of P rollouts."""
    figures = found.get("table1")
    if not figures:
        return "No result has been stored yet."
    tasks = list(figures["base"])
    base_rows = []
    for task, base in figures["base"].items():
        median = base["median steps"]
        times = [text_of(base["success at horizons"][f"{factor:g}"], percent) for factor in TIMES]
        base_rows.append((task, str(base["horizon"]), "–" if median is None else f"{median:.0f}", *times))
    head = (
        "task",
        "horizon, actions",
        "median steps to success",
        *(f"base within {factor:g} horizons, %" for factor in TIMES),
    )
    rows = []
    for method in sorted(figures["methods"], key=order):
        success = [
            text_of(method["tasks"][task]["success"], percent) if task in method["tasks"] else "–" for task in tasks
        ]
        recovery = [hit for task in method["recovery"].values() if (hit := task.get("failed or disturbed"))]
        hits = sum(own["share"][0] * own["n"] for own in recovery)
        rows.append((
            method["method"], format_budget(method["P"]), ", ".join(map(str, method["seeds"])), *success,
            text_of(method["gain over states"], points, 0.01), text_of(method["gain over seeds"], points, 0.01),
            text_of(method["gain at horizons"]["1.5"], points, 0.01),
            f"{100 * hits / max(sum(own['n'] for own in recovery), 1):.0f}",
        ))  # fmt: skip
    columns = ("method", "P", "seeds", *(f"{task}, %" for task in tasks), "mean gain", "over seeds",
               "gain within 1.5 horizons", "recovered, %")  # fmt: skip
    return f"{table(head, base_rows)}\n\n{table(columns, rows)}"


def order(method: Plain) -> tuple[float, float]:
    """By P, the unlimited ones last, then the better ones first."""
    return (math.inf if method["P"] is None else method["P"], -method["gain over states"][0])


def text_of(values: Sequence[float | None], show: Callable[[Interval], str], scale: float = 1.0) -> str:
    """[estimate, low, high] of the summary in words; a dash where one is unknown."""
    known = [scale * value for value in values if value is not None]
    return show(Interval(*known)) if len(known) == len(values) else "–"


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
    stored = read_results(results / "gpu.jsonl", RunResult)
    taken, plain = stored["place-seed0"], stored["place-seed0-cpu"]
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


def dreams_tables(path: Path, cells: Path) -> str:
    """For docs/speed.md: imagined frames a second, then the seconds of an iteration of practice."""
    measured = read_json(path)
    rows = []
    for dream in measured["dreams"]:
        key = (dream["recipe"], str(dream["pixels"]), str(dream["rows"]), str(dream["sampling_steps"]))
        planned = f"{dream['planned_mb']:,.0f}"
        if "left_out" in dream:
            rows.append((*key, "–", "–", "–", planned))
            continue
        share = f"{100 * dream['share_of_matmul']:.0f}"
        rows.append((*key, f"{dream['frames_per_second']:,.1f}", share, f"{dream['taken_mb']:,.0f}", planned))
    tried = [dream for dream in measured["dreams"] if "left_out" not in dream]
    fast = sum(dream["share_of_matmul"] >= dream["aim_share_of_matmul"] for dream in tried)
    speeds = ", ".join(f"{dtype} {speed:,.0f} GFLOP/s" for dtype, speed in measured["matmul_gflops"].items())
    columns = ("recipe", "pixels", "videos", "steps", "frames/s", "% of matrix products", "MB", "planned, MB")
    phases = []
    for cell in read_results(cells, CellResult).values():
        curves = cell.curves["practice-1"]
        playing, updating = (
            statistics.median(value for _, value in curves[f"seconds_{phase}"]) for phase in ("playing", "updating")
        )
        phases.append((cell.label, cell.machine.cpu, f"{playing:.1f}", f"{updating:.1f}"))
    return "\n\n".join((
        f"{measured['machine']['cpu']}, commit `{measured['commit']}`, matrix products: {speeds}. "
        f"{fast} of the {len(tried)} measured rows reach "
        f"{100 * tried[0]['aim_share_of_matmul']:.0f} % of that.",
        table(columns, rows),
        "Seconds of an iteration, the median over those of a cell of `few-steps`:",
        table(("dream", "machine", "playing", "updating"), phases),
    ))  # fmt: skip


def ratio_tables(speeds: Path) -> str:
    """For docs/speed.md: one way beside another; then memory of processes that share a training."""
    ranks, compiled, latents, fsdp = (
        read_json(speeds / f"{name}.json") for name in ("ranks", "compiled", "latents", "fsdp")
    )
    several = f"{ranks['processes']} processes"
    rows = [
        (f"{row['work']}, {row['counted']}", "one process", row["one_process"], several, row["several"], row["ratio"])
        for row in ranks["ranks"]
    ]
    for row in (dream for dream in compiled["dreams"] if "left_out" not in dream):
        what = f"a chunk of {row['rows']} videos by `{row['recipe']}`, processor seconds"
        rows.append((what, "as it is", row["seconds"], "compiled", row["compiled_seconds"], row["compiled_ratio"]))
    for row in latents["steps"]:
        once, each = row["step_from_latents_seconds"], row["step_encoding_each_frame_seconds"]
        what = f"a step of training {row['denoiser']}, processor seconds"
        rows.append((what, "each frame encoded", each, "latents read", once, row["ratio"]))
    cpus = {found["machine"]["cpu"] for found in (ranks, compiled, latents, fsdp)}
    shown = [(what, f"{one}: {slow:.2f}", f"{other}: {fast:.2f}", f"{ratio:.2f}")
             for what, one, slow, other, fast, ratio in rows]  # fmt: skip
    held = [tuple(f"{row[name]:.0f}" for name in ("processes", "taken_mb", "planned_mb")) for row in fsdp["fsdp"]]
    return "\n\n".join((
        f"One way beside another, on {', '.join(sorted(cpus))}; the aim for two processes is "
        f"{ranks['ranks'][0]['aim_for_two']}:",
        table(("work", "one way, seconds", "the other, seconds", "times as fast"), shown),
        f"A world model with {fsdp['fsdp'][0]['weights_mb']:.0f} MB of weights, trained with `fsdp`:",
        table(("processes", "MB in each", "planned, MB"), held),
    ))  # fmt: skip


def pages() -> dict[Path, str]:
    """Page -> its text, of all pages that show stored results but those of the experiments. Raises UserError where
    results are missing, since published tables would be gone."""
    for name in ("table1", "few-steps", "gpu", "labels", "students", "harness"):
        file = RESULTS / f"{name}.jsonl"
        if not file.exists() or not file.stat().st_size:
            raise UserError(f"{file} holds no results, but pages show them: restore it from a copy.")
    generated = {
        ROOT / "README.md": readme_tables(summary(RESULTS)),
        ROOT / "docs" / "gpu.md": gpu_tables(RESULTS, SPEEDS),
        ROOT / "docs" / "speed.md": "\n\n".join(
            (dreams_tables(SPEEDS / "dreams.json", RESULTS / "few-steps.jsonl"), ratio_tables(SPEEDS))
        ),
        ROOT / "docs" / "import.md": labels.labels_table(read_lines(RESULTS / "labels.jsonl", *labels.NEEDED)),
        ROOT / "experiments" / "docs" / "students.md": students.students_tables(
            read_lines(RESULTS / "students.jsonl", *students.NEEDED)
        ),
        ROOT / "docs" / "serve.md": harness.harness_table(read_lines(RESULTS / "harness.jsonl", *harness.NEEDED)),
    }
    generated |= {ROOT / "docs" / page: sizes_table(SPEEDS / "sizes.json", *names) for page, names in SIZES.items()}
    return {page: with_generated(page, text) for page, text in generated.items()}


if __name__ == "__main__":
    sys.exit(write(pages, "python -m experiments.pages"))
