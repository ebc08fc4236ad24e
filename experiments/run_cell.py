"""Running one cell. What cells have in common is made once, in folders of its own, and shared by hard links.

    base      demonstrations, the base policy and its evaluation
    world     base, and the world model before it has seen the policy       rollouts   base, and P real rollouts
    dream     both, and the aligned world model and the reward model

A level depends on a part of the recipe only, and its folder is named after that part. A method's run begins with all
files of its level and goes on as any run does: a stage whose result is there is skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from experiments.baselines.methods import improve
from experiments.cells import WMPO, Cell, CellResult, DreamDisagreement, changed, digest, plain_recipe
from experiments.store import file_lock
from wmpo.algorithm import (
    build_world,
    collect,
    demonstrations,
    evaluate_policy,
    imitate,
    model_success,
    model_the_world,
    optimise,
    pretrain_world_model,
    video_clips,
)
from wmpo.config import Recipe
from wmpo.data.cache import FrameCache
from wmpo.envs import make_env, task_names
from wmpo.evaluate import evaluate
from wmpo.imagination import Replay, replay
from wmpo.io.files import read_json, write_json
from wmpo.io.plain import from_plain, to_plain
from wmpo.losses.verdicts import auroc, expected_calibration_error
from wmpo.opening import open_run
from wmpo.policies import load_policy
from wmpo.report.measure import agreement, gap, imagined_success, reward_quality
from wmpo.report.results import BASE, Gap, PolicyResult, RunResult, task_of
from wmpo.rewards import load_reward_model
from wmpo.run import Purpose, Run, is_shown
from wmpo.training.log import read_stages
from wmpo.types import Episode
from wmpo.world_models import load_world_model
from wmpo.world_models.metrics import psnr

Found = TypeVar("Found")
PARENTS = {"base": (), "world": ("base",), "rollouts": ("base",), "dream": ("rollouts", "world")}
BASE_PARTS = ("seed", "device", "env", "demonstrations", "policy", "evaluate")
PARTS = {
    "base": BASE_PARTS,
    "world": (*BASE_PARTS, "world_model"),
    "rollouts": (*BASE_PARTS, "collect"),
    "dream": (*BASE_PARTS, "collect", "world_model", "reward"),
}
BEGINS_AT = {WMPO: "dream", "dpo": "rollouts", "filtered_bc": "rollouts"}  # the others begin at base
OWN = {"recipe.json", "result.json", "report.html", "metrics.jsonl", "stages.json", "complete", "tensorboard", "cache"}
LEVELS = ("-mild", "-moderate", "")
DISRUPTIONS = tuple(kind + level for kind in ("position", "background", "texture") for level in LEVELS)


def run_cell(cell: Cell, runs: Path) -> CellResult:
    """Train and measure a cell, or only measure where it has been trained; `runs` holds the folders of all runs."""
    folder = runs / cell.folder
    with file_lock(folder):
        hardlink(prepare(BEGINS_AT.get(cell.method, "base"), cell.recipe, runs), folder)
        with open_run(cell.recipe, folder) as run:
            if (folder / "result.json").exists():
                result = RunResult.load(folder / "result.json")
            else:
                result = optimise(run) if cell.method == WMPO else improve(run, cell.method, cell.settings)
                result.save(folder / "result.json")
            found = CellResult.of(cell, result)
            for measure in cell.measures:
                MEASURES[measure](run, found, lambda level: prepare(level, cell.recipe, runs))
        drop_cache(folder)
    return found


# Levels


def part_of(recipe: Recipe, level: str) -> Recipe:
    """The recipe of a level: what it does not depend on is at its default."""
    part = replace(Recipe(name=level, control=False), **{name: getattr(recipe, name) for name in PARTS[level]})
    if level == "world":  # not aligned yet
        usual = type(part.world_model)()
        names = [name for name in ("align", "align_fraction") if hasattr(usual, name)]
        part = changed(part, {f"world_model.{name}": getattr(usual, name) for name in names})
    return part


def level_folder(recipe: Recipe, level: str) -> str:
    """Named after the settings that the level depends on, so that others may change without making it anew."""
    plain = plain_recipe(part_of(recipe, level))
    return f"{task_of(recipe)}-seed{recipe.seed}-{level}-{digest({name: plain[name] for name in PARTS[level]})}"


def prepare(level: str, recipe: Recipe, runs: Path) -> Path:
    """The folder of a level, made where it isn't there; whoever else needs it waits."""
    folder = runs / level_folder(recipe, level)
    with file_lock(folder):
        if not (folder / "complete").exists():
            for parent in PARENTS[level]:
                hardlink(prepare(parent, recipe, runs), folder)
            with open_run(part_of(recipe, level), folder) as run:
                make(level, run)
            drop_cache(folder)
            (folder / "complete").touch()
    return folder


def make(level: str, run: Run) -> None:
    """What a level adds; the stages of its parents are there and only loaded."""
    demonstrations(run)
    policy = imitate(run)
    if level == "base":
        evaluate_policy(run, policy, BASE)
    elif level == "world":
        shown = run.episodes(lambda record: is_shown(run, record))
        with run.log.stage("world model"):
            model = build_world(run, run.recipe.policy.chunk)
            pretrain_world_model(run, model, video_clips(run, FrameCache(run.store), shown, model))
    elif level == "rollouts":
        collect(run, policy, 1)
    else:
        model_success(run, policy, model_the_world(run, 1), 1)


