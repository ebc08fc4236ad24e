"""Several processes: they learn what one learns, go on where others have stopped, and end together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from together import learn
from wmpo.cli import main
from wmpo.training.log import read_metrics

ROOT = Path(__file__).resolve().parents[1]
TOGETHER = str(ROOT / "tests" / "together.py")
TINY = [
    "run", "smoke", "--world-model.precision", "float32", "--env.workers", "1", "--demonstrations.episodes", "8",
    "--collect.episodes", "4", "--policy.fit.steps", "10", "--world-model.kinematics-fit.steps", "4",
    "--world-model.fit.steps", "6", "--world-model.align.steps", "4", "--reward.fit.steps", "6",
    "--evaluate.episodes", "4", "--evaluate.practice-eval-episodes", "2", "--grpo.n-initial-states", "4",
    "--grpo.min-group-success", "0", "--grpo.max-group-success", "1", "--grpo.group-size", "6", "--no-control",
]  # fmt: skip


def torchrun(count: int, *program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *program]
    places = os.pathsep.join([str(ROOT / "src"), str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("model.safetensors"))
    assert files
    return {f"{path.relative_to(folder)}: {name}": tensor for path in files for name, tensor in load_file(path).items()}


def assert_equal_weights(one: Path, other: Path, tolerance: float) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process learns."""
    folder = tmp_path_factory.mktemp("alone")
    learn(folder)
    return folder


def test_two_processes_learn_what_one_does(alone: Path, tmp_path: Path) -> None:
    done = torchrun(2, TOGETHER, str(tmp_path), "as usual")
    assert done.returncode == 0, done.stderr
    assert_equal_weights(alone, tmp_path, 1e-5)
    mine, theirs = read_metrics(alone), read_metrics(tmp_path)
    assert mine.keys() == theirs.keys() and mine["guess/groups_kept"][0][1] > 0
    practice = [f"{name}/{kind}" for name in ("guess", "whole") for kind in ("loss", "grad_norm", "success", "kl")]
    for name in ("line/loss", "line/grad_norm", "whole/imitation_loss", *practice):
        assert dict(theirs[name]) == pytest.approx(dict(mine[name]), rel=1e-4, abs=1e-5), name


def test_a_killed_one_takes_the_others_along_and_three_go_on_where_two_were(alone: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    killed = torchrun(2, TOGETHER, str(tmp_path), "kill")
    assert killed.returncode != 0 and "exitcode: -9" in re.sub(r"exitcode\s*:", "exitcode:", killed.stderr)
    assert time.monotonic() - began < 120  # most of which is for starting
    assert "wmpo: Another process of this run has ended" in killed.stderr or "wmpo: stopped" in killed.stderr
    assert (tmp_path / "line" / "checkpoint.safetensors").exists()
    done = torchrun(3, TOGETHER, str(tmp_path), "as usual")
    assert done.returncode == 0, done.stderr
    assert_equal_weights(alone, tmp_path, 1e-5)


def test_an_error_of_one_ends_all_with_its_sentence(tmp_path: Path) -> None:
    done = torchrun(2, TOGETHER, str(tmp_path), "error")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("wmpo: ")]
    assert said == ["wmpo: The second process has had enough: give it less."]
    assert re.search(r"exitcode\s*: 2 ", done.stderr)


def test_what_is_for_one_process_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "wmpo: wmpo evaluate is work for one process: start it without torchrun.\n"


@pytest.mark.slow
def test_a_whole_run_of_two_equals_one(tmp_path: Path) -> None:
    assert main([*TINY, "--out", str(tmp_path / "one")]) == 0
    done = torchrun(2, "-m", "wmpo.cli", *TINY, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert_equal_weights(tmp_path / "one", tmp_path / "two", 1e-4)
    base, practised = (weights(tmp_path / "two" / "policies" / name) for name in ("base", "wmpo-1"))
    assert any(not torch.equal(base[name], practised[name]) for name in base)
    assert done.stdout.count("Report: ") == 1
