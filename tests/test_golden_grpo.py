"""GRPO's numbers are what they were: one tiny run against its stored curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from golden import make_grpo_curve as golden

STORED: dict[str, list[float]] = json.loads(golden.CURVE.read_text())


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def test_there_is_something_to_learn_from() -> None:
    advantage_E = golden.first_advantages()
    assert len(advantage_E) >= 24 and (advantage_E != 0).all() and len(advantage_E.unique()) > 4


def test_the_curve_is_the_stored_one(tmp_path: Path) -> None:
    found = golden.curve(tmp_path)
    assert found.keys() == STORED.keys()
    for name, values in found.items():
        exact = name in ("success", "groups_kept", "finish_step")
        assert values == pytest.approx(STORED[name], rel=1e-6 if exact else 1e-3, abs=1e-5), name


def test_the_stored_curve_shows_learning_and_clipping() -> None:
    success, clipped = STORED["success"], STORED["clip_fraction"]
    assert success[0] < 0.6 and sum(success[-3:]) / 3 > 0.9
    assert max(clipped) > 0.02 and all(STORED["loss"])
