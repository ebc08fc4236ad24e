"""Running many cells side by side, each in a process of its own; whatever stops them, the same command goes on."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from experiments.cells import Cell, pending, read_cells
from wmpo.errors import UserError

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
POLL = 0.2  # seconds between two looks at the processes


def run_grid(
    cells: Sequence[Cell],
    file: Path,
    logs: Path,
    command: Callable[[Cell], list[str]],
    workers: int,
    info: Callable[[str], None] = print,
    also: Sequence[Path] = (),
) -> None:
    """Run the cells that neither `file` nor those of `also` have a result of, `workers` at a time.

    `command` is what runs one cell and adds its result to `file`; what it prints goes to `logs`. A cell that fails does
    not stop the others; the first one is named by the UserError at the end.
    """
    waiting = pending(cells, file, *also)
    info(f"{len(cells) - len(waiting)} of {len(cells)} cells are there; {len(waiting)} to run, {workers} at a time.")
    if waiting:
        info(f"What they print, stage by stage: {logs}")
    running: dict[str, tuple[Cell, subprocess.Popen[bytes]]] = {}
    failed: list[Cell] = []
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(lambda: terminate([process for _, process in running.values()]))
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop(0)
                if not pending([cell], file, *also):  # another launch has run it meanwhile
                    info(f"there by now: {cell.id}")
                    continue
                with (logs / f"{cell.id}.log").open("ab") as log:
                    process = subprocess.Popen(
                        command(cell), stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **ONE_THREAD}
                    )
                running[cell.id] = (cell, process)
                info(f"begun: {cell.id}")
            for name, (cell, process) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    good = process.returncode == 0 and name in read_cells(file)
                    failed += [] if good else [cell]
                    info(f"{'done' if good else 'FAILED'}: {name}; {len(waiting)} waiting, {len(running)} running")
            time.sleep(POLL)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} cells failed, the first one is {failed[0].id}: see "
            f"{logs / f'{failed[0].id}.log'}, then run the same command again."
        )


def terminate(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask them to stop, which lets them save what they have, and wait for it."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
