"""The page that shows how to add a reward model: its example is run as it stands."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from test_cli import TINY
from wmpo.cli import main
from wmpo.contracts import check_reward_model
from wmpo.families import saved_family
from wmpo.rewards import load_reward_model

PAGE = Path(__file__).parents[1] / "docs" / "own_reward_model.md"
COMMANDS = re.findall(r"```bash\nwmpo (.*?)\n```", PAGE.read_text())
NAME = "coarse_judge:CoarseJudge"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's first file, in the working directory."""
    (tmp_path / "coarse_judge.py").write_text(blocks()[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "coarse_judge", raising=False)
    return import_module("coarse_judge")


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.usefixtures("module")
def test_the_check_of_the_page_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    exec(blocks()[1], {})
    assert capsys.readouterr().out == "[]\n"
    assert main(COMMANDS[1].split()) == 0
    assert "keeps the contract" in capsys.readouterr().out


def test_the_example_learns_and_is_opened_again(module: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = module.CoarseJudge.build(module.CoarseSettings(clip_length=2, grid=4), None)
    label = torch.arange(16) % 2
    clips = torch.randint(0, 100, (16, 2, 3, 20, 30), dtype=torch.uint8)
    clips[label == 1, 1, 0, :10] += 100
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        model(SimpleNamespace(clips=clips, label=label))[0].backward()
        optimizer.step()
    assert ((model.score(clips, ("go",) * 16) > 0) == label.bool()).all()
    judged = model.with_threshold(1.5)
    assert check_reward_model(judged, clips, ("go",) * 16) == [] and (judged.threshold, model.threshold) == (1.5, 0.0)
    judged.save_pretrained(tmp_path / "saved")
    again = module.CoarseJudge.from_pretrained(tmp_path / "saved")
    assert again.threshold == 1.5 and torch.equal(again.score(clips, ()), model.score(clips, ()))


@pytest.mark.usefixtures("module")
def test_a_whole_run_judges_with_it(tmp_path: Path) -> None:
    command = COMMANDS[0].split()
    assert command[:2] == TINY[:2] == ["run", "smoke"] and NAME in command
    assert main([*TINY, *command[2:], "--grpo.iterations", "1"]) == 0
    saved = Path("runs/judged/reward_model-1")
    assert saved_family("reward", saved, "conv") == NAME
    model: Any = load_reward_model(saved)
    assert type(model).__name__ == "CoarseJudge" and model.config.grid == 4 and model.threshold != 0
    assert (tmp_path / "runs" / "judged" / "report.html").is_file()
