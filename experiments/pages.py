"""The generated parts of the documentation: `python -m experiments.pages` rewrites them.

Explanations are the docstrings below the fields, where `--help` takes them from too.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.cells import CellResult, result_of
from experiments.experiments import EXPERIMENTS
from experiments.pairs import Pair, at, contrasted, gain, gain_over_seeds, groups, not_better, over_base, places, rate
from experiments.tables import seeds_told, table
from wmpo.cli import COMMANDS
from wmpo.config import Recipe
from wmpo.io.files import read_json
from wmpo.report.results import RunResult
from wmpo.report.words import percent, points
from wmpo.training.metrics import metrics_page

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
SPEED = 25  # TFLOP/s, at which published policies are planned: 40 % of an H100's 67 in float32
SIZES = {"openvla_oft.md": ("OpenVLA-OFT",), "flow_policies.md": ("SmolVLA", "pi0")}
BESIDES = (
    " For more demonstrations the expert tries until as many have succeeded. WMPO is also given 256 first pictures to "
    "practise from, where nothing is done. Seeds 0 and 1 were seen when its settings were chosen, seed 2 was not."
)
PAPER = re.compile(r"\s*\[((?:paper|code)[^\]]*)\]")


def field_docs(cls: type) -> dict[str, str]:
    """Field -> the docstring below it, in one line."""
    tree = ast.parse(inspect.getsource(importlib.import_module(cls.__module__)))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    found = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            value = text.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[field.target.id] = " ".join(value.value.split())
    return found


def default_of(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else MISSING


def settings_rows(config: Any, prefix: str = "") -> list[tuple[str, Any, str, str]]:
    """(dotted field, default, value in the paper or its code, explanation) of nested dataclasses."""
    docs = field_docs(type(config))
    rows = []
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            rows += settings_rows(value, f"{prefix}{field.name}.")
        else:
            text = docs.get(field.name, "")
            match = PAPER.search(text)
            rows.append((f"{prefix}{field.name}", value, match[1] if match else "", PAPER.sub("", text)))
    return rows


def settings_table() -> str:
    lines = ["| setting | default | paper or its code | what it is |", "|---|---|---|---|"]
    for name, value, paper, text in settings_rows(Recipe()):
        lines.append(f"| `{name}` | {shown(value)} | {cell(paper)} | {cell(text)} |")
    return "\n".join(lines)


def cli_page() -> str:
    """`docs/cli.md`."""
    parts = [
        "# The commands",
        "This page is generated from the commands' own `--help`. Settings named by a section, such as `--grpo.*`, are\n"
        "listed in [settings.md](settings.md).",
    ]
    for name, command in COMMANDS.items():
        options = getattr(importlib.import_module(f"wmpo.cli.{command.module}"), command.name)
        docs = field_docs(options)
        parts += [f"## wmpo {name}", inspect.cleandoc(options.__doc__ or "")]
        rows = [option_row(field, docs) for field in fields(options)]
        if rows:
            parts.append("\n".join(["| option | default | what it is |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def option_row(field: Field[Any], docs: dict[str, str]) -> str:
    positional = "Positional" in str(field.type) or field.name == "recipe"
    name = field.name.upper() if positional else f"--{field.name.replace('_', '-')}"
    default = default_of(field)
    if field.name == "recipe":
        return "| `RECIPE` | must be given | One of `wmpo recipes`; every setting of it is an option. |"
    if is_dataclass(default):
        return f"| `{name}.*` | see [settings.md](settings.md) | The settings of this section. |"
    given = "must be given" if default is MISSING else shown(default)
    return f"| `{name}` | {given} | {cell(docs.get(field.name, ''))} |"


def shown(value: Any) -> str:
    """A default, as a reader would write it."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "–"
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def runs_in(folder: Path) -> dict[Path, RunResult]:
    """The results of whole runs; benchmarks' numbers lie there too."""
    files = [path for path in sorted(folder.glob("*.json")) if "recipe" in read_json(path)]
    found = {path: RunResult.load(path) for path in files}
    return {path: run for path, run in found.items() if any(name.startswith("wmpo") for name in run.policies)}


def summary_table(folder: Path) -> str:
    """For README: one row per recipe, over the seeds of its runs."""
    runs = list(runs_in(folder).values())
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
    cells = (result_of(cell, folder / "bench" / "table1") for cell in EXPERIMENTS["table1"].cells())
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

    def told(label: str, spent: int) -> tuple[str, str]:
        pairs = there.get((label, spent), [])
        return (points(gain(pairs)), seeds_told(gain_over_seeds(pairs))) if pairs else ("–", "–")

    labels.sort(key=lambda label: -gain(there[label, budget]).value)
    rows = [(label, *(text for spent in budgets for text in told(label, spent))) for label in labels]
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
        if told_even := "; ".join(f"{label} on {', '.join(where)}" for label, where in even.items() if where):
            text += f" From {spent} it is not better than {told_even}."
    for label, cells in ((label, found[label, spent]) for label, spent in there if not spent):
        episodes = max(result.interactions["rollouts"].episodes for result in cells)
        text += f" {label} gains {told(label, 0)[0]} from {episodes}."
    return f"{text}\n\n{table(head, rows)}"


