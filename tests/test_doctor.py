"""The doctor finds what is there, and says what to do about what isn't."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from wmpo.cli import machine as doctor
from wmpo.cli.machine import Finding, diagnose, disk, examine, healthy, matmul_gflops, memory


def finding(status: doctor.Status) -> Finding:
    return Finding("x", status, "found", "used")


def test_only_what_is_missing_stops_a_run() -> None:
    assert healthy([finding("ok"), finding("warn")])
    assert not healthy([finding("ok"), finding("missing")])


@pytest.mark.parametrize(("free", "status"), [(2.9, "missing"), (3.1, "warn"), (5.9, "warn"), (6.1, "ok")])
def test_memory(free: float, status: str) -> None:
    assert memory(16.0, free).status == status


@pytest.mark.parametrize(("free", "status"), [(0.9, "missing"), (1.1, "warn"), (5.1, "ok")])
def test_disk(free: float, status: str, tmp_path: Path) -> None:
    found = disk(free, tmp_path)
    assert found.status == status and str(tmp_path) in found.found


def test_speed_is_counted_in_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that take a thousandth of a second each: 2 * 512^3 operations in it are 268 GFLOP/s."""
    ticks = iter(i / 1000 for i in range(10_000))
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(ticks))
    assert matmul_gflops(torch.float32, size=512, seconds=0.01) == pytest.approx(2 * 512**3 / 1e-3 / 1e9)


def test_diagnosis_of_this_machine(tmp_path: Path) -> None:
    found = {item.name: item for item in diagnose(tmp_path / "not" / "there" / "yet")}
    assert found["Python"].status == found["Packages"].status == found["Video"].status == "ok"
    assert found["PyTorch"].found.split("+")[0] == torch.__version__.split("+")[0]
    assert "GFLOP/s" in found["Processor"].used


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = doctor.compiler()
    assert "no-such-compiler" in found.found and "apt install g++" in found.get and found.status == "ok"


def test_exit_status_and_a_check_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Finding:
        raise OSError("no such [thing]")

    fast = ("processor", "renderer", "video", "memory", "disk")
    for name in fast:
        monkeypatch.setattr(doctor, name, lambda *_: finding("ok"))
    text = io.StringIO()
    assert examine(Console(file=text, width=160)) == 0
    assert "can run here" in text.getvalue()
    monkeypatch.setattr(doctor, "renderer", broken)
    text = io.StringIO()
    assert examine(Console(file=text, width=160)) == 1
    assert "OSError: no such [thing]" in text.getvalue() and "can't run here yet" in text.getvalue()


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", ("numpy", "surely_not_installed"))
    found = doctor.packages()
    assert found.status == "missing" and "surely_not_installed" in found.found and "numpy" not in found.found
