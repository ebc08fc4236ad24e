"""`wmpo run` and `wmpo report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import tyro

from wmpo.cli.parse import continuing, parse, recipe_with_families
from wmpo.config import Recipe
from wmpo.errors import UserError, require_between
from wmpo.recipes import RECIPES, recipe_named

if TYPE_CHECKING:
    from wmpo.report.results import RunResult
    from wmpo.run import Run

Options = TypeVar("Options", bound="WithRecipe")


class WithRecipe(Protocol):
    def __init__(self, recipe: Recipe) -> None: ...


def parse_with_recipe(options: type[Options], args: Sequence[str], command: str) -> Options:
    """The first argument names the recipe, whose values are the defaults of all options."""
    if not args:
        raise UserError(f"Which recipe? wmpo {command} {'|'.join(RECIPES)}")
    if args[0].startswith("-"):
        if args[0] not in ("-h", "--help"):
            raise UserError(f"Name the recipe before its options, as in: wmpo {command} place --seed 1.")
        return parse(options, args, f"wmpo {command} RECIPE", options(RECIPES["place"]))
    return parse(
        options, args[1:], f"wmpo {command} {args[0]}", options(recipe_with_families(recipe_named(args[0]), args[1:]))
    )


@dataclass(frozen=True)
class RunCommand:
    """The whole loop, from nothing to a report. The same command continues a run that was stopped."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; default runs/RECIPE-seedN."""
    ray: str = ""
    """Let the processes of a Ray cluster simulate and dream (docs/cluster.md): local starts one on this machine, auto
    takes the one that runs on it, HOST:PORT another."""
    ray_actors: int = 0
    """How many of them, each with env.workers cores, and a GPU where the run uses one; 0: as many as there is room
    for."""

    @classmethod
    def parse(cls, args: Sequence[str]) -> RunCommand:
        return parse_with_recipe(cls, args, "run")

    def execute(self) -> None:
        from wmpo.algorithm import optimise
        from wmpo.opening import open_run
        from wmpo.report.results import RunResult
        from wmpo.run import DONE

        folder = self.out or Path("runs") / f"{self.recipe.name}-seed{self.recipe.seed}"
        require_between("--ray-actors", self.ray_actors, 0, 4096)
        if self.ray_actors and not self.ray:
            raise UserError("--ray-actors does nothing without --ray: say where the Ray cluster is.")
        with open_run(self.recipe, folder, ray=self.ray, ray_actors=self.ray_actors) as run:
            if (folder / DONE).exists():  # which is written last
                run.log.info(f"{folder} is finished; wmpo report makes what is missing, and measures its dream again")
                result = RunResult.load(folder / "result.json")
            else:
                run.log.info(f"{folder}: on {run.device}")
                result = optimise(run)
            tell_result(run, result)


def tell_result(run: Run, result: RunResult) -> None:
    """What a finished run is worth, in the terminal."""
    from wmpo.report.tables import terminal_table
    from wmpo.report.words import headline

    run.log.console.print(terminal_table(result))
    run.log.info(headline(result))
    run.log.info(f"Report: {run.folder / 'report.html'}")


@dataclass(frozen=True)
class ReportCommand:
    """Measure the dream of a finished run again, and rewrite its result.json and report.html.

    Where the run names a class of yours, add --allow module:Class.
    """

    folder: tyro.conf.Positional[Path]
    """Folder of the run."""

    def execute(self) -> None:
        from wmpo.algorithm import optimise
        from wmpo.data.store import EpisodeStore
        from wmpo.envs import RECORDED
        from wmpo.envs.unreachable import Unreachable
        from wmpo.opening import load_recipe, open_run
        from wmpo.recordings import practise_recorded
        from wmpo.run import DONE

        recipe = load_recipe(self.folder)
        recorded = recipe.env.family == RECORDED
        if not (self.folder / (DONE if recorded else "result.json")).exists():  # a round may have been added
            raise UserError(
                f"The run in {self.folder} is not finished: continue it with {continuing(recipe, self.folder)}"
            )
        env = Unreachable(EpisodeStore.open(self.folder / "episodes").spec) if recorded else None
        with open_run(recipe, self.folder, env=env) as run:
            tell_result(run, practise_recorded(run) if recorded else optimise(run))  # only the report is made