def results_page(folder: Path) -> str:
    """`docs/results.md`, from the runs in `folder`, and the evaluations in `folder/evaluations`."""
    runs = runs_in(folder)
    parts = [
        "# Measured results",
        "Made by `wmpo run place --seed 1`, say, and copied from `result.json` in its folder. Success is real,\n"
        "greedy, of the last policy, on held-out initial states, with 95 % Wilson intervals; gains are paired\n"
        "differences in points with 95 % bootstrap intervals. A run of several tasks has a row for each of them too.\n"
        "Every file holds its whole recipe: defaults have changed between commits (CHANGELOG.md).\n"
        "This page is generated by `python -m experiments.pages`.",
        runs_table(runs),
        "## How true the dreams are",
        "Imagined against real frames after the same actions, at the end of the longest episodes, beside the first\n"
        "frame itself (still). State: root mean square error in standard deviations, over all dimensions.",
        fidelity_table(runs),
        "## Changed scenes and sentences",
        "The policies of a run above, from the same initial states, under a disruption of `wmpo evaluate`.",
        disruptions_table(folder / "evaluations"),
    ]
    return "\n\n".join(parts) + "\n"


def runs_table(runs: dict[Path, RunResult]) -> str:
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
    for path, result in runs.items():
        gap, agreement = result.gaps.get(result.final), result.agreement
        rows.append(
            [
                f"[{path.stem}](../results/{path.name})",
                *success_cells(result),
                f"{gap.imagined:.0%}" if gap else "–",
                f"{agreement.accuracy:.2f}, {agreement.f1:.2f}" if agreement else "–",
                str(result.interactions["rollouts"].episodes),
                f"{sum(stage.seconds for stage in result.stages.values()) / 60:.0f}",
                f"`{result.commit}`",
            ]
        )
        for task in result.tasks:
            own = [f"{path.stem}: {task}", *success_cells(result.of_task(task))]
            rows.append(own + ["–"] * (len(columns) - len(own)))
    return table(columns, rows)


def fidelity_table(runs: dict[Path, RunResult]) -> str:
    rows = []
    for path, result in runs.items():
        last = max((at.frames for at in result.fidelity), default=0)
        rows += [
            (path.stem, at.camera, str(at.frames), f"{at.psnr:.1f}", f"{at.still_psnr:.1f}", f"{at.ssim:.2f}")
            for at in result.fidelity
            if at.frames == last
        ]
        if result.state_fidelity:
            state = result.state_fidelity[-1]
            rows.append((path.stem, "state", str(state.frames), f"{state.rms:.2f}", f"{state.still_rms:.2f}", "–"))
    return table(("run", "camera", "frames", "PSNR, dB", "still", "SSIM"), rows)


def disruptions_table(folder: Path) -> str:
    rows = []
    for path in sorted(folder.glob("*.json")):
        result = RunResult.load(path)
        for name, own in {"": result, **{f": {task}": result.of_task(task) for task in result.tasks}}.items():
            disruption = own.policies["base"].disruption
            rows.append((f"{path.stem}{name}", disruption, *success_cells(own)[:-1]))
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


def gpu_tables(results: Path) -> str:
    """For docs/gpu.md: the main job with and without a GPU, and single steps on it beside what was planned."""
    taken, plain = RunResult.load(results / "gpu" / "place-seed0.json"), RunResult.load(results / "place-seed0.json")
    gpu = f"{taken.machine.gpu}, {taken.machine.cores} cores"
    seconds = [
        (name, f"{plain.stages[name].seconds:.0f}", f"{stage.seconds:.0f}", f"{stage.peak_gpu_memory_mb / 1000:.1f}")
        for name, stage in taken.stages.items()
    ]
    outcome = [
        (where, *success_cells(run), f"`{run.commit}`")
        for where, run in ((f"{plain.machine.cores} cores of {plain.machine.cpu}", plain), (gpu, taken))
    ]
    measured = read_json(results / "gpu" / "plan.json")
    columns = ("networks", "step", "planned, GB", "taken, GB", "planned, TFLOP", "milliseconds", "TFLOP/s",
               "hours in a run")  # fmt: skip
    sizes = {size["policy"]: size["stages"] for size in read_json(results / "sizes.json")["sizes"]}
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


def with_generated(page: str, text: str) -> str:
    """The page with `text` between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def write(docs: Path) -> None:
    (docs / "metrics.md").write_text(metrics_page(), encoding="utf-8")
    (docs / "cli.md").write_text(cli_page(), encoding="utf-8")
    (docs / "results.md").write_text(results_page(docs.parent / "results"), encoding="utf-8")
    results = docs.parent / "results"
    generated = {docs / "settings.md": settings_table(), docs.parent / "README.md": summary_table(results)}
    generated |= {docs / page: sizes_table(results / "sizes.json", *names) for page, names in SIZES.items()}
    generated[docs / "gpu.md"] = gpu_tables(results)
    for page, text in generated.items():
        page.write_text(with_generated(page.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).resolve().parents[2] / "docs")
