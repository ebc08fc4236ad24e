"""Low-rank adaptation (arXiv 2106.09685): frozen weights, plus a trained product of two thin matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALPHA = 16
"""The product is scaled by min(rank, ALPHA) / rank, as in OpenVLA's fine-tuning."""


class LowRank(nn.Linear):
    """A linear layer, to be frozen, and a change of low rank to be trained, which is zero at first."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / rank)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = min(rank, ALPHA) / rank

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.down), self.up) * self.scale

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """An ordinary layer that does the same."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=self.weight.device)
        linear.weight.copy_(self.weight + self.scale * self.up @ self.down)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear


def adapt(module: nn.Module, rank: int) -> None:
    """Give each linear layer inside a trained change of low rank."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear):
            module.set_submodule(name, LowRank(layer, rank))


def merge(module: nn.Module) -> None:
    """Fold the changes into the weights, which are trained again from then on."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, LowRank):
            module.set_submodule(name, layer.merged())
    module.requires_grad_(True)
