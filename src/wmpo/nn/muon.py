"""Muon: momentum whose matrix-shaped updates are made orthogonal, so that all directions learn equally fast.

After Keller Jordan, https://kellerjordan.github.io/posts/muon. Not torch.optim.Muon, because that takes no convolution
kernels, which most weights here are, is missing before torch 2.9, and works in bfloat16: 24 to 42 times slower on a CPU
that has no unit for it (one thread, 64 x 576 and 512 x 512; with such a unit 1.6 times slower and 4 times faster).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
SMALLEST = 32  # narrower kernels are left to AdamW: there is little to make orthogonal


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether Muon takes this: a kernel, (out, in, ...), that is wide both ways."""
    return parameter.ndim in (2, 4) and min(len(parameter), math.prod(parameter.shape[1:])) >= SMALLEST


class Muon(torch.optim.AdamW):
    """Muon for groups with `matrix=True`, AdamW for the others. One learning rate serves both."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        every = self.param_groups
        for group in every:
            if not group.get("matrix"):
                continue
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())  # unused, but AdamW looks for it when a checkpoint is loaded
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                ahead = parameter.grad.lerp(momentum, MOMENTUM)  # Nesterov's
                update = orthogonal(ahead.flatten(1))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                # An orthogonal matrix has entries of about 1 / sqrt(longer side); this makes them about 1.
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * max(update.shape) ** 0.5)
        self.param_groups = [group for group in every if not group.get("matrix")]
        try:
            super().step()
        finally:
            self.param_groups = every


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly the closest matrix with all singular values 1, by Newton-Schulz iterations (they end at 0.7 to 1.2)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T
