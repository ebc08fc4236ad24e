"""Equal shares of a batch, worked on side by side: how a CPU's cores are used for networks too small to share an
operation.

The shares, not the cores, decide what is computed: a machine with one core finds the same numbers, later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


@lru_cache(maxsize=4)
def workers(count: int) -> ThreadPoolExecutor:
    """Threads whose operations use one core each; kept, since starting them costs."""
    return ThreadPoolExecutor(count, "share", initializer=torch.set_num_threads, initargs=(1,))


def cores() -> int:
    """How many threads may work: OMP_NUM_THREADS, or as many as there are cores for this process."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit():
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_core_each() -> None:
    """Let every operation use one core, so that the shares can have the others."""
    torch.set_num_threads(1)


def side_by_side(work: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """`[work(*row) for row in zip(*arguments)]`, as many at a time as there are cores (or `OMP_NUM_THREADS` says).

    Modes of gradients and of precision do not travel into `work`: it must set its own.
    """
    rows = list(zip(*arguments, strict=True))
    count = cores()
    if count < 2 or len(rows) < 2:
        return [work(*row) for row in rows]
    return list(workers(count).map(lambda row: work(*row), rows))


def split(batch: Any, count: int) -> list[Any]:
    """The rows of a nested batch in `count` runs, or in as many as it has rows."""
    size = rows_of(batch)
    bounds = [size * place // count for place in range(count + 1)]
    return [take(batch, slice(a, b)) for a, b in pairwise(bounds) if b > a]


def rows_of(batch: Any) -> int:
    """How many rows a nested batch has: the first size of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif is_dataclass(batch):
        parts = [getattr(batch, field.name) for field in fields(batch)]
    else:
        parts = list(batch)
    return rows_of(parts[0])


def take(batch: Any, rows: slice) -> Any:
    """Some rows of every tensor, and of every tuple of strings, in nested mappings and dataclasses."""
    if isinstance(batch, Mapping):
        return {key: take(value, rows) for key, value in batch.items()}
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{field.name: take(getattr(batch, field.name), rows) for field in fields(batch)})
    if isinstance(batch, tuple) and batch and not isinstance(batch[0], str):
        return tuple(take(value, rows) for value in batch)
    return batch[rows]


def put_gradients(
    parameters: Sequence[nn.Parameter], grads: Sequence[Sequence[Tensor | None]], weights: Sequence[float]
) -> None:
    """Give each parameter the weighted sum of its gradients of all shares, always added in the same order."""
    for parameter, *found in zip(parameters, *grads, strict=True):
        known = [weight * grad for weight, grad in zip(weights, found, strict=True) if grad is not None]
        parameter.grad = sum(known[1:], start=known[0]) if known else None
