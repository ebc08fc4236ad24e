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
    """`remember` and `forward` of a denoiser."""

    def __init__(self, denoiser: UNet | SpaceTimeTransformer) -> None:
        self.denoiser = denoiser

    def remember(self, *given: Tensor | None) -> list[Tensor]:
        found: list[Tensor] = _compiled(_remember)(self.denoiser, *given)
        return found

    def __call__(self, *given: Tensor | list[Tensor]) -> Tensor:
        found: Tensor = _compiled(_forward)(self.denoiser, *given)
        return found


def _remember(denoiser: Any, *given: Any) -> Any:
    return denoiser.remember(*given)


def _forward(denoiser: Any, *given: Any) -> Any:
    return denoiser(*given)


@cache
def _compiled(work: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(work)
