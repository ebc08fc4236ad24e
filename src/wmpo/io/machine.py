"""What this machine has, and how much of it this process may use."""

from __future__ import annotations

import math
import os
import platform
import sys
from functools import lru_cache
from pathlib import Path, PurePosixPath

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # Linux control groups: limits of containers
GB = 1024**3


def read(path: Path) -> str:
    """A small file of the system; empty where there is none."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def group_folders(controller: str) -> list[Path]:
    """Folders of this process's control groups that may limit `controller`, of version 2 or 1, up to the root."""
    found = []
    for line in read(OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = GROUPS / controller if controllers else GROUPS
            place = PurePosixPath(path)
            found += [root / str(folder).lstrip("/") for folder in (place, *place.parents)]
    return found


def cpu_quota() -> float:
    """How many cores' time the control groups allow; infinity where they set no limit."""
    quotas = [math.inf]
    for folder in group_folders("cpu"):
        both = read(folder / "cpu.max").split() or [
            read(folder / "cpu.cfs_quota_us").strip(),
            read(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(both) == 2 and both[0].isdigit() and both[1].isdigit() and int(both[1]):  # "max" or -1: no limit
            quotas.append(int(both[0]) / int(both[1]))
    return min(quotas)


@lru_cache(maxsize=1)
def usable_cores() -> int:
    """Cores that this process may use; part of one counts as one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(min(cpu_quota(), cores))))


def memory_total_gb() -> float:
    """Memory that this process may use, in GiB: of the machine, or of its container where that has less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0.0
    for folder in group_folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = read(folder / name).strip()
            total = min(total, int(limit)) if limit.isdigit() else total
    return total / GB


def available_gb() -> float:
    """Memory that programs can still get, in GiB; all of it where the system doesn't say."""
    for line in read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable"):
            return min(memory_total_gb(), int(line.split()[1]) / 1024**2)
    return memory_total_gb()


def memory_mb() -> float:
    """Resident memory of this process and all below it, in MiB (pages that they share count for each)."""
    if not sys.platform.startswith("linux"):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = read(Path("/proc", entry, "stat")).rpartition(")")[2].split()
            if len(fields) > 21:  # pid (name) state parent ... rss is the 24th field; none where the process has ended
                parents[int(entry)], pages[int(entry)] = int(fields[1]), int(fields[21])
    family = {os.getpid()}
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in family} - family
        family |= children
        grown = bool(children)
    return sum(pages.get(pid, 0) for pid in family) * os.sysconf("SC_PAGE_SIZE") / 1024**2


def cpu_model() -> str:
    for line in read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    lines = read(Path("/proc/cpuinfo")).splitlines()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":")[1].split()}
