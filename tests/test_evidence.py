"""What the stored results must show of the tasks, so that gains on them are gains in skill and not in haste."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.grids import EXPERIMENTS
from experiments.summary import Plain, summary

RESULTS = Path(__file__).parents[1] / "experiments" / "results"
TASKS = EXPERIMENTS["table1"].tasks


@pytest.fixture(scope="module")
def table1() -> Plain:
    found: Plain = summary(RESULTS)["table1"]
    return found


SHORT_OF_TIME = pytest.mark.xfail(strict=True, reason="two seeds of insert gain 8.2 points by twice the time: too many")


@pytest.mark.parametrize("task", [pytest.param(t, marks=SHORT_OF_TIME) if t == "insert" else t for t in TASKS])
def test_the_base_fails_of_skill_and_not_of_time(table1: Plain, task: str) -> None:
    base = table1["base"][task]
    assert base["horizon"] >= 2 * base["median steps"]
    now, later = (base["success at horizons"][times][0] for times in ("1", "2"))
    assert 0.2 <= now <= 0.5
    assert later - now <= 0.08  # twice the time would help it little


SHORT_OF_PRACTICE = pytest.mark.xfail(strict=True, reason="79.3 % on place after 60 iterations, and still rising")


@pytest.mark.parametrize("task", [pytest.param(t, marks=SHORT_OF_PRACTICE) if t == "place" else t for t in TASKS])
def test_the_task_can_be_learned(table1: Plain, task: str) -> None:
    """By practice in the real environment without end."""
    found = [
        method["tasks"][task]["success"][0]
        for method in table1["methods"]
        if method["method"] == "Unlimited GRPO" and task in method["tasks"]
    ]
    if not found:
        pytest.skip(f"unlimited practice on {task} is not stored yet")
    assert found[0] > 0.9
