"""Diffusion: rectified flow (the paper's code) and noise prediction (the paper), with their samplers.

Time t in [0, 1] runs from noise to data: t = 0 is pure noise, t = 1 is data. Both families meet behind one call:
`predict_data(x_t, t_B) -> x_hat`, the expected data given the noisy sample. All functions take (B, ...) tensors.

Rectified flow (arXiv 2209.03003)      x_t = t x + (1 - t) e,   velocity v = x - e
Variance preserving (arXiv 2006.11239) x_t = a x + s e,         a^2 + s^2 = 1, (a, s) = signal_and_noise(t)
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

STEPS = 1000  # of noise, that the variance-preserving schedule has
PredictData = Callable[[Tensor, Tensor], Tensor]


def expand(value_B: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...) with as many dimensions as `like`, in its type."""
    return value_B.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def standard_normal(shape: Sequence[int], device: torch.device, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, drawn wherever the generator lives."""
    if device.type == "meta":  # only shapes are asked for, which may be larger than this machine's memory
        return torch.empty(shape, device=device)
    return torch.randn(shape, generator=generator, device=generator.device).to(device)


# --- rectified flow ---------------------------------------------------------------------------------------------------


def sample_times(batch: int, generator: torch.Generator) -> Tensor:
    """(B,) training times, logit-normal (arXiv 2403.03206, eq. 19): t = sigmoid(normal)."""
    return torch.sigmoid(torch.randn(batch, generator=generator, device=generator.device))


def interpolate(data: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
    """x_t = t x + (1 - t) e."""
    t = expand(t_B, data)
    return t * data + (1 - t) * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """v = dx_t/dt = x - e."""
    return data - noise


def velocity_from_data(data: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
    """Undefined at t = 1."""
    return (data - x_t) / (1 - expand(t_B, x_t))


def velocity_loss_weight(t_B: Tensor, largest: float) -> Tensor:
    """(B,) weights 1 / (1 - t)^2 that make a squared error of predicted data one of velocity, at most `largest`."""
    return (1 - t_B).square().clamp(min=1e-12).reciprocal().clamp(max=largest)


def euler_sample(predict_data: PredictData, noise: Tensor, steps: int) -> Tensor:
    """Data from noise along dx/dt = (x_hat - x) / (1 - t), in `steps` Euler steps. [code: 30]

    One step returns predict_data(noise, 0) itself, and the last step always ends on a prediction.
    """
    return deque(euler_path(predict_data, noise, steps), maxlen=1).pop()


def euler_path(predict_data: PredictData, noise: Tensor, steps: int) -> Iterator[Tensor]:
    """The points that `euler_sample` passes, at t = 0, 1 / steps, ..., 1."""
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()
    x = noise
    yield x
    for t, t_next in itertools.pairwise(times):
        x_hat = predict_data(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device))
        # Equals x + (t_next - t) * velocity, and is exactly x_hat in the last step, where 1 - t = t_next - t.
        x = torch.lerp(x, x_hat, (t_next - t) / (1 - t))
        yield x


def data_from_step(x_t: Tensor, x_next: Tensor, t_B: Tensor, t_next_B: Tensor) -> Tensor:
    """The estimate of the data of which one Euler step leads from x at t to x at t_next: x + (x_next - x) (1 - t) /
    (t_next - t). A path of many steps, asked for with t and t_next far apart, gives what one step should estimate
    (arXiv 2202.00512, appendix G, for rectified flow)."""
    return torch.lerp(x_t, x_next, (1 - expand(t_B, x_t)) / expand(t_next_B - t_B, x_t))


# --- noise prediction, variance preserving ----------------------------------------------------------------------------


@lru_cache
def log_alpha_bar() -> Tensor:
    """(1001,) double: log of the kept signal variance after n = 0 ... 1000 steps of noise; 0 at n = 0.

    beta grows linearly from 1e-4 to 0.02 (arXiv 2006.11239).
    """
    beta = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64, device="cpu")
    return torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), torch.log1p(-beta).cumsum(0)])


def signal_and_noise(t_B: Tensor) -> tuple[Tensor, Tensor]:
    """(a, s), each (B,): t = 1 is (1, 0); t = 0 is step 1000 of 1000. Between steps log(a^2) is interpolated."""
    table = log_alpha_bar().to(t_B.device)
    position_B = (1 - t_B.double()).clamp(0, 1) * STEPS
    below_B = position_B.floor().clamp(max=STEPS - 1).long()
    log_B = torch.lerp(table[below_B], table[below_B + 1], position_B - below_B)
    return (log_B / 2).exp().to(t_B.dtype), (-torch.expm1(log_B)).sqrt().to(t_B.dtype)


def diffuse(data: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
    """x_t = a x + s e."""
    a_B, s_B = signal_and_noise(t_B)
    return expand(a_B, data) * data + expand(s_B, data) * noise


def sample_steps(batch: int, generator: torch.Generator) -> Tensor:
    """(B,) training times of the 1000-step schedule: uniform over steps 1 ... 1000, as t = 1 - n / 1000."""
    n_B = torch.randint(1, STEPS + 1, (batch,), generator=generator, device=generator.device)
    return 1 - n_B / STEPS


def ddim_sample(predict_data: PredictData, noise: Tensor, steps: int) -> Tensor:
    """Data from noise by deterministic DDIM (arXiv 2010.02502, eq. 12 with sigma = 0), in equal steps of t.

    One step returns predict_data(noise, 0) itself, and the last step always ends on a prediction.
    """
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")  # numbers, wherever the noise lives
    a, s = signal_and_noise(times)
    x = noise
    for i, t in enumerate(times[:-1].tolist()):
        x_hat = predict_data(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device))
        if i + 1 == steps:
            return x_hat
        x = a[i + 1].item() * x_hat + (s[i + 1] / s[i]).item() * (x - a[i].item() * x_hat)
    return x