def hardlink(source: Path, target: Path) -> None:
    """Give `target` every file of `source` that it lacks, without copying: files of a run are replaced, never changed.

    The few that are changed, `OWN`, stay behind; costs are added to the record of costs.
    """
    for place, folders, files in os.walk(source):
        folders[:] = [name for name in folders if name not in OWN]
        here = target / Path(place).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        for name in files:
            if name in OWN or name.startswith(".") or (here / name).exists():
                continue
            try:
                os.link(Path(place) / name, here / name)
            except OSError:  # another file system, or one without links
                shutil.copy2(Path(place) / name, here / f".{name}")
                os.replace(here / f".{name}", here / name)
    write_json(target / "stages.json", {**read_stages(source), **read_stages(target)})


def drop_cache(folder: Path) -> None:
    """Decoded frames are large, and quick to decode again."""
    for store in ("episodes", "evaluation"):
        shutil.rmtree(folder / store / "cache", ignore_errors=True)


# Measures

Levels = Callable[[str], Path]
"""Level -> its folder. What is found of the base policy is kept there, since many cells ask for it."""


def policies_of(run: Run, result: CellResult) -> dict[str, Any]:
    """The base policy and what became of it."""
    names = (BASE, result.final)
    return {name: load_policy(run.folder / "policies" / name).to(run.device) for name in names}


def known(file: Path | None, kind: type[Found], measure: Callable[[], Found]) -> Found:
    """Read from `file` where it is there; else measured, and kept in it. Without a file only measured."""
    if file is not None and file.exists():
        return from_plain(kind, read_json(file), str(file), null_is_nan=True)
    found = measure()
    if file is not None:
        write_json(file, to_plain(found))
    return found


def measure_disruptions(run: Run, result: CellResult, levels: Levels) -> None:
    """Both policies where positions, the background or textures are others."""
    cfg = run.recipe.evaluate
    numbers = run.initial_states("evaluate", cfg.episodes)
    for disruption in DISRUPTIONS:
        with closing(make_env(run.recipe.env, disruption)) as env:

            def measure(policy: Any, env: Any = env, disruption: str = disruption) -> PolicyResult:
                played = evaluate(
                    env, policy, numbers, temperature=cfg.temperature, seed=run.seed(Purpose.EVALUATE),
                    task=task_names(env),
                    time_factor=cfg.time_factor,
                )  # fmt: skip
                return PolicyResult.of(played, cfg.temperature, disruption)

            for name, policy in policies_of(run, result).items():
                file = levels("base") / f"{disruption}.json" if name == BASE else None
                result.policies[f"{name} {disruption}"] = known(file, PolicyResult, partial(measure, policy))


def measure_imagination(run: Run, result: CellResult, levels: Levels) -> None:
    """Both policies in the dream of their P rollouts, from the initial states of the evaluation; and how sound its
    verdicts are on what the final policy really did."""
    recipe, spec, device, dream = run.recipe, run.env.spec, run.device, levels("dream")
    world_model = load_world_model(dream / "world_model-1").to(device)
    reward_model = load_reward_model(dream / "reward_model-1").to(device)

    def measure(policy: Any, episodes: list[Episode]) -> Gap:
        imagined = imagined_success(
            world_model, reward_model, spec, policy, episodes, temperature=recipe.evaluate.temperature,
            stride=recipe.reward.stride, device=device, seed=run.seed(Purpose.MEASURE_IMAGINED),
        )  # fmt: skip
        return gap(imagined, episodes)

    episodes: list[Episode] = []
    for name, policy in policies_of(run, result).items():
        recorded = run.evaluation.episodes(run.evaluation.select(source=name))
        episodes = [episode.first(spec.horizon) for episode in sorted(recorded, key=lambda e: e.initial_state)]
        file = dream / "gap.json" if name == BASE else None
        result.gaps[name] = known(file, Gap, partial(measure, policy, episodes))
    dreams = [
        replay(
            world_model, reward_model, spec, episodes, chunk=recipe.policy.chunk, device=device,
            seed=run.seed(Purpose.MEASURE_REPLAY, i), stride=recipe.reward.stride,
        )
        for i in range(2)
    ]  # fmt: skip
    label = torch.tensor([episode.succeeded for episode in episodes])
    result.reward = reward_quality(reward_model, episodes)
    result.agreement = agreement(dreams[0], reward_model, episodes)
    result.dream_calibration = expected_calibration_error(dreams[0].best_scores().sigmoid(), label)
    result.doubt = doubt(dreams[0], dreams[1], reward_model.threshold, label)


def doubt(first: Replay, second: Replay, threshold: float, label_N: torch.Tensor) -> DreamDisagreement:
    one, other = first.best_scores(), second.best_scores()
    success, confirmed = one > threshold, (one > threshold) & (other > threshold)

    def precision(claimed_N: torch.Tensor) -> float:
        return float(label_N[claimed_N].float().mean()) if claimed_N.any() else float("nan")

    return DreamDisagreement(
        auroc=auroc((one.sigmoid() - other.sigmoid()).abs(), success != label_N),
        precision=precision(success),
        precision_kept=precision(confirmed),
        kept=float(confirmed.sum() / success.sum()) if success.any() else float("nan"),
        psnr=float(psnr(last_frames(first), last_frames(second)).mean()),
    )


def last_frames(dreams: Replay) -> torch.Tensor:
    """(N, C, H, W) of the first camera."""
    frames = [next(iter(episode.images.values()))[-1] for episode in dreams.episodes]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


MEASURES = {"disruptions": measure_disruptions, "imagination": measure_imagination}
