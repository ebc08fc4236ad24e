"""Memory that is planned, against memory that is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from wmpo.cli import main
from wmpo.config import FitConfig
from wmpo.plan import META, Alive, Need, blank, fitting, plan, training
from wmpo.recipes import RECIPES
from wmpo.types import EnvSpec

SPEC = EnvSpec({"front": (32, 32)}, 4, 4, 24, 5)


class Square(nn.Module):
    """One matrix, squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64, bias=False)

    def forward(self, batch: torch.Tensor, generator: object = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.linear(batch).square().mean(), {}


def test_by_hand() -> None:
    with torch.device(META):
        module = Square()
    need = training("square", module, blank(1000, 64), FitConfig(optimizer="adamw", ema=0.9), "")
    matrix, rows = 64 * 64 * 4, 1000 * 64 * 4
    assert (need.parameters, need.weights, need.training) == (64 * 64, 2 * matrix, 3 * matrix)
    assert 2 * rows <= need.activations <= 6 * rows  # outputs, squares, and gradients of them
    lean = training("square", module, blank(1000, 64), FitConfig(optimizer="muon"), "")
    assert (lean.weights, lean.training) == (matrix, 2 * matrix)


def test_what_is_let_go_is_not_counted() -> None:
    with Alive() as alive:
        for _ in range(5):
            x = torch.empty(1000, device=META)
            del x
        y = torch.empty(10, device=META)
        y.view(5, 2)
    assert alive.peak == 4000


@pytest.mark.parametrize("rows", [16, 64])
def test_planned_activations_are_those_of_a_real_step(rows: int) -> None:
    real = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.SiLU())
    images = torch.randn(rows, 3, 64, 64)
    with torch.device(META):
        model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.SiLU())
    with Alive() as alive:
        model(blank(rows, 3, 64, 64)).square().mean().backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        real(images).square().mean().backward()
    running, most = 0, 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            running += event.nbytes()
            most = max(most, running)
    assert alive.peak == pytest.approx(most + images.nbytes, rel=0.25)


def test_more_rows_need_more_memory_and_the_advice_fits() -> None:
    recipe = RECIPES["smoke"]
    needs = {need.stage: need for need in plan(recipe, SPEC)}
    assert list(needs) == ["imitate", "world model", "reward model", "practise: imagine"]
    double = replace(recipe, grpo=replace(recipe.grpo, groups=2 * recipe.grpo.groups))
    imagine, more = needs["practise: imagine"], plan(double, SPEC)[-1]
    assert 1.5 < more.activations / imagine.activations < 2.1
    assert fitting(imagine, imagine.total) == "fits"
    assert fitting(more, (more.total + imagine.total) / 2).startswith("lower grpo.groups to ")
    large = Need("imitate", 10, 10**9, 10**9, 1, "policy.fit.batch_size, policy.width")
    assert fitting(large, 1e9) == "the networks alone are too large: lower policy.width"


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smoke", "--env.renderer", "rays"]) == 0
    assert "16 episodes, up to" in capsys.readouterr().out
    assert main(["plan", "smoke", "--env.renderer", "rays", "--gpu-memory", "0.001"]) == 1
    assert main(["plan", "smoke", "--gpu-memory", "0"]) == 2
