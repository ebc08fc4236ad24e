"""Flow-matching policies: how they are sampled with exact log-probabilities, so that policy gradients can train them.

Time t in [0, 1] runs from noise to data, as in `wmpo.losses.flow`. A policy is a field (x, t_B) -> (v, r): the velocity
(B, K, D), and a spread (B, K, D) in [-1, 1], of fewer dimensions where only these are left to chance, or None. N steps
of length dt = 1/N lead along a path from noise x_0 to the actions x_1. With a noise level a > 0 each step is Gaussian:

Flow-SDE (no spread; Flow-GRPO, arXiv 2505.05470, eq. 9; pi_RL, arXiv 2510.25889)
    mean = x + (v - s^2 e / (2 (1 - t))) dt    std = s sqrt(dt)    s = a sqrt((1 - t) / t)
    with e = x - t v, the noise in x. Where steps are small, x_t is distributed as without noise, whatever a.
    At t = 0, where s would be infinite, dt stands for the t below the line, as in Flow-GRPO's code.
Flow-Noise (a learned spread; ReinFlow, arXiv 2505.22094; pi_RL)
    mean = x + v dt    std = a dt 2^r
    so that a means about the same for both: the last step of Flow-SDE has std = a dt sqrt(N / (N - 1)).

With a = 0 both are the deterministic Euler sampler. The noise x_0 has no parameters, so its density is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wmpo.losses.flow import interpolate, velocity_target

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


def sde_step(x: Tensor, velocity: Tensor, t: float, dt: float, level: float) -> tuple[Tensor, float]:
    """(mean, std) of x at t + dt by Flow-SDE."""
    scale = level * math.sqrt((1 - t) / max(t, dt))
    noise = x - t * velocity
    mean = x + dt * velocity - (dt * scale**2 / (2 * (1 - t))) * noise
    return mean, scale * math.sqrt(dt)


def noise_step(x: Tensor, velocity: Tensor, spread: Tensor, dt: float, level: float) -> tuple[Tensor, Tensor]:
    """(mean, std) of x at t + dt by Flow-Noise; std is between half and twice level * dt."""
    return x + dt * velocity, level * dt * torch.exp2(spread)


def log_density(x: Tensor, mean: Tensor, std: Tensor | float, unit: float) -> Tensor:
    """log of the normal density of x times `unit`: of the probability of a bin of that width around x."""
    std = torch.as_tensor(std, dtype=x.dtype, device=x.device)
    return -((x - mean) / std).square() / 2 - (std / unit).log() - math.log(2 * math.pi) / 2


def sample_path(field: Field, noise: Tensor, level: float, own: int | None = None) -> tuple[Tensor, Tensor]:
    """A path from noise to data (B, N+1, K, D), and its log-probabilities (B, K, N*own) as in `path_log_prob`.

    `noise` (B, N+1, K, D) is standard normal: where the path begins, and what is added in each of the N steps to the
    first `own` dimensions, to all without it; the others only follow their velocity.
    """
    own = noise.shape[-1] if own is None else own
    path = [noise[:, 0]]
    log_probs = []
    steps = noise.shape[1] - 1
    for n in range(steps):
        mean, std, unit, rest = _transition(field, path[-1], n, steps, level, own)
        x = mean + std * noise[:, n + 1, :, :own]
        log_probs.append(log_density(x, mean, std, unit) if level else torch.zeros_like(mean))
        path.append(torch.cat([x, rest], -1))
    return torch.stack(path, 1), torch.cat(log_probs, -1)


def path_log_prob(field: Field, path: Tensor, level: float, own: int | None = None) -> Tensor:
    """(B, K, N*own) log-probability of each step in each of the first `own` dimensions of a path (B, N+1, K, D), given
    the points before; of the other dimensions, which follow from these and from where they begin, only that is read.

    It is in bins as wide as the smallest std that the step can have: never above 0, and ratios are those of the
    densities. 0 where level = 0 and nothing is left to chance.
    """
    own = path.shape[-1] if own is None else own
    rest = path[:, 0, :, own:]
    steps = path.shape[1] - 1
    log_probs = []
    for n in range(steps):
        x = torch.cat([path[:, n, :, :own], rest], -1)
        mean, std, unit, rest = _transition(field, x, n, steps, level, own)
        log_probs.append(log_density(path[:, n + 1, :, :own], mean, std, unit) if level else torch.zeros_like(mean))
    return torch.cat(log_probs, -1)


def _transition(
    field: Field, x: Tensor, n: int, steps: int, level: float, own: int
) -> tuple[Tensor, Tensor | float, float, Tensor]:
    """(mean, std, smallest possible std) of the step n of `steps`, counted from 0, in the first `own` dimensions, and
    where the others are after it."""
    t, dt = n / steps, 1 / steps
    velocity, spread = field(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device))
    rest = x[..., own:] + dt * velocity[..., own:]
    x, velocity = x[..., :own], velocity[..., :own]
    if spread is None:
        mean, std = sde_step(x, velocity, t, dt, level)
        return mean, std, std, rest
    mean, spreads = noise_step(x, velocity, spread, dt, level)
    return mean, spreads, level * dt / 2, rest


def flow_matching_loss(field: Field, data: Tensor, noise: Tensor, t_B: Tensor, mask_BK: Tensor) -> Tensor:
    """Mean squared error of the velocity over the actions (B, K, D) that the mask keeps (arXiv 2209.03003)."""
    velocity, _ = field(interpolate(data, noise, t_B), t_B)
    error_BK = (velocity - velocity_target(data, noise)).square().mean(-1)
    return (error_BK * mask_BK).sum() / mask_BK.sum()


def beta_times(uniform_B: Tensor, power: float = 1.5) -> Tensor:
    """(B,) training times of pi0 (arXiv 2410.24164, appendix B) from uniform numbers; mostly noise.

    1 - t = 0.999 Beta(power, 1) + 0.001.
    """
    return 1 - (0.999 * uniform_B.pow(1 / power) + 0.001)
