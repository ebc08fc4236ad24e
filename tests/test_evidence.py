"""The tasks that the method is judged on ask for competence, not haste; by stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.summary import summary

RESULTS = Path(__file__).resolve().parents[1] / "experiments" / "results"
TASKS = ("place", "stack", "insert")


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return summary(RESULTS)["table1"]


@pytest.mark.parametrize("task", TASKS)
def test_the_base_policy_lacks_skill_and_not_time(figures: dict[str, Any], task: str) -> None:
    base = figures["base"][task]
    success = {factor: values[0] for factor, values in base["success at horizons"].items()}
    assert 0.2 <= success["1"] <= 0.5
    assert success["2"] - success["1"] <= 0.08  # twice the time would help it little
    assert base["horizon"] >= 2 * base["median steps"]  # there is time for another attempt


@pytest.mark.parametrize("task", TASKS)
def test_there_is_much_to_gain(figures: dict[str, Any], task: str) -> None:
    unlimited = next(method for method in figures["methods"] if method["method"] == "Unlimited GRPO")
    assert unlimited["tasks"][task]["success"][0] > 0.9
