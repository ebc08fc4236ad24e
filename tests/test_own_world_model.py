"""The page that shows how to add a world model: its example is run as it stands."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from wmpo.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "own_world_model.md"
CODE, CHECK = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the page's file."""
    (tmp_path / "next_frame.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "next_frame", raising=False)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_the_example_keeps_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    exec(CHECK, {})
    assert capsys.readouterr().out.strip() == "[]"


TINY = [
    "--env.image-size", "16", "--env.workers", "0", "--env.renderer", "rays", "--device", "cpu", "--no-control",
    "--demonstrations.episodes", "12", "--policy.width", "16", "--policy.hidden", "32", "--policy.fit.steps", "30",
    "--policy.fit.batch-size", "16", "--collect.episodes", "12", "--reward.fit.steps",
    "20", "--reward.threshold", "half", "--world-model.fit.steps", "60", "--world-model.align.steps", "20",
    "--grpo.iterations", "1", "--grpo.groups", "2", "--grpo.group-size", "4", "--grpo.n-initial-states", "4",
    "--evaluate.episodes", "4", "--evaluate.practice-eval-freq", "0",
]  # fmt: skip


def test_a_whole_run_with_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.strip() for line in PAGE.read_text().splitlines()]
    run = next(line for line in lines if line.startswith("wmpo run")).split()[1:]
    assert main(["plan", *run[1:-2], *TINY]) == 0
    assert "world: next_frame" in capsys.readouterr().out
    assert main([*run, *TINY]) == 0
    assert main(re.search(r"`wmpo (report [^`]*)`", PAGE.read_text())[1].split()) == 0  # type: ignore[index]
    scalars = [json.loads(line) for line in (folder / "runs/mine/metrics.jsonl").read_text().splitlines()]
    losses = [value for row in scalars for name, value in row.items() if name == "world_model_next_frame/loss"]
    assert losses[-1] < losses[0]
    assert json.loads((folder / "runs/mine/world_model-1/config.json").read_text())["family"] == "next_frame:NextFrame"
