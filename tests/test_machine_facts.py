"""What a container may use is less than what its machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from wmpo.io import machine
from wmpo.training.parallel import cores


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine.usable_cores.cache_clear()
    return tmp_path


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9000000 100000\n"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),  # a parent's limit counts
        ("4:cpu:/job\n0::/\n", {"cpu/job/cpu.cfs_quota_us": "200000\n", "cpu/job/cpu.cfs_period_us": "50000\n"}, 4),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("0::/\n", {"cpu.max": "odd\n"}, 8),
    ],
)  # fmt: skip
def test_a_quota_of_processor_time_is_respected(
    own: str, files: dict[str, str], expected: int, groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (groups / "own").write_text(own)
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    assert cores() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cores() == 5
    machine.usable_cores.cache_clear()


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_limit_of_memory_is_respected(name: str, groups: Path) -> None:
    (groups / "own").write_text("0::/\n5:memory:/\n")
    (groups / name).parent.mkdir(exist_ok=True)
    (groups / name).write_text(f"{256 * 1024**2}\n")
    assert machine.memory_total_gb() == 0.25 >= machine.available_gb() > 0
    (groups / name).write_text("max\n")
    assert machine.memory_total_gb() > 0.25
