"""`wmpo bench`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from wmpo.errors import UserError

if TYPE_CHECKING:
    from experiments.cells import Cell


@dataclass(frozen=True)
class BenchCommand:
    """Run an experiment as a grid of cells, method x task x budget x seed, or write its page from the cells.

    Experiments: table1, more-rollouts, efficiency, table2, lifelong, ablations, tuning, tuning-more, trust,
    self-correction. A cell whose JSON is there is skipped, so the same command goes on after a stop; what cells have in
    common is made once. A cell computes on one thread, so that it gives the same numbers alone as among others.
    """

    name: tyro.conf.Positional[str]
    """Which experiment."""
    out: Path = Path("experiments/results/bench")
    """Folder of the results: OUT/NAME/CELL.json, with the fields of a run's result."""
    runs: Path = Path("runs/bench")
    """Folder of the runs themselves, with weights and episodes; needed to go on, not to report."""
    docs: Path = Path("experiments/docs")
    """Folder of the pages."""
    tasks: tuple[str, ...] = ()
    """These tasks, in place of those of the experiment."""
    seeds: tuple[int, ...] = ()
    """These seeds, in place of those of the experiment."""
    workers: int = 1
    """Cells at a time, each on one core."""
    cell: str = ""
    """Run only the cell of this name, in this process, whether its result is there or not; with --runs elsewhere it is
    made again from nothing, and gives the same numbers on the same machine."""
    list: bool = False
    """Name the cells, and say which are there."""
    report: bool = False
    """Write DOCS/NAME.md and its plots from the cells that are there."""
    smoke: bool = False
    """The smallest size, minutes: shows that it works, measures nothing. Kept apart, as NAME-smoke."""

    def execute(self) -> None:
        from experiments.cells import result_file
        from experiments.experiments import experiment_named
        from experiments.grid import pending, run_grid
        from experiments.page import write_page

        from wmpo.envs.tabletop.tasks import tasks_named

        experiment = experiment_named(self.name)
        for task in self.tasks:
            tasks_named(task)
        if self.workers < 1:
            raise UserError(f"--workers is {self.workers}; it must be at least 1.")
        if any(seed < 0 for seed in self.seeds):
            raise UserError(f"Seeds must be 0 or more, not {min(self.seeds)}.")
        if sum((self.list, self.report, bool(self.cell))) > 1:
            raise UserError("--list, --report and --cell are three different things to do: give one of them.")
        name = f"{self.name}-smoke" if self.smoke else self.name
        results = self.out / name
        cells = experiment.cells(self.tasks, self.seeds, self.smoke)
        if self.list:
            missing = {cell.id for cell in pending(cells, results)}
            for cell in cells:
                print(f"{'to run' if cell.id in missing else 'there '}  {cell.id}")
        elif self.report:
            must_take_files(self.docs)
            print(f"Page: {write_page(experiment, name, cells, results, self.docs)}")
        elif self.cell:
            chosen = next((cell for cell in cells if cell.id == self.cell), None)
            if chosen is None:
                raise UserError(f"There is no cell {self.cell!r} in {self.name}: see wmpo bench {self.name} --list.")
            must_take_files(results, self.runs)
            self._run(chosen, result_file(results, chosen))
        else:
            must_take_files(results, self.runs)
            same = ["--out", str(self.out), "--runs", str(self.runs), *(["--smoke"] if self.smoke else [])]
            which = [text for key in ("tasks", "seeds") if getattr(self, key)
                     for text in (f"--{key}", *map(str, getattr(self, key)))]  # fmt: skip
            run_grid(
                cells,
                results,
                self.runs / "logs" / name,
                lambda cell: [sys.executable, "-m", "wmpo.cli", "bench", self.name, *same, *which, "--cell", cell.id],
                self.workers,
            )

    def _run(self, cell: Cell, file: Path) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # else the number of cores would change the last digits
        import torch
        from experiments.play import play

        from wmpo.cli.opening import open_run

        torch.set_num_threads(1)
        result = play(cell, self.runs, open_run)
        result.save(file)
        rates = ", ".join(f"{name} {100 * rate.value:.1f} %" for name, rate in result.summary().rates.items())
        print(f"{file}: {rates}")


def must_take_files(*folders: Path) -> None:
    """Before hours of work, not after them."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} can't be a folder: {error.strerror}. Choose another one.") from None
        if not os.access(folder, os.W_OK):
            raise UserError(f"Nothing may be written into {folder}: choose another folder.")
