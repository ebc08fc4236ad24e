"""`wmpo run data`: the loop on recorded episodes alone, from folders to a report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wmpo.cli import main
from wmpo.data.store import EpisodeStore
from wmpo.io.files import read_json
from wmpo.report.results import RunResult
from wmpo.training.log import read_metrics
from wmpo.types import EnvSpec, Episode

SPEC = EnvSpec(cameras={"front": (16, 16)}, state_dim=1, action_dim=2, horizon=12, fps=5)
TINY = [
    "--device",
    "cpu",
    "--policy.width",
    "8",
    "--policy.hidden",
    "16",
    "--policy.fit.steps",
    "10",
    "--policy.fit.batch-size",
    "8",
    "--world-model.width",
    "8",
    "--world-model.depth",
    "1",
    "--world-model.fit.steps",
    "8",
    "--world-model.fit.batch-size",
    "8",
    "--world-model.align.steps",
    "4",
    "--world-model.align.batch-size",
    "8",
    "--world-model.kinematics-fit.steps",
    "8",
    "--world-model.kinematics-fit.batch-size",
    "8",
    "--reward.width",
    "8",
    "--reward.fit.steps",
    "12",
    "--reward.fit.batch-size",
    "16",
    "--reward.fit.lr",
    "3e-3",
    "--grpo.iterations",
    "2",
    "--grpo.groups",
    "2",
    "--grpo.group-size",
    "4",
    "--grpo.keyframes",
    "4",
    "--grpo.min-group-success",
    "0.01",
    "--grpo.max-group-success",
    "0.99",
]
HALF = ("--reward.threshold", "half")  # so that practice has something to tell apart, whatever so little has learned


def slide(number: int, succeeds: bool, spec: EnvSpec = SPEC, length: int = 8) -> Episode:
    """A bar slides to the right; where it arrives, it lights up, and the episode succeeds."""
    rng = np.random.default_rng(number)
    speed = (1.0 if succeeds else 0.4) / length + rng.uniform(0, 0.01)
    place = np.arange(length + 1, dtype=np.float32)[:, None] * speed
    success = np.arange(length + 1) >= (length - 1 if succeeds else length + 1)
    images = {}
    for name, (height, width) in spec.cameras.items():
        images[name] = rng.integers(0, 30, (length + 1, height, width, 3), dtype=np.uint8)
        for frame, column in enumerate((place[:, 0] * (width - 2)).astype(int)):
            images[name][frame, :, min(column, width - 2) : column + 2] = 255 if success[frame] else 120
    actions = np.concatenate([np.full((length, 1), speed), rng.normal(0, 0.01, (length, spec.action_dim - 1))], 1)
    return Episode(images, np.repeat(place, spec.state_dim, 1), actions.astype(np.float32), success, "slide", -1,
                   "slide", "expert")  # fmt: skip


def store(root: Path, hits: int, misses: int = 0, source: str = "expert", seed: int = 0, **of: object) -> Path:
    spec = replace(SPEC, **{name: of.pop(name) for name in list(of) if hasattr(SPEC, name)})  # type: ignore[arg-type]
    made = [slide(seed + i, i < hits, spec, **of) for i in range(hits + misses)]  # type: ignore[arg-type]
    EpisodeStore.create(root, spec).append([replace(episode, source=source) for episode in made])
    return root


def run(*args: object) -> int:
    return main(["run", "data", *map(str, args), *TINY])


def hold(folder: Path) -> dict[str, bytes]:
    """What must not depend on how a run came about."""
    weights = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("policies/*/model.safetensors")}
    return weights | {"recorded": json.dumps(read_json(folder / "result.json")["recorded"]).encode()}


def test_a_round_is_added_and_ends_as_if_both_had_been_given_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demos = store(tmp_path / "demos", 8)
    tries, more = (store(tmp_path / name, 6, 6, "act", seed) for name, seed in (("tries", 50), ("more", 90)))
    out = tmp_path / "run"
    assert run("--demos", demos, "--rollouts", tries, "--out", out, *HALF) == 0
    told = capsys.readouterr().out
    assert "Nothing here was tried for real" in told and "What to do next" in told
    result = RunResult.load(out / "result.json")
    recorded = result.recorded
    assert recorded is not None and not result.policies and not result.gaps
    assert recorded.learned == {"expert": [6, 6], "round-1": [8, 4]}
    assert recorded.held_out == {"expert": [2, 2], "round-1": [4, 2]}
    assert result.agreement is not None and (result.agreement.episodes, result.agreement.successes) == (4, 2)
    assert [len(one.success) for one in recorded.imagined.values()] == [6, 6]
    assert recorded.imagined["base"].kl == pytest.approx(0, abs=1e-5) and recorded.imagined["wmpo-1"].kl > 0
    assert "imagined success, not real" in (out / "report.html").read_text()

    assert run("--demos", demos, "--rollouts", tries, "--rollouts", more, "--out", out, *HALF) == 0
    both = tmp_path / "both"
    assert run("--demos", demos, "--rollouts", tries, "--rollouts", more, "--out", both, *HALF) == 0
    assert hold(out) == hold(both) and "policies/wmpo-2/model.safetensors" in hold(out)
    assert "practice-2" in {name.split("/")[0] for name in read_metrics(out)}

    before = hold(out)
    capsys.readouterr()
    assert main(["report", str(out)]) == 0 and hold(out) == before
    assert run("--demos", demos, "--rollouts", tries, "--rollouts", more, "--out", out, *HALF) == 0
    assert "is finished" in capsys.readouterr().out
    assert run("--demos", demos, "--rollouts", tries, "--out", out, *HALF) == 2  # a round less
    assert "rounds = 2, not 1" in capsys.readouterr().err
