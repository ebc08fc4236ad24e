"""`python -m experiments NAME`: run an experiment, or write its page."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from experiments.cells import Cell, pending, read_cells
from experiments.grids import EXPERIMENTS, experiment_named, recipe_for
from experiments.launch import run_grid
from experiments.page import write_page
from experiments.store import write_result
from experiments.summary import summary
from experiments.writable import check_writable
from wmpo.cli.parse import program
from wmpo.data.initial_states import check_numbers
from wmpo.errors import UserError


@dataclass(frozen=True)
class Options:
    """Run an experiment as a grid of cells, method x task x budget x seed, or write its page from stored results.

    `summary` in place of a name prints all headline figures as one JSON, from stored results alone. A cell whose result
    is stored is skipped, so the same command goes on after a stop; what cells have in common is made once. A cell
    computes on one thread, so that it gives the same numbers alone as among others.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=f"One of {', '.join(EXPERIMENTS)}; or summary.")]
    out: Path = Path("experiments/results")
    """Folder of the results: OUT/NAME.jsonl, a line per cell (see experiments/store.py)."""
    runs: Path = Path("runs/experiments")
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
    """Name the cells, and whether each has a result."""
    report: bool = False
    """Write DOCS/NAME.md and its plots from the results that are there."""
    smoke: bool = False
    """The smallest size, minutes: shows that it works, measures nothing. Kept apart, as NAME-smoke."""

    def execute(self) -> int:
        if not self.out.is_dir() and (self.out.exists() or self.name == "summary"):
            raise UserError(f"{self.out} is no folder: give that of the results by --out.")
        if self.name == "summary":
            if replace(self, out=Options.out) != Options(self.name):
                raise UserError("summary takes --out alone: it tells all that is stored there.")
            print(json.dumps(summary(self.out), indent=1))
            return 0
        experiment = experiment_named(self.name)
        for task in self.tasks:
            recipe_for(task, self.smoke).env.check()
        if self.workers < 1:
            raise UserError(f"--workers is {self.workers}; it must be at least 1.")
        for seed in self.seeds:
            check_numbers(seed, 1, 0, "--seeds")
        if self.smoke and max(len(self.tasks), len(self.seeds)) > 1:
            raise UserError("The smallest size is of one task with one seed: give no more of them.")
        if sum((self.list, self.report, bool(self.cell))) > 1:
            raise UserError("--list, --report and --cell are three different things to do: give one of them.")
        name = f"{self.name}-smoke" if self.smoke else self.name
        file, *also = files = experiment.files(self.out, name)
        cells = experiment.cells(self.tasks, self.seeds, self.smoke)
        if self.list:
            missing = {cell.id for cell in pending(cells, *files)}
            for cell in cells:
                print(f"{'to run' if cell.id in missing else 'there '}  {cell.id}")
        elif self.report:
            check_writable(self.docs)
            print(f"Page: {write_page(experiment, name, cells, files, self.docs)}")
        elif self.cell:
            chosen = next((cell for cell in cells if cell.id == self.cell), None)
            if chosen is None:
                hint = f"see python -m experiments {self.name} --list."
                raise UserError(f"There is no cell {self.cell!r} in {self.name}: {hint}")
            check_writable(self.out, self.runs)
            read_cells(file)  # which its result is added to: a damaged one is told now
            self.run(chosen, file)
        else:
            check_writable(self.out, self.runs)
            run_grid(cells, file, self.runs / "logs" / name, self.command, self.workers, also=also)
        return 0

    def command(self, cell: Cell) -> list[str]:
        """What runs one cell in a process of its own."""
        chosen = [
            text
            for key in ("tasks", "seeds")
            if getattr(self, key)
            for text in (f"--{key}", *map(str, getattr(self, key)))
        ]
        same = ["--out", str(self.out), "--runs", str(self.runs), *(["--smoke"] if self.smoke else [])]
        return [sys.executable, "-m", "experiments", self.name, *same, *chosen, "--cell", cell.id]

    def run(self, cell: Cell, file: Path) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # else the number of cores would change the last digits
        import torch

        from experiments.run_cell import run_cell

        torch.set_num_threads(1)
        result = run_cell(cell, self.runs)
        write_result(file, cell.id, result)
        rates = ", ".join(f"{name} {100 * rate.value:.1f} %" for name, rate in result.summary().rates.items())
        print(f"{file}, {cell.id}: {rates}")


def stop(*_: object) -> None:
    """Being asked to end is as good as Ctrl-C."""
    raise KeyboardInterrupt


def main(args: Sequence[str] | None = None) -> int:
    """The exit status, as that of `wmpo`: bad input ends with one sentence and 2."""
    if args is None:
        args = sys.argv[1:]
        signal.signal(signal.SIGTERM, stop)
    return program(Options, Options.execute, "python -m experiments", args)


if __name__ == "__main__":
    sys.exit(main())
