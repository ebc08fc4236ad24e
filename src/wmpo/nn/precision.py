"""Arithmetic in bfloat16 where a machine is faster at it; weights, losses and averages stay float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Literal

import torch

from wmpo.io.machine import cpu_flags

Precision = Literal["auto", "float32", "bfloat16"]


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """What a network computes in inside of this: bfloat16 (autocast) or float32. Holds in this thread only."""
    half = is_half(precision, device)
    if half and device.type == "meta":  # for `cli.counting`, which looks at this mode, as does what is computed again
        return torch.autocast("cpu", torch.bfloat16)
    if half and torch.amp.is_autocast_available(device.type):  # not without numbers, on "meta"
        return torch.autocast(device.type, torch.bfloat16)
    kind = "cpu" if device.type == "meta" else device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)  # what is asked for here counts, whatever a training is set to
    return nullcontext()


def is_half(precision: Precision, device: torch.device) -> bool:
    """Whether that is bfloat16, which is asked for or, with "auto", faster."""
    return precision == "bfloat16" or (precision == "auto" and bfloat16_is_faster(device.type))


@lru_cache(maxsize=4)
def bfloat16_is_faster(kind: str) -> bool:
    """Whether this machine has units for it: matrix tiles (AMX) of a CPU, or a GPU of 2020 or later."""
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    return kind == "cpu" and "amx_bf16" in cpu_flags()
