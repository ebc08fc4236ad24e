"""What a result was made with: the commit of the code, versions of packages, and the machine."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from wmpo.io.machine import cpu_model, memory_total_gb, usable_cores


@dataclass(frozen=True)
class Machine:
    """What a run was made on."""

    cpu: str
    cores: int
    memory_gb: float
    gpu: str  # "" without one
    system: str


def commit() -> str:
    """The commit of the checkout that this code runs from, else the installed version."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        if (here.parents[2] / ".git").exists():  # else git would describe whatever checkout surrounds site-packages
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return version("wmpo")


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("wmpo", "torch", "mujoco", "numpy", "av")
    }


def this_machine() -> Machine:
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return Machine(cpu_model(), usable_cores(), round(memory_total_gb(), 1), gpu, platform.platform(terse=True))
