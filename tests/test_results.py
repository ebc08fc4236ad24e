"""A run's numbers survive the disk, and what is derived from them is right."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmpo.errors import UserError
from wmpo.evaluate import Evaluation, time_limit
from wmpo.recipes import RECIPES
from wmpo.report.results import (
    Agreement,
    Fidelity,
    Gain,
    Interactions,
    PolicyResult,
    RunResult,
    Stage,
    StateFidelity,
    mixed_tasks,
)
from wmpo.report.statistics import wilson_interval
from wmpo.training.log import RunLog
from wmpo.types import Episode

TIMED: Any = {"horizon": 40, "time_limit": 80}
EVENTS = {"grasps": [1, 2, 1, 0], "disturbances": [0, 1, 0, 0], "drops": [0, 1, 0, 0]}


def result() -> RunResult:
    made = RunResult.begin(RECIPES["push"])
    made.policies["base"] = PolicyResult([1, 2, 3, 4], [0, 0, 1, 0], [0, 0, 12, 45], **TIMED)
    made.policies["wmpo"] = PolicyResult([1, 2, 3, 4], [1, 1, 0, 0], [10, 20, 0, 60], events=EVENTS, **TIMED)
    made.interactions["rollouts"] = Interactions(128, 4000)
    made.stages["practice"] = Stage(12.5, 800.0)
    made.fidelity = [Fidelity(8, 24.5, 0.9, float("nan"), 19.0, 0.8, 30.0, 16)]
    made.state_fidelity = [StateFidelity(8, [0.1, 0.2], [0.3, 0.4], 0.5, 1.5, 16)]
    made.agreement = Agreement(0.9, 0.8, 0.7, 0.75, 16, 5)
    made.curves = {"wmpo": {"success": [(1, 0.1), (2, 0.2)]}}
    return made


def test_round_trip(tmp_path: Path) -> None:
    made = result()
    made.save(tmp_path / "r.json")
    loaded = RunResult.load(tmp_path / "r.json")
    assert math.isnan(loaded.fidelity[0].frechet)
    made.fidelity = loaded.fidelity  # NaN is unequal to itself
    assert loaded == made
    assert loaded.recipe["grpo"]["group_size"] == 8 and loaded.task == "push"
    assert loaded.curves["wmpo"]["success"] == [(1, 0.1), (2, 0.2)]
    assert set(loaded.versions) >= {"python", "torch", "numpy", "mujoco", "wmpo"}


def test_a_result_of_a_checkout_names_its_commit() -> None:
    if not (Path(__file__).parents[1] / ".git").exists():
        pytest.skip("no checkout")
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?", RunResult.begin(RECIPES["push"]).commit)


def test_older_results_knew_one_camera_and_no_state(tmp_path: Path) -> None:
    result().save(tmp_path / "r.json")
    plain = json.loads((tmp_path / "r.json").read_text())
    del plain["state_fidelity"], plain["fidelity"][0]["camera"]
    (tmp_path / "r.json").write_text(json.dumps(plain))
    loaded = RunResult.load(tmp_path / "r.json")
    assert loaded.fidelity[0].camera == "front" and loaded.state_fidelity == []


def test_summary_by_hand() -> None:
    summary = result().summary()
    assert summary.rates["base"].value == 0.25 and summary.rates["wmpo"].value == 0.5
    gain = summary.gains["wmpo"]
    assert (gain.won, gain.lost, gain.difference.value) == (2, 1, 0.25)
    assert gain.p_value == 1.0  # 2 against 1: two-sided 2 * (1 + 3) / 8
    assert gain.difference.low < 0 < gain.difference.high
    assert "base" not in summary.gains
    assert result().policies["wmpo"].median_steps == 15.0
    assert math.isnan(PolicyResult([1], [0], [0]).median_steps)


def test_success_within_a_number_of_actions() -> None:
    played = PolicyResult([1, 2, 3, 4], [1, 0, 0, 1], [40, 41, 0, 7], **TIMED)
    found = {steps: played.within(steps) for steps in (6, 7, 40, 40.5, 60, 80)}
    assert found == {6: [0] * 4, 7: [0, 0, 0, 1], 40: [1, 0, 0, 1], 40.5: [1, 0, 0, 1], 60: [1, 1, 0, 1],
                     80: [1, 1, 0, 1]}  # fmt: skip
    curve = played.curve()
    assert [t for t, _ in curve] == [*range(81)]
    assert [dict(curve)[t] for t in (0, 6, 7, 39, 40, 41, 80)] == [0, 0, 0.25, 0.25, 0.5, 0.75, 0.75]
    assert played.median_steps == 23.5  # of those within the horizon


def test_recoveries_by_hand() -> None:
    """A clean success; disturbed; gripped twice; gripped in vain; never gripped; dropped, and lost for good."""
    played = PolicyResult(
        [1, 2, 3, 4, 5, 6], [1, 1, 1, 0, 0, 0], [9, 9, 9, 0, 0, 0],
        events={"grasps": [1, 1, 2, 1, 0, 0], "disturbances": [0, 1, 0, 0, 0, 0], "drops": [0, 0, 0, 0, 0, 1]},
    )  # fmt: skip
    assert played.first_attempt_failed == [False, True, True, True, False, True]
    assert played.recoveries() == [1, 1, 0, 0] and played.recoveries(disturbed_only=True) == [1]
    uncounted = replace(played, events={})
    assert uncounted.recoveries() == uncounted.recoveries(disturbed_only=True) == []


def test_outcomes_of_an_evaluation() -> None:
    played = Evaluation(10, 20)
    for number, frame in enumerate((10, 11, 0)):
        hits = np.arange(13) >= frame if frame else np.zeros(13, bool)
        meta = {"grasps": str(number), "renderer": "rays"}
        played.add(Episode({}, np.zeros((13, 0)), np.zeros((12, 1)), hits, "x", number, f"t{number % 2}", "p", meta))
    assert (played.finish_step, played.success, played.rate) == ([10, 11, 0], [True, False, False], 1 / 3)
    assert played.steps == 36
    policy = PolicyResult.of(played, 0.5, "fog")
    assert policy == PolicyResult(
        [0, 1, 2], [1, 0, 0], [10, 11, 0], 0.5, "fog", ["t0", "t1", "t0"], 10, 20, {"grasps": [0, 1, 2]}
    )
    assert time_limit(31, 1.5) == 46 and time_limit(31, 1.0) == 31


def test_gain_of_ten_wins() -> None:
    gain = Gain.between([0] * 10 + [1] * 10, [1] * 10 + [1] * 10)
    assert gain.difference.value == 0.5 and gain.difference.low > 0.2
    assert gain.p_value == pytest.approx(2 / 1024)


def test_other_starts_are_not_paired() -> None:
    made = result()
    made.policies["wmpo"] = PolicyResult([5, 6], [1, 1], [3, 4])
    assert made.summary().gains == {}


def of_two_tasks() -> RunResult:
    made = result()
    task = ["place", "push", "push", "place"]
    made.policies = {name: replace(policy, task=task) for name, policy in made.policies.items()}
    return made


def test_each_task_by_hand(tmp_path: Path) -> None:
    """Of starts 1 and 4 the base solves none and practice one; of 2 and 3 each solves one."""
    made = of_two_tasks()
    made.save(tmp_path / "r.json")
    assert RunResult.load(tmp_path / "r.json").policies == made.policies and made.tasks == ["place", "push"]
    place, push = made.summary().tasks["place"], made.summary().tasks["push"]
    assert place.rates["base"] == wilson_interval(0, 2) and place.rates["wmpo"] == wilson_interval(1, 2)
    assert (place.gains["wmpo"].won, place.gains["wmpo"].lost, place.gains["wmpo"].difference.value) == (1, 0, 0.5)
    assert push.rates["base"].value == push.rates["wmpo"].value == 0.5
    assert (push.gains["wmpo"].won, push.gains["wmpo"].lost) == (1, 1)
    assert made.policies["wmpo"].of_task("push") == PolicyResult(
        [2, 3], [1, 0], [20, 0], events={"grasps": [2, 1], "disturbances": [1, 0], "drops": [1, 0]}, **TIMED
    )  # fmt: skip
    assert made.summary().rates == result().summary().rates and made.summary().gains == result().summary().gains
    assert result().tasks == [] and result().summary().tasks == {}
    assert mixed_tasks(["a", "b", "a"]) == ["a", "b", "a"] and mixed_tasks(["a", "a"]) == mixed_tasks([]) == []


def test_a_policy_whose_tasks_are_not_known_is_not_compared_task_by_task() -> None:
    made = of_two_tasks()
    made.policies["base"] = replace(made.policies["base"], task=[])  # as in files of before
    assert list(made.summary().tasks["place"].rates) == ["wmpo"] and made.summary().tasks["place"].gains == {}


def test_files_of_before_tasks_were_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    result().save(file)
    data = json.loads(file.read_text())
    for policy in data["policies"].values():
        assert policy.pop("task") == []
    file.write_text(json.dumps(data))
    assert RunResult.load(file).policies == result().policies


def test_final_is_the_last_round() -> None:
    made = result()
    assert made.final == "wmpo"
    made.policies = {name: made.policies["base"] for name in ("base", "wmpo-1", "control", "wmpo-2")}
    assert made.final == "wmpo-2"
    del made.policies["wmpo-1"], made.policies["wmpo-2"]
    with pytest.raises(UserError, match="no policy that practised"):
        _ = made.final


def test_logs_are_read(tmp_path: Path) -> None:
    with RunLog(tmp_path, quiet=True) as log:
        with log.stage("practice"):
            log.scalars(1, {"practice/success": 0.25, "practice/groups_kept": 7, "policy/loss": 1.0})
        log.scalars(2, {"practice/success": 0.5})
    made = RunResult.begin(RECIPES["push"])
    made.read_logs(tmp_path)
    assert made.curves == {"practice": {"success": [(1, 0.25), (2, 0.5)], "groups_kept": [(1, 7.0)]}}
    assert made.stages["practice"].sessions == 1


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("policies", "base", "success"), [1], "one outcome and one finish step"),
        (("policies", "base", "success"), [2, 0, 0, 0], "must be 0 or 1"),
        (("policies", "base", "task"), ["push"], "the task of each initial state"),
        (("policies", "wmpo", "events", "grasps"), [1], "wmpo needs one outcome and one finish step"),
        (("format",), 1, "has format 1"),
        (("policies", "base", "success"), [0.5, 0, 0, 0], "must be a whole number"),
        (("format",), 99, "has format 99"),
        (("seed",), "x", "seed is 'x'"),
        (("surprise",), 1, "'surprise'"),
    ],
)
def test_wrong_files(tmp_path: Path, path: tuple[str, ...], value: object, complaint: str) -> None:
    file = tmp_path / "r.json"
    result().save(file)
    data = json.loads(file.read_text())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match=complaint):
        RunResult.load(file)


def test_no_file_and_half_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        RunResult.load(tmp_path / "none.json")
    result().save(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    (tmp_path / "r.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="damaged"):
        RunResult.load(tmp_path / "r.json")
