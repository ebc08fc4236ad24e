"""Running many cells side by side, each in a process of its own; whatever stops them, the same command goes on."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from experiments.cells import Cell, result_file, result_of
from wmpo.errors import UserError

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
LOOK = 0.2  # seconds between two looks at the processes


def pending(cells: Sequence[Cell], results: Path) -> list[Cell]:
    """The cells without a result, or with one of other settings."""
    return [cell for cell in cells if result_of(cell, results) is None]


def run_grid(
    cells: Sequence[Cell],
    results: Path,
    logs: Path,
    command: Callable[[Cell], list[str]],
    workers: int,
    say: Callable[[str], None] = print,
) -> None:
    """Run the pending cells, `workers` at a time. A cell that fails does not stop the others, but is told at the end.

    `command` is what runs one cell and writes its result; what it prints goes to `logs`.
    """
    waiting = pending(cells, results)
    say(f"{len(cells) - len(waiting)} of {len(cells)} cells are there; {len(waiting)} to run, {workers} at a time.")
    if waiting:
        say(f"What they print, stage by stage: {logs}")
    running: dict[str, tuple[Cell, subprocess.Popen[bytes]]] = {}
    failed: list[Cell] = []
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(lambda: end([process for _, process in running.values()]))
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop(0)
                with (logs / f"{cell.id}.log").open("ab") as log:
                    process = subprocess.Popen(
                        command(cell), stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **ONE_THREAD}
                    )
                running[cell.id] = (cell, process)
                say(f"begun: {cell.id}")
            for name, (cell, process) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    good = process.returncode == 0 and result_file(results, cell).exists()
                    failed += [] if good else [cell]
                    say(f"{'done' if good else 'FAILED'}: {name}; {len(waiting)} waiting, {len(running)} running")
            time.sleep(LOOK)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} cells failed, the first one is {failed[0].id}: see "
            f"{logs / f'{failed[0].id}.log'}, then run the same command again."
        )


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask them to stop, which lets them save what they have, and wait for it."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
