"""What a run records about itself: scalars to JSONL and curves, live progress, time and memory per stage."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wmpo.errors import UserError
from wmpo.io.files import read_json, write_json
from wmpo.io.machine import memory_mb
from wmpo.io.plain import JsonObject
from wmpo.training import ranks
from wmpo.training.curves import CURVES, Curves

PLAIN_SECONDS = 10.0


class ProgressBar:
    """Handed out by `RunLog.progress`: call `update` as the work advances."""

    def __init__(self, name: str, total: int, console: Console, live: Progress | None) -> None:
        self.name, self.total, self.done, self.text = name, total, 0, ""
        self._console, self._live = console, live
        self._task = live.add_task(name, total=total, text="") if live else None
        self._began = self._printed = time.monotonic()
        self._base = 0

    def update(self, advance: int = 1, text: str = "") -> None:
        self.done += advance
        self.text = text or self.text
        if self._live is not None and self._task is not None:
            self._live.update(self._task, advance=advance, text=self.text)
        elif time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._print()

    def skip(self, done: int) -> None:
        """Work that an earlier run has done already: it does not count towards the speed."""
        self.done = self._base = done
        if self._live is not None and self._task is not None:
            self._live.reset(self._task, completed=done, total=self.total, text=self.text)

    def _print(self) -> None:
        self._printed = time.monotonic()
        seconds = self._printed - self._began
        fresh = self.done - self._base
        left = ""
        if fresh > 0 and self.done < self.total:
            left = f", {clock(seconds / fresh * (self.total - self.done))} left"
        line = f"{self.name}: {self.done}/{self.total}{left}  {self.text}".rstrip()
        self._console.print(line, highlight=False, markup=False)


class RunLog:
    """Writes below `folder`: metrics.jsonl, stages.json, and curves of the kind that is named, which are told the
    settings in `config`. `quiet` silences the terminal only.

    Of several ranks the first one logs, and the others say nothing.
    """

    def __init__(
        self, folder: Path, quiet: bool = False, curves: str = "tensorboard", config: JsonObject | None = None
    ) -> None:
        self.folder, self.kind, self.config = Path(folder), curves, config or {}
        self.writes = ranks.rank() == 0
        self.quiet = quiet = quiet or not self.writes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.console = Console(quiet=quiet, file=sys.stdout or open(os.devnull, "w"))  # noqa: SIM115
        self._curves: Curves | None = None
        if self.writes and curves != "tensorboard":  # whether it can be reached is told before the work
            self._curves = CURVES[curves](self.folder, self.config)
        self._lock = threading.Lock()
        self._live: Progress | None = None
        if self.writes:
            repair_lines(self.folder / "metrics.jsonl")

    def info(self, text: str) -> None:
        """One line on the terminal."""
        self.console.print(text, highlight=False, markup=False)  # a path may hold [/b]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record named numbers at a step; METRICS says what each name means."""
        if not self.writes:
            return
        plain = {name: float(value) for name, value in values.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **plain})
        try:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except FileNotFoundError:
            raise UserError(
                f"{self.folder} has been removed while it was in use; run the same command again."
            ) from None
        if self._curves is None:  # not every command logs
            self._curves = CURVES[self.kind](self.folder, self.config)
        self._curves.add(step, plain)

    @contextmanager
    def progress(self, name: str, total: int) -> Iterator[ProgressBar]:
        """A live bar with the time left; plain lines every ten seconds where the output is no terminal."""
        if self._live is not None or self.quiet or not self.console.is_terminal:
            yield ProgressBar(name, total, self.console, self._live)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        with Progress(*columns, console=self.console) as self._live:
            try:
                yield ProgressBar(name, total, self.console, self._live)
            finally:
                self._live = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record wall-clock and peak memory of a stage in stages.json; a resumed stage adds to what it has."""
        if not self.writes:
            yield
            return
        began = time.monotonic()
        before = read_stages(self.folder).get(name, {})
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        peak = float(before.get("peak_memory_mb", 0.0))
        stop = threading.Event()

        def record() -> None:
            stages = read_stages(self.folder)
            stages[name] = {
                "seconds": round(before.get("seconds", 0.0) + time.monotonic() - began, 3),
                "peak_memory_mb": round(peak, 1),
                "peak_gpu_memory_mb": round(max(before.get("peak_gpu_memory_mb", 0.0), gpu_peak_mb()), 1),
                "sessions": before.get("sessions", 0) + 1,
            }
            with suppress(OSError):  # a full disk, or a folder that is gone: no reason to lose the work itself
                if self.folder.is_dir():
                    write_json(self.folder / "stages.json", stages)

        def sample() -> None:
            nonlocal peak
            written = time.monotonic()
            while not stop.wait(0.25):
                peak = max(peak, memory_mb())
                if time.monotonic() - written > 5.0:  # so that a kill loses five seconds of the record at most
                    with self._lock:
                        record()
                    written = time.monotonic()

        thread = threading.Thread(target=sample, name="memory", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            peak = max(peak, memory_mb())
            with self._lock:
                record()

    def close(self) -> None:
        if self._curves is not None:
            self._curves.close()
            self._curves = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_stages(folder: Path) -> dict[str, dict[str, float]]:
    """Stage -> seconds, peak_memory_mb, peak_gpu_memory_mb, sessions. What is missing or damaged is left out."""
    try:
        found = read_json(Path(folder) / "stages.json")
    except UserError:
        return {}
    stages = found.items() if isinstance(found, dict) else []
    return {
        name: {key: value for key, value in record.items() if is_number(value)}
        for name, record in stages
        if isinstance(record, dict)
    }


def read_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (step, value) in order of steps. Steps that a resumed run took twice count once, as taken last.

    Lines that can't be read, such as one that a kill cut off, are skipped.
    """
    path = Path(folder) / "metrics.jsonl"
    found: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or type(step := record.pop("step", None)) is not int:
            continue
        for name, value in record.items():
            if name != "time" and is_number(value):
                found.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in found.items()}


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def repair_lines(path: Path) -> None:
    """Drop what a kill left of a last line, so that the next line starts on its own."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        tail_start = max(0, size - 65536)
        file.seek(tail_start)
        tail = file.read()
        if not tail.endswith(b"\n"):
            file.truncate(tail_start + tail.rfind(b"\n") + 1)


def gpu_peak_mb() -> float:
    return torch.cuda.max_memory_allocated() / 1024**2 if torch.cuda.is_available() else 0.0


def clock(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 07 min."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
