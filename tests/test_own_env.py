"""The page that shows how to add an environment: its examples are run as they stand."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wmpo.cli import main
from wmpo.config import EnvConfig
from wmpo.contracts import check_env
from wmpo.envs import make_env
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.envs.vector import VectorEnv
from wmpo.families import allow, complete
from wmpo.protocols import CountsEvents, Demonstrates, NamesTasks, Restorable

PAGE = Path(__file__).parents[1] / "docs" / "own_env.md"
FAMILY = "reach_env:Reach"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the page's files in it; nothing is installed."""
    whole, gymnasium = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "reach_env.py").write_text(whole)
    (tmp_path / "push_episode.py").write_text(gymnasium)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for module in ("reach_env", "push_episode"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_the_example_keeps_the_contract_and_offers_everything() -> None:
    allow(FAMILY)
    env = make_env(complete("env", EnvConfig(family=FAMILY, workers=2)))
    assert check_env(env) == []
    for protocol in (Demonstrates, NamesTasks, Restorable, CountsEvents):
        assert isinstance(env, protocol)
    assert isinstance(env, Demonstrates) and isinstance(env, Restorable) and isinstance(env, CountsEvents)
    episodes = list(env.demonstrate(range(12), 0.2, 0, 0.5))
    assert all(episode.succeeded for episode in episodes)
    chunk = torch.from_numpy(np.stack([episode.actions[:2] for episode in episodes]))
    assert env.reset(range(12)).images["side"].shape == (12, 3, 16, 40)
    for row, frame in enumerate(env.step(range(12), chunk).images["top"][:, 1]):  # played again, they look the same
        np.testing.assert_array_equal(frame.permute(1, 2, 0), episodes[row].images["top"][2])
    saved = env.get_state([3, 1])
    later = env.step([3, 1], chunk[:2])
    env.reset_to(saved)
    assert torch.equal(env.step([0, 1], chunk[:2]).images["side"], later.images["side"])
    assert len(env.events) == 2 and "touches" in env.events[0]
    env.close()


def test_a_gymnasium_environment_in_a_few_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    env = VectorEnv(EnvConfig(workers=1), "push_episode:PushEpisode", {})
    assert check_env(env) == []
    ours = make_env(TabletopSettings(workers=0))
    for one, two in zip(env.reset([4, 2]).images.values(), ours.reset([4, 2]).images.values(), strict=True):
        assert torch.equal(one, two)
    env.close()


POLICY = ["--policy.width", "16", "--policy.hidden", "32", "--policy.fit.steps", "40", "--device", "cpu"]
TINY = [
    *POLICY, "--demonstrations.episodes", "12", "--collect.episodes", "12", "--world-model.width", "16",
    "--world-model.fit.steps", "20", "--world-model.fit.batch-size", "8", "--world-model.align.steps", "10",
    "--world-model.align.batch-size", "8", "--reward.fit.steps", "20", "--grpo.iterations", "2", "--grpo.groups", "2",
    "--grpo.n-initial-states", "4", "--evaluate.episodes", "8", "--evaluate.practice-eval-episodes", "4",
]  # fmt: skip


@pytest.mark.slow
def test_it_runs_through_every_command_that_needs_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def wmpo(*args: str) -> str:
        assert main(list(args)) == 0
        return " ".join(capsys.readouterr().out.split())

    env, allowed = ["--env.family", FAMILY, "--env.workers", "1"], ["--allow", FAMILY]
    assert "keeps the contract" in wmpo("check", "env", FAMILY)
    wmpo("plan", "smoke", *env)
    report = wmpo("run", "smoke", *env, "--env.speed", "0.25", *TINY, "--out", "run")
    assert "reach" in report and "push" not in report and (folder / "run" / "report.html").is_file()
    assert "dark" in wmpo("evaluate", "run", "--disruption", "dark", "--episodes", "2", *allowed)
    wmpo("report", "run", *allowed)
    wmpo("demonstrate", "--data", "data", *env, "--demonstrations.episodes", "16")
    wmpo("imitate", "--data", "data", "--out", "base", *POLICY)
    wmpo("collect", "--data", "data", "--policy", "base/policies/base", *env, "--collect.episodes", "8")
    assert main(["evaluate", "run", "--episodes", "2", "--disruption", "fog", *allowed]) == 2
    assert "it has dark" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_the_check_says_what_it_tried_and_which_class_to_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "env", FAMILY, "--env.workers", "0"]) == 0
    assert "demonstrate: tried, get_state: tried, tasks: tried, events: tried" in capsys.readouterr().out
    assert main(["check", "env", "reach_env:ReachEpisode"]) == 2
    assert "name the family class, not the episode class" in capsys.readouterr().err
    reach = Path("reach_env.py")
    reach.write_text(reach.read_text().replace("np.stack(actions),", "np.stack(actions)[:-1],"))
    del sys.modules["reach_env"]
    assert main(["check", "env", FAMILY, "--env.workers", "0"]) == 1
    assert ": 1 thing to mend" in capsys.readouterr().out


def test_the_gymnasium_environment_is_a_family(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "env", "push_episode:Push", "--env.workers", "0"]) == 0
    assert "demonstrate: absent" in capsys.readouterr().out
    assert main(["demonstrate", "--data", str(folder / "data"), "--env.family", "push_episode:Push"]) == 2
    assert "has no scripted expert" in capsys.readouterr().err
