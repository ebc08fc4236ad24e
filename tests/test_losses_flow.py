import math

import pytest
import torch

from wmpo.losses import flow


def gaussian_denoiser(mean, covariance, rates):
    """E[x | x_t] for x ~ N(mean, covariance) and x_t = a x + s e, the posterior mean of linear regression."""

    def predict(x_t, t_B):
        a, s = rates(t_B[0])
        gain = a * covariance @ torch.linalg.inv(a**2 * covariance + s**2 * torch.eye(len(mean)).to(x_t))
        return mean + (x_t - a * mean) @ gain.T

    return predict


def mixture_denoiser(weights, means, std, rates):
    """E[x | x_t] for a mixture of isotropic Gaussians: posterior means weighed by responsibilities."""

    def predict(x_t, t_B):
        a, s = rates(t_B[0])
        variance = a**2 * std**2 + s**2
        distance = (x_t[:, None] - a * means).square().sum(-1)
        responsibility = (weights.log() - distance / (2 * variance)).softmax(1)
        posterior = means + a * std**2 / variance * (x_t[:, None] - a * means)
        return (responsibility[..., None] * posterior).sum(1)

    return predict


SAMPLERS = {
    "flow": (lambda t: (t, 1 - t), lambda predict, noise: flow.euler_sample(predict, noise, 200)),
    "linear": (flow.signal_and_noise, lambda predict, noise: flow.ddim_sample(predict, noise, 200)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_reproduces_a_gaussian(name):
    rates, sample = SAMPLERS[name]
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.3], [0.3, 1.5]], dtype=torch.float64)
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (noise - noise.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(noise.T.cov())).T  # exactly standard
    data = sample(gaussian_denoiser(mean, covariance, rates), noise)
    torch.testing.assert_close(data.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(data.T.cov(), covariance, atol=0.03, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_reproduces_a_mixture(name):
    rates, sample = SAMPLERS[name]
    weights = torch.tensor([0.3, 0.7])
    means = torch.tensor([[-2.0, 0.0], [1.0, 1.0]])
    data = sample(
        mixture_denoiser(weights, means, 0.2, rates), torch.randn(8000, 2, generator=torch.Generator().manual_seed(1))
    )
    nearest = torch.cdist(data, means).argmin(1)
    assert (nearest == 0).float().mean().item() == pytest.approx(0.3, abs=0.025)
    for mode in (0, 1):
        members = data[nearest == mode]
        torch.testing.assert_close(members.mean(0), means[mode], atol=0.03, rtol=0)
        torch.testing.assert_close(members.T.cov(), 0.04 * torch.eye(2), atol=0.008, rtol=0)


@pytest.mark.parametrize("sample", [flow.euler_sample, flow.ddim_sample])
def test_one_step_is_the_prediction_itself(sample):
    noise = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = []

    def predict(x_t, t_B):
        seen.append((x_t, t_B))
        return x_t.sin() * 100

    assert torch.equal(sample(predict, noise, 1), noise.sin() * 100)
    ((x_t, t_B),) = seen
    assert torch.equal(x_t, noise)
    assert torch.equal(t_B, torch.zeros(3))


def test_euler_step_by_hand():
    # From 4 at t = 0 with predictions 2 then 6: half way to 2 is 3, then 6 itself.
    seen = []

    def predict(x_t, t_B):
        seen.append((x_t.item(), t_B.item()))
        return torch.tensor([[2.0]]) if t_B.item() == 0 else torch.tensor([[6.0]])

    assert flow.euler_sample(predict, torch.tensor([[4.0]]), 2).item() == 6
    assert seen == [(4.0, 0.0), (3.0, 0.5)]


def test_conversions_agree_with_their_definitions():
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 5, 3, 2, 2, generator=generator)
    t_B = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    x_t = flow.interpolate(data, noise, t_B)
    torch.testing.assert_close(x_t[1], 0.3 * data[1] + 0.7 * noise[1])
    velocity = flow.velocity_target(data, noise)
    later = flow.interpolate(data, noise, t_B + 0.01)
    torch.testing.assert_close((later - x_t) / 0.01, velocity, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(flow.velocity_from_data(data, x_t, t_B), velocity, atol=1e-5, rtol=1e-5)


def test_weighted_data_loss_is_that_of_velocity():
    generator = torch.Generator().manual_seed(0)
    data, noise, guess = torch.randn(3, 4, 6, generator=generator)
    t_B = torch.tensor([0.2, 0.4, 0.6, 0.8])
    x_t = flow.interpolate(data, noise, t_B)
    weighted = flow.velocity_loss_weight(t_B, 1e9) * (guess - data).square().mean(1)
    guessed, true = (flow.velocity_from_data(x, x_t, t_B) for x in (guess, data))
    torch.testing.assert_close(weighted, (guessed - true).square().mean(1), rtol=1e-4, atol=1e-4)


def test_loss_weight_is_bounded():
    assert flow.velocity_loss_weight(torch.tensor([0.0, 0.9, 1.0]), 5.0).tolist() == [1, 5, 5]


def test_times_are_logit_normal():
    logit = torch.logit(flow.sample_times(40000, torch.Generator().manual_seed(0)))
    assert logit.mean().item() == pytest.approx(0.0, abs=0.02)
    assert logit.std().item() == pytest.approx(1.0, abs=0.02)


def test_schedules_have_the_published_values():
    # alpha_bar of the linear schedule after 1000 steps is 4.04e-5 (DDPM, appendix B).
    a, s = flow.signal_and_noise(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert a[0].item() ** 2 == pytest.approx(4.036e-5, rel=1e-3)
    assert (a[1].item(), s[1].item()) == (1.0, 0.0)
    # 50 of 1000 steps, the paper's noise on the context.
    a, s = flow.signal_and_noise(torch.tensor([0.95], dtype=torch.float64))
    beta = [1e-4 + (0.02 - 1e-4) * n / 999 for n in range(50)]
    assert a.item() ** 2 == pytest.approx(math.prod(1 - b for b in beta), rel=1e-9)
    a, s = flow.signal_and_noise(torch.linspace(0, 1, 137))
    torch.testing.assert_close(a**2 + s**2, torch.ones(137))
    assert (a.diff() > 0).all()


def test_sampled_steps_cover_the_schedule():
    n = ((1 - flow.sample_steps(20000, torch.Generator().manual_seed(0))) * 1000).round()
    assert n.min() == 1
    assert n.max() == 1000
    assert n.mean().item() == pytest.approx(500.5, abs=6)
