"""A denoiser that imagines, compiled: many small operations become few, which takes a minute, once in a process.

It is the way through a denoiser that is compiled, not the denoiser: that stays as it is, in files and in training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from wmpo.world_models.transformer import SpaceTimeTransformer
    from wmpo.world_models.unet import UNet


class Compiled:
    """`remember` and `forward` of a denoiser; `graphs`: on a GPU what they launch is recorded, and launched as one."""

    def __init__(self, denoiser: UNet | SpaceTimeTransformer, graphs: bool = False) -> None:
        self.denoiser, self.graphs = denoiser, graphs

    def remember(self, *given: Tensor | None) -> list[Tensor]:
        found: list[Tensor] = _compiled(_remember, self.graphs)(self.denoiser, *given)
        return [self._kept(tensor) for tensor in found]

    def __call__(self, *given: Tensor | list[Tensor]) -> Tensor:
        found: Tensor = _compiled(_forward, self.graphs)(self.denoiser, *given)
        return self._kept(found)

    def _kept(self, found: Tensor) -> Tensor:
        """A graph writes into the same memory whenever it is launched."""
        return found.clone() if self.graphs else found


def _remember(denoiser: Any, *given: Any) -> Any:
    return denoiser.remember(*given)


def _forward(denoiser: Any, *given: Any) -> Any:
    return denoiser(*given)


@cache
def _compiled(work: Callable[..., Any], graphs: bool) -> Callable[..., Any]:
    return torch.compile(work, mode="reduce-overhead" if graphs else None)
