"""What this machine has, what wmpo will use of it, and how to get what is missing."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wmpo.errors import missing_compiler
from wmpo.io.machine import available_gb, cpu_flags, cpu_model, memory_total_gb
from wmpo.io.provenance import version
from wmpo.training.parallel import cores

Status = Literal["ok", "warn", "missing"]
REQUIRED = ("torch", "numpy", "mujoco", "gymnasium", "safetensors", "av", "pyarrow", "tyro", "rich", "tensorboard")
HUB = ("transformers", "diffusers", "peft")
MEMORY_GB, LEAST_MEMORY_GB = 6.0, 3.0  # what the default recipe promises to stay below; what the smoke recipe needs
DISK_GB, LEAST_DISK_GB = 5.0, 1.0
FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `missing` means that the default recipe can't run."""

    name: str
    status: Status
    found: str
    used: str
    """What will be used."""
    get: str = ""
    """How to get what is missing; empty where nothing is."""


def diagnose(folder: Path = Path(".")) -> list[Finding]:
    """Look at everything a run in `folder` depends on. A check that itself fails is reported, not raised."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", python),
        ("Packages", packages),
        ("PyTorch", pytorch),
        ("Processor", processor),
        ("GPU", gpu),
        ("Memory", lambda: memory(memory_total_gb(), available_gb())),
        ("Disk", lambda: disk(shutil.disk_usage(existing(folder)).free / 1e9, folder)),
        ("Renderer", renderer),
        ("Video", video),
        ("Compiler", compiler),
        ("Models from hubs", hub),
        ("Ray", ray),
    ]
    findings = []
    for name, check in checks:
        try:
            findings.append(check())
        except Exception as error:  # a doctor must survive a sick patient
            findings.append(Finding(name, "missing", f"{type(error).__name__}: {error}", "nothing", "reinstall wmpo"))
    return findings


def healthy(findings: Sequence[Finding]) -> bool:
    """Can the default recipe run?"""
    return all(finding.status != "missing" for finding in findings)


def examine(console: Console | None = None, folder: Path = Path(".")) -> int:
    """Print the findings; the exit status is 0 where the default recipe can run, else 1."""
    console = console or Console()
    findings = diagnose(folder)
    console.print(findings_table(findings))
    fine = healthy(findings)
    console.print("The default recipe can run here." if fine else "The default recipe can't run here yet.")
    return 0 if fine else 1


def findings_table(findings: Sequence[Finding]) -> Table:
    table = Table(title="wmpo doctor", title_justify="left")
    for column in ("", "what", "found", "used, and how to get more"):
        table.add_column(column, overflow="fold")
    marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "missing": "[red]missing[/]"}
    for finding in findings:
        used = f"{finding.used}\n-> {finding.get}" if finding.get else finding.used
        table.add_row(marks[finding.status], *(escape(text) for text in (finding.name, finding.found, used)))
    return table


def python() -> Finding:
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    return Finding("Python", "ok", found, sys.executable)


def packages() -> Finding:
    lacking = [name for name in REQUIRED if find_spec(name) is None]
    if lacking:
        return Finding("Packages", "missing", f"without {', '.join(lacking)}", "nothing", "pip install wmpo")
    found = ", ".join(f"{name} {version(name)}" for name in ("mujoco", "gymnasium", "numpy", "av"))
    return Finding("Packages", "ok", found, "all that are required")


def pytorch() -> Finding:
    threads = cores()
    return Finding("PyTorch", "ok", version("torch"), f"{threads} thread{'s' if threads > 1 else ''}")


def processor() -> Finding:
    flags = cpu_flags()
    features = [name for flag, name in FEATURES.items() if flag in flags]
    full, half = matmul_gflops(torch.float32), matmul_gflops(torch.bfloat16)
    found = f"{cpu_model()}; {', '.join(features) or 'no vector extensions known'}"
    used = f"{full:.0f} GFLOP/s in fp32, {half:.0f} in bf16 (matrix product of 1024 x 1024)"
    if full < 10:
        return Finding("Processor", "warn", found, used, "a run will take hours; close other programs, or use a GPU")
    return Finding("Processor", "ok", found, used)


def gpu() -> Finding:
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        size = torch.cuda.get_device_properties(0).total_memory / 1024**3
        full, half = (matmul_gflops(dtype, device="cuda") / 1000 for dtype in (torch.float32, torch.bfloat16))
        used = f"cuda: {full:.0f} TFLOP/s in fp32, {half:.0f} in bf16 (matrix product of 8192 x 8192)"
        return Finding("GPU", "ok", f"{name}, {size:.0f} GB", used)
    if Path("/dev/nvidia0").exists():
        advice = "install a CUDA build of torch (pytorch.org/get-started)"
        return Finding("GPU", "warn", "an NVIDIA GPU that torch can't use", "the processor", advice)
    return Finding("GPU", "ok", "none", "the processor")


def memory(total_gb: float, free_gb: float) -> Finding:
    found, used = f"{total_gb:.1f} GB, {free_gb:.1f} GB free", f"up to {MEMORY_GB:.0f} GB"
    if free_gb < LEAST_MEMORY_GB:
        return Finding("Memory", "missing", found, used, "close other programs")
    if free_gb < MEMORY_GB:
        return Finding("Memory", "warn", found, used, "close other programs or lower env.workers")
    return Finding("Memory", "ok", found, used)


def disk(free_gb: float, folder: Path) -> Finding:
    found, used = f"{free_gb:.1f} GB free in {folder.resolve()}", f"about {LEAST_DISK_GB:.0f} GB"
    if free_gb < LEAST_DISK_GB:
        return Finding("Disk", "missing", found, used, "free some space")
    if free_gb < DISK_GB:
        return Finding("Disk", "warn", found, used, "free some space for further runs")
    return Finding("Disk", "ok", found, used)


def renderer() -> Finding:
    from wmpo.envs.tabletop.display import choose  # Gymnasium too, which the other checks don't need

    if choose("auto") == "egl":
        return Finding("Renderer", "ok", "OpenGL through EGL works", "egl")
    advice = "Debian/Ubuntu: apt install libegl1 libgl1-mesa-dri"
    return Finding("Renderer", "warn", "no OpenGL without a screen", "rays: MuJoCo's ray casting, slower", advice)


def video() -> Finding:
    import av

    from wmpo.report.video import decode_mp4, encode_mp4

    names = {"libx264": "H.264", "libsvtav1": "AV1", "libvpx-vp9": "VP9", "ffv1": "FFV1"}
    found = ", ".join(label for codec, label in names.items() if codec in av.codecs_available)
    try:
        works = len(decode_mp4(encode_mp4(np.zeros((2, 64, 64, 3), np.uint8), pause=0.0))) == 2
    except (av.FFmpegError, ValueError):
        works = False
    if not works:
        advice = "pip install --force-reinstall --only-binary :all: av"
        return Finding("Video", "missing", found or "no encoder", "nothing", advice)
    return Finding("Video", "ok", found, "H.264")


def compiler() -> Finding:
    if missing := missing_compiler():
        advice = "Debian/Ubuntu: apt install g++ python3-dev, for world_model.compile"
        return Finding("Compiler", "ok", f"without {missing}", "not in the default recipe", advice)
    return Finding("Compiler", "ok", "all that torch.compile needs", "where a recipe asks for it")


def hub() -> Finding:
    found = [f"{name} {version(name)}" for name in HUB if find_spec(name) is not None]
    if len(found) == len(HUB):
        return Finding("Models from hubs", "ok", ", ".join(found), "where a recipe asks for it")
    advice = "pip install 'wmpo[hub]' for published policies, VideoMAE and the SDXL autoencoder"
    return Finding("Models from hubs", "ok", ", ".join(found) or "not installed", "not in the default recipe", advice)


def ray() -> Finding:
    if find_spec("ray") is not None:
        return Finding("Ray", "ok", f"ray {version('ray')}", "where a recipe asks for it")
    advice = "pip install 'wmpo[ray]' to simulate and imagine on several machines"
    return Finding("Ray", "ok", "not installed", "not in the default recipe", advice)


def matmul_gflops(dtype: torch.dtype, size: int = 0, seconds: float = 0.2, device: torch.device | str = "cpu") -> float:
    """Billions of operations per second of a square matrix product, the best of several. `size` 0: 8192 on a GPU, which
    smaller ones leave idle, and 1024 on a processor."""
    gpu = torch.device(device).type == "cuda"
    size = size or (8192 if gpu else 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait = torch.cuda.synchronize if gpu else lambda: None
    best, begin = float("inf"), time.perf_counter()
    a @ b  # the first product also sets up the library
    wait()
    while best == float("inf") or time.perf_counter() - begin < seconds:
        before = time.perf_counter()
        a @ b
        wait()
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best / 1e9


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder
