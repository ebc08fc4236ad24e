"""A small head that denoises action chunks, and the noise network of Flow-Noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wmpo.losses.flow import velocity_from_data
from wmpo.losses.flow_policy import Field
from wmpo.nn.layers import zero_init

TIME_WIDTH = 16


class FlowHead(nn.Module):
    """(features, noisy actions, time) -> the actions, from which the velocity follows. Times must stay below 1."""

    def __init__(self, hidden: int, chunk: int, action_dim: int, learned_noise: bool) -> None:
        super().__init__()
        self.shape = (chunk, action_dim)
        size = chunk * action_dim
        self.trunk = nn.Sequential(
            nn.Linear(hidden + size + TIME_WIDTH, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.data = nn.Linear(hidden, size)
        self.spread = zero_init(nn.Linear(hidden, size)) if learned_noise else None

    def field(self, features: Tensor) -> Field:
        """The velocities (B, K, D) that follow from features (B, hidden), and how wide the noise should be."""

        def flow(x: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor | None]:
            h = self.trunk(torch.cat([features, x.flatten(1), time_waves(t_B)], dim=1))
            velocity = velocity_from_data(self.data(h).unflatten(1, self.shape), x, t_B)
            spread = self.spread(h).tanh().unflatten(1, self.shape) if self.spread is not None else None
            return velocity, spread

        return flow


def time_waves(t_B: Tensor) -> Tensor:
    """(B, TIME_WIDTH) sines and cosines of 1/2, 1, ... periods over [0, 1]."""
    phase = math.pi * t_B[:, None] * torch.arange(1, TIME_WIDTH // 2 + 1, device=t_B.device, dtype=t_B.dtype)
    return torch.cat([phase.sin(), phase.cos()], dim=1)
