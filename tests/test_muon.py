"""Orthogonal updates: what they are, whom they concern, and that they survive a stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wmpo.config import FitConfig
from wmpo.nn.muon import Muon, is_matrix, orthogonal
from wmpo.training.fit import fit
from wmpo.training.log import RunLog

torch.set_num_threads(1)


@pytest.mark.parametrize("shape", [(40, 64), (64, 40)])
def test_orthogonal_keeps_directions_and_evens_out_their_sizes(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -1, 40)) @ vh
    sizes = torch.diag(u.T @ orthogonal(matrix) @ vh.T)
    assert sizes.min() > 0.6 and sizes.max() < 1.25
    assert (orthogonal(matrix) - u @ torch.diag(sizes) @ vh).abs().max() < 1e-4  # no direction was turned


def test_only_wide_kernels_are_matrices() -> None:
    assert is_matrix(nn.Linear(32, 40).weight) and is_matrix(nn.Conv2d(4, 32, 3).weight)
    assert not is_matrix(nn.Linear(31, 40).weight) and not is_matrix(nn.Linear(32, 40).bias)
    assert not is_matrix(nn.Parameter(torch.zeros(32, 16, 16)))  # a picture


def test_first_step_by_hand() -> None:
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(32, 50)), nn.Parameter(torch.zeros(32))
    before, gradient = weight.detach().clone(), torch.randn(32, 50)
    groups = [
        {"params": [weight], "weight_decay": 0.1, "matrix": True},
        {"params": [bias], "weight_decay": 0.0},
    ]
    optimizer = Muon(groups, lr=0.01, betas=(0.9, 0.99), fused=False)
    weight.grad, bias.grad = gradient.clone(), torch.ones(32)
    optimizer.step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * 50**0.5 * orthogonal(gradient)
    torch.testing.assert_close(weight.detach(), expected)
    torch.testing.assert_close(bias.detach(), torch.full((32,), -0.01))  # AdamW's first step is the learning rate
    assert len(optimizer.param_groups) == 2


class Wide(nn.Module):
    """y = 2x, in 32 dimensions; stops itself at a step."""

    def __init__(self, stop_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(32, 32)
        self.steps, self.stop_at = 0, stop_at

    def forward(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        self.steps += 1
        if self.steps == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return (self.layer(x) - 2 * x).square().mean(), {}


def sample(step: int) -> Tensor:
    return torch.randn(64, 32, generator=torch.Generator().manual_seed(step))


def train(folder: Path, module: Wide, steps: int) -> Wide:
    config = FitConfig(optimizer="muon", steps=steps, warmup=2, lr=0.02)
    with RunLog(folder, quiet=True) as log:
        fit(module, sample, config, folder=folder, name="wide", log=log)
    return module


def test_it_learns(tmp_path: Path) -> None:
    weight = train(tmp_path, Wide(), 200).layer.weight
    assert torch.allclose(weight, 2 * torch.eye(32), atol=0.15)


def test_resume_equals_uninterrupted(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", Wide(), 6)
    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        train(tmp_path / "parts", Wide(stop_at=3), 6)
    resumed = train(tmp_path / "parts", Wide(), 6)
    assert resumed.steps == 3
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
