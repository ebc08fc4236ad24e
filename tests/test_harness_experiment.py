"""Comparing what wmpo and vla-eval say of one policy, without either simulator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import harness
from experiments.store import read_lines
from wmpo.errors import UserError
from wmpo.recipes import RECIPES
from wmpo.report.results import PolicyResult, RunResult

FRAMES = [10, 0, 12, 0]  # of success here, in actions
STEPS = [41, 50, 160, 160]  # that episodes lasted there
HITS = [True, True, False, False]


def evaluation(folder: Path) -> Path:
    run = RunResult.begin(RECIPES["libero"])
    run.policies["base"] = PolicyResult(
        [7, 8, 9, 10], [int(frame > 0) for frame in FRAMES], FRAMES, horizon=40, time_limit=40
    )
    run.save(folder / "ours.json")
    return folder / "ours.json"


def aggregate(folder: Path, **changes: Any) -> Path:
    """As `vla-eval run` writes it; `changes` are of its config."""
    episodes = [
        {"episode_id": i, "metrics": {"success": hit}, "steps": steps}
        for i, (hit, steps) in enumerate(zip(HITS, STEPS, strict=True))
    ]
    config = {"max_steps": 160, "params": {"suite": "libero_spatial", "seed": 7}} | changes
    said = {"harness_version": "0.8.0", "config": config, "tasks": [{"task": "pick", "episodes": episodes}]}
    path = folder / "theirs.json"
    path.write_text(json.dumps(said))
    return path


def test_episodes_are_compared_pair_by_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = harness.Options(evaluation(tmp_path), aggregate(tmp_path), "twice", out=tmp_path / "harness.jsonl")
    options.execute()
    options.execute()
    [line] = read_lines(options.out)  # a line of the same label is replaced
    assert line["ours"] == [40, 0, 48, 0] and line["theirs"] == [41, 50, 0, 0]
    assert line["vla-eval"] == "0.8.0" and line["task"] == "libero_spatial-2" and line["machine"]["cores"] > 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row.split(" | ")[2:5] == ["4", "50.0 (15.0 to 85.0)", "50.0 (15.0 to 85.0)"]
    assert row.rstrip(" |").split(" | ")[-4:] == ["2", "1", "1", "+1"]  # agree, only here, only there, steps later


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_steps": 220}, "160 steps of the controller here and 220 there"),
        ({"params": {"suite": "libero_goal"}}, "Compare one task"),
    ],
)
def test_what_can_not_be_compared_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        harness.Options(evaluation(tmp_path), aggregate(tmp_path, **changes), "x", out=tmp_path / "o").execute()


@pytest.mark.parametrize("change", ["fewer", "more", "broken"])
def test_episodes_that_lack_or_broke_are_refused(change: str, tmp_path: Path) -> None:
    path = aggregate(tmp_path)
    said = json.loads(path.read_text())
    episodes = said["tasks"][0]["episodes"]
    if change == "fewer":
        del episodes[1]
    elif change == "more":
        episodes.append({**episodes[0], "episode_id": 4})
    else:
        episodes[2]["failure_reason"] = "model_act"
    path.write_text(json.dumps(said))
    words = {"broken": "could not run 1 of its episodes: model_act"}.get(change, "aren't the first ones of the 4")
    with pytest.raises(UserError, match=words):
        harness.Options(evaluation(tmp_path), path, "x", out=tmp_path / "o").execute()
