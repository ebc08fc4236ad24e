"""A cell of a grid: one method at one setting, one task, one seed; and what was measured of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from experiments.baselines.methods import BaselineConfig
from experiments.store import flat, read_results
from wmpo.config import Recipe
from wmpo.errors import UserError
from wmpo.io.plain import to_plain
from wmpo.report.results import BASE, CONTROL, IMITATED, Fidelity, RunResult, task_of

WMPO = "wmpo"  # the method itself, beside `experiments.baselines.methods.METHODS`


@dataclass(frozen=True)
class Cell:
    label: str
    """What tables call it: the method, or the setting that was changed."""
    method: str
    """wmpo, or a name of `experiments.baselines.methods.METHODS`."""
    recipe: Recipe
    settings: BaselineConfig = field(default_factory=BaselineConfig)
    limited: bool = True
    """Whether it keeps to P real rollouts."""
    measures: tuple[str, ...] = ()
    """What is measured beside success: see `experiments.run_cell`."""

    @property
    def budget(self) -> int | None:
        """P, of all rounds together; None for no limit."""
        return self.recipe.collect.episodes * self.recipe.rounds if self.limited else None

    @property
    def id(self) -> str:
        """Names the cell within its experiment: wmpo-push-P128-seed0."""
        label = re.sub(r"[^a-z0-9.]+", "-", self.label.lower()).strip("-")
        budget = "inf" if self.budget is None else self.budget
        return f"{label}-{task_of(self.recipe)}-P{budget}-seed{self.recipe.seed}"

    @property
    def folder(self) -> str:
        """Of the run: cells of any experiment that train alike share it, whatever else they measure."""
        settings = {} if self.method == WMPO else to_plain(self.settings)
        name = f"{task_of(self.recipe)}-seed{self.recipe.seed}-{self.method}"
        return f"{name}-{digest({'recipe': plain_recipe(self.recipe), 'settings': settings})}"


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """All that changes numbers."""
    plain: dict[str, Any] = to_plain(recipe)
    del plain["env"]["workers"], plain["curves"]
    return plain


def agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two plain configurations are equal wherever both have a setting: code may have learned new ones since."""
    mine, theirs = flat(one), flat(other)
    return all(mine[name] == theirs[name] for name in mine.keys() & theirs.keys())


def used_by(method: str, plain: Mapping[str, Any]) -> dict[str, Any]:
    """A plain recipe without settings that a method has no use for: those that only practice follows from."""
    if method in (WMPO, "upper_bound"):
        return dict(plain)
    grpo = {name: value for name, value in plain["grpo"].items() if name == "n_initial_states"}  # online GRPO's, too
    return {**{name: value for name, value in plain.items() if name != "self_imitation"}, "grpo": grpo}


def digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]


Config = TypeVar("Config")


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A recipe, or other nested dataclass, with other values of some dotted settings."""
    for name, value in changes.items():
        config = _changed(config, name.split("."), value)
    return config


def _changed(config: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return replace(config, **{name: _changed(getattr(config, name), rest, value) if rest else value})


@dataclass(frozen=True)
class DreamDisagreement:
    """Whether a second dream of the same actions, with other noise, tells which verdicts to doubt."""

    auroc: float
    """How well the difference of the two scores tells wrong verdicts from right ones; 0.5 is chance, NaN unknown."""
    precision: float
    """Share of the imagined successes that were real."""
    precision_kept: float
    """The same without those that the second dream does not confirm."""
    kept: float
    """Share of the imagined successes that it confirms."""
    psnr: float = float("nan")
    """Of one dream's last frames beside the other's, in dB: how little chance there is in a dream."""


@dataclass
class CellResult(RunResult):
    """A run's result, and what experiments measure on top."""

    label: str = ""
    method: str = ""
    budget: int | None = None
    """P, of all rounds together; None for no limit."""
    settings: dict[str, Any] | None = None
    """What a baseline was set to beside the recipe; None for the method itself."""
    dream_calibration: float | None = None
    """Expected calibration error of the reward model's scores on imagined replays of real episodes."""
    doubt: DreamDisagreement | None = None

    @property
    def turns(self) -> list[str]:
        """The policies that the method left round by round; disrupted evaluations have names of two words."""
        return [name for name in self.policies if name not in (BASE, IMITATED, CONTROL) and " " not in name]

    def after(self, rounds: int) -> str:
        """The policy after so many rounds, the base after none; the last one where practice ended before."""
        return [BASE, *self.turns][min(rounds, len(self.turns))]

    @property
    def final(self) -> str:
        """The policy that the method ended with."""
        return self.turns[-1]

    @property
    def fidelity_at_the_end(self) -> Fidelity:
        """Of the first camera, which the reward model watches, at the longest horizon."""
        return [at for at in self.fidelity if at.camera == self.fidelity[0].camera][-1]

    def has(self, measure: str) -> bool:
        """Whether it was measured beside success: see `experiments.run_cell`."""
        return self.final in self.gaps if measure == "imagination" else any(" " in name for name in self.policies)

    def check(self, where: str) -> None:
        super().check(where)
        if BASE not in self.policies or not self.turns:
            raise UserError(f"{where}: it needs the outcomes of base, and of the policy that its method left.")

    @staticmethod
    def of(cell: Cell, result: RunResult) -> CellResult:
        settings = None if cell.method == WMPO else to_plain(cell.settings)
        return CellResult(**vars(result), label=cell.label, method=cell.method, budget=cell.budget, settings=settings)


def results_file(out: Path, experiment: str) -> Path:
    return out / f"{experiment}.jsonl"


def read_cells(file: Path, *others: Path) -> dict[str, CellResult]:
    """Cell's id -> what was measured; what `file` lacks is looked for in other files."""
    found: dict[str, CellResult] = {}
    for path in (file, *others):
        found = {**read_results(path, CellResult), **found}
    return found


def result_of(cell: Cell, stored: Mapping[str, CellResult]) -> CellResult | None:
    """What has been measured with the cell's settings, all of its measures; settings that are newer than the result are
    not compared, nor those that the method has no use for."""
    found = stored.get(cell.id)
    if found is None or not all(map(found.has, cell.measures)):
        return None
    recipes = (used_by(cell.method, recipe) for recipe in (found.recipe, plain_recipe(cell.recipe)))
    if not agree(*recipes):
        return None
    return found if found.settings is None or agree(found.settings, to_plain(cell.settings)) else None


def pending(cells: Sequence[Cell], *files: Path) -> list[Cell]:
    """The cells without a result in any of the files, or with one of other settings."""
    stored = read_cells(*files)
    return [cell for cell in cells if result_of(cell, stored) is None]
