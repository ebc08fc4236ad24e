"""Flow policies: the same distribution with noise on the way as without, and log-probabilities that are those of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from wmpo.losses.flow_policy import (
    Field,
    beta_times,
    flow_matching_loss,
    noise_step,
    path_log_prob,
    sample_path,
    sde_step,
)

MEAN, SPREAD = 0.7, 0.3


def gaussian(x: Tensor, t_B: Tensor) -> tuple[Tensor, None]:
    """The exact velocity to data from N(MEAN, SPREAD^2): E[data | x] follows from regression."""
    t = t_B[:, None, None]
    variance = t**2 * SPREAD**2 + (1 - t) ** 2
    data = MEAN + t * SPREAD**2 / variance * (x - t * MEAN)
    return (data - x) / (1 - t), None


def linear(weight: float, spread: float | None = None) -> Field:
    """A field that is as wrong as any: velocity = weight * x + t."""

    def field(x: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor | None]:
        return weight * x + t_B[:, None, None], None if spread is None else torch.full_like(x, spread)

    return field


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_noise_on_the_way_leaves_the_marginals_as_they_are(level: float) -> None:
    """x_t is t data + (1 - t) noise, so its mean is t MEAN and its variance t^2 SPREAD^2 + (1 - t)^2."""
    steps = 200
    path, _ = sample_path(gaussian, normal(20_000, steps + 1, 1, 1).double(), level)
    for n in (20, 100, 180, 200):
        t = n / steps
        assert path[:, n].mean().item() == pytest.approx(t * MEAN, abs=0.015)
        assert path[:, n].std().item() == pytest.approx(math.hypot(t * SPREAD, 1 - t), rel=0.03)


def test_noise_is_really_added() -> None:
    noise = normal(4, 11, 2, 3)
    same_start = noise.clone()
    same_start[:, 1:] = normal(4, 10, 2, 3, seed=1)
    for level, equal in ((0.0, True), (0.5, False)):
        ends = [sample_path(gaussian, drawn, level)[0][:, -1] for drawn in (noise, same_start)]
        assert torch.equal(*ends) == equal


def test_without_noise_it_is_eulers_method() -> None:
    noise = normal(3, 5, 2, 2)
    path, log_prob = sample_path(linear(-0.5), noise, 0.0)
    x = noise[:, 0]
    for n in range(4):
        x = x + 0.25 * (-0.5 * x + n / 4)
        torch.testing.assert_close(path[:, n + 1], x)
    assert torch.equal(log_prob, torch.zeros(3, 2, 8))


@pytest.mark.parametrize("spread", [None, -1.0, 0.4])
def test_log_probabilities_are_those_of_torch(spread: float | None) -> None:
    """Of every step, in bins as wide as the smallest std of that step."""
    field, level, steps = linear(-0.5, spread), 0.4, 4
    path, log_prob = sample_path(field, normal(5, steps + 1, 2, 3), level)
    assert log_prob.shape == (5, 2, steps * 3) and log_prob.max() <= 0
    for n in range(steps):
        t = n / steps
        velocity = -0.5 * path[:, n] + t
        if spread is None:
            mean, std = sde_step(path[:, n], velocity, t, 1 / steps, level)
            smallest = std
        else:
            mean, std = path[:, n] + velocity / steps, level / steps * 2**spread
            smallest = level / steps / 2
        expected = Normal(mean, std).log_prob(path[:, n + 1]) + math.log(smallest)
        torch.testing.assert_close(log_prob[..., 3 * n : 3 * n + 3], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(path_log_prob(field, path, level), log_prob)


def test_a_step_of_the_sde_by_hand() -> None:
    """t = 1/2, dt = 1/4, a = 0.6: s = 0.6, e = x - v/2 = 0.5, mean = 2 + 3/4 - 0.36 * 0.5 / 4, std = 0.6 / 2."""
    mean, std = sde_step(torch.tensor(2.0), torch.tensor(3.0), 0.5, 0.25, 0.6)
    assert mean.item() == pytest.approx(2.75 - 0.045)
    assert std == pytest.approx(0.3)


def test_the_first_step_is_finite() -> None:
    """t = 0, dt = 1/4: s = 2 a, std = a, mean = x + v/4 - a^2 x / 2."""
    mean, std = sde_step(torch.tensor(2.0), torch.tensor(3.0), 0.0, 0.25, 0.4)
    assert std == pytest.approx(0.4)
    assert mean.item() == pytest.approx(2.75 - 0.16)


def test_a_learned_step_by_hand() -> None:
    mean, std = noise_step(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(-1.0), 0.25, 0.4)
    assert mean.item() == pytest.approx(2.75)
    assert std.item() == pytest.approx(0.05)


def test_the_gradient_of_one_step_by_hand() -> None:
    """One step from x with velocity w: mean = x + w - a^2 x / 2, std = a, d log p / dw = (y - mean) / a^2."""
    weight = torch.tensor(0.3, requires_grad=True)

    def field(x: Tensor, t_B: Tensor) -> tuple[Tensor, None]:
        return weight * torch.ones_like(x), None

    path = torch.tensor([1.2, 0.9]).view(1, 2, 1, 1)
    log_prob = path_log_prob(field, path, 0.5)
    mean = 1.2 + 0.3 - 0.125 * 1.2
    assert log_prob.item() == pytest.approx(-((0.9 - mean) ** 2) / 0.5 - math.log(2 * math.pi) / 2)
    (gradient,) = torch.autograd.grad(log_prob.sum(), weight)
    assert gradient.item() == pytest.approx((0.9 - mean) / 0.25)


def test_the_gradient_of_a_learned_spread_by_hand() -> None:
    """d log p / dr = ln 2 (z^2 - 1) with std = a 2^r and z = (y - mean) / std."""
    spread = torch.tensor(0.5, requires_grad=True)

    def field(x: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x), spread * torch.ones_like(x)

    path = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    (gradient,) = torch.autograd.grad(path_log_prob(field, path, 0.5).sum(), spread)
    z = 1 / (0.5 * 2**0.5)
    assert gradient.item() == pytest.approx(math.log(2) * (z**2 - 1))


def test_policy_gradients_move_the_mean_of_the_actions_where_the_reward_is() -> None:
    """REINFORCE on one action, rewarded for being near 1: the constant velocity b must grow from 0 to about 1."""
    b = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([b], lr=0.05)

    def field(x: Tensor, t_B: Tensor) -> tuple[Tensor, None]:
        return (b - x) / (1 - t_B[:, None, None]), None

    for turn in range(60):
        with torch.no_grad():
            path, _ = sample_path(field, normal(256, 5, 1, 1, seed=turn), 0.5)
        reward = -(path[:, -1] - 1).square().flatten()
        loss = -(path_log_prob(field, path, 0.5).sum((1, 2)) * (reward - reward.mean())).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert b.item() == pytest.approx(1.0, abs=0.15)


def test_the_loss_by_hand() -> None:
    """Data 2, noise 0: v = 2. A field of 0 errs by 2; what the mask leaves out counts nothing."""

    def still(x: Tensor, t_B: Tensor) -> tuple[Tensor, None]:
        return torch.zeros_like(x), None

    data = torch.tensor([2.0, 100.0]).view(1, 2, 1)
    mask = torch.tensor([[True, False]])
    assert flow_matching_loss(still, data, torch.zeros(1, 2, 1), torch.tensor([0.3]), mask).item() == 4.0


def test_the_loss_of_the_exact_field_is_the_least() -> None:
    data, noise = MEAN + SPREAD * normal(4000, 1, 1), normal(4000, 1, 1, seed=1)
    t_B, mask = torch.rand(4000, generator=torch.Generator().manual_seed(2)) * 0.9, torch.ones(4000, 1)

    def other(x: Tensor, t_B: Tensor) -> tuple[Tensor, None]:
        return gaussian(x, t_B)[0] + 0.2, None

    assert flow_matching_loss(gaussian, data, noise, t_B, mask) < flow_matching_loss(other, data, noise, t_B, mask)


def test_training_times_of_pi0() -> None:
    t_B = beta_times(torch.linspace(0, 1, 10_001, dtype=torch.float64))
    assert t_B.min().item() == pytest.approx(0.0) and t_B.max().item() == pytest.approx(0.999)
    assert (1 - t_B).mean().item() == pytest.approx(0.999 * 0.6 + 0.001, abs=1e-3)  # Beta(1.5, 1) has the mean 0.6
