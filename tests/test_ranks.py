"""Several processes: they learn what one learns, go on where others have stopped, and end together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
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


PLACE = [
    "run", "place", "--env.cameras", "front", "wrist", "--env.image-size", "32", "--device", "cpu",
    "--world-model.precision", "float32", "--env.workers", "1", "--demonstrations.episodes", "6",
    "--collect.episodes", "8", "--policy.fit.steps", "60", "--policy.fit.batch-size", "16",
    "--world-model.kinematics-fit.steps", "80", "--world-model.kinematics-fit.batch-size", "8",
    "--world-model.fit.steps", "20", "--world-model.fit.batch-size", "4", "--world-model.align.steps", "4",
    "--world-model.align.batch-size", "4", "--reward.fit.steps", "30", "--reward.fit.batch-size", "16",
    "--reward.threshold", "half", "--self-imitation.steps", "4", "--evaluate.episodes", "4",
    "--evaluate.time-factor", "1", "--evaluate.practice-eval-freq", "2", "--evaluate.practice-eval-episodes", "2",
    "--grpo.n-initial-states", "4", "--grpo.keyframes", "4", "--grpo.iterations", "3", "--grpo.groups", "4",
    "--grpo.group-size", "6", "--grpo.imitation-batch", "8", "--grpo.minibatches", "2", "--grpo.micro-batch", "3",
    "--grpo.temperature", "1.5", "--grpo.min-group-success", "0", "--grpo.max-group-success", "1",
]  # fmt: skip
"""All stages of place with two cameras, the control among them; small, yet some imagined groups are informative."""


def torchrun(
    count: int, *program: str, timeout: float = 600, meanwhile: Callable[[subprocess.Popen[str]], None] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *program]
    places = os.pathsep.join([str(ROOT / "src"), str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if meanwhile is not None:
            meanwhile(process)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def kill_one_in_practice(folder: Path, process: subprocess.Popen[str]) -> None:
    """One of the processes of torchrun, as soon as practice has had an iteration."""
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and "practice-1/success" in metrics.read_text()):
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("model.safetensors"))
    assert files
    return {f"{path.relative_to(folder)}: {name}": tensor for path in files for name, tensor in load_file(path).items()}


def assert_equal_weights(one: Path, other: Path, tolerance: float) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


def logged(folder: Path) -> int:
    """Lines of the log, of which one process should write all."""
    return len((folder / "metrics.jsonl").read_text().splitlines())


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
    assert logged(alone) == logged(tmp_path)
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
    assert logged(tmp_path / "one") == logged(tmp_path / "two")
    base, practised = (weights(tmp_path / "two" / "policies" / name) for name in ("base", "wmpo-1"))
    assert any(not torch.equal(base[name], practised[name]) for name in base)
    assert done.stdout.count("Report: ") == 1


@pytest.mark.slow
def test_a_run_of_place_ends_as_that_of_one_process_though_one_of_two_was_killed(tmp_path: Path) -> None:
    """Trainings have two parts, so that processes add up what one does, bit for bit; not so episodes in practice, which
    all lie in one shard here."""
    one, several = tmp_path / "one", tmp_path / "several"
    assert main([*PLACE, "--out", str(one)]) == 0
    command = ["-m", "wmpo.cli", *PLACE, "--out", str(several)]
    killed = torchrun(2, *command, timeout=1800, meanwhile=partial(kill_one_in_practice, several))
    assert killed.returncode == 1 and not (several / "result.json").exists()
    done = torchrun(3, *command, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert_equal_weights(one, several, 1e-5)
    mine, theirs = weights(one), weights(several)
    practice = ("practice-1/", "control/", "policies/wmpo-1/", "policies/control/")
    for name, tensor in mine.items():
        assert name.startswith(practice) or torch.equal(tensor, theirs[name]), name
    kept = read_metrics(several)["practice-1/groups_kept"]
    assert sum(groups for _, groups in kept) > 0 and kept == read_metrics(one)["practice-1/groups_kept"]
