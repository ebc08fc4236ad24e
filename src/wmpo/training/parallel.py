"""Equal parts of a batch, worked on in parallel: how a CPU's cores are used for networks too small to split one
operation between them.

The number of parts, not that of cores, decides what is computed: a machine with one core finds the same numbers, later.

Batches are whatever a network's forward accepts: tensors in tuples, lists, mappings and dataclasses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache, reduce
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wmpo.io.machine import usable_cores

T = TypeVar("T")
Batch = Any


@lru_cache(maxsize=4)
def workers(count: int) -> ThreadPoolExecutor:
    """Threads whose operations use one core each; kept, since starting them costs."""
    return ThreadPoolExecutor(count, "parallel_map", initializer=use_one_thread)


def cores() -> int:
    """How many threads may work: OMP_NUM_THREADS, or as many as this process may use cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() else usable_cores()


def use_one_thread() -> None:
    """Let every operation of this thread use one core, so that the other threads can have the others."""
    torch.get_num_threads()  # a thread's first question about threads would undo what was set before it
    torch.set_num_threads(1)


def parallel_map(work: Callable[..., T], *arguments: Iterable[object]) -> list[T]:
    """`[work(*row) for row in zip(*arguments)]`, as many at a time as there are cores (or `OMP_NUM_THREADS` says).

    Modes of gradients and of precision do not travel into `work`: it must set its own.
    """
    rows = list(zip(*arguments, strict=True))
    count = cores()
    if count < 2 or len(rows) < 2:
        return [work(*row) for row in rows]
    return list(workers(count).map(lambda row: work(*row), rows))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move every tensor; other values stay."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(value, device) for value in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: to_device(getattr(batch, f.name), device) for f in fields(batch)})
    return batch


def split(batch: Batch, count: int) -> list[Batch]:
    """The rows of a nested batch in `count` runs, or in as many as it has rows."""
    size = rows_of(batch)
    bounds = [size * place // count for place in range(count + 1)]
    return [take(batch, slice(a, b)) for a, b in pairwise(bounds) if b > a]


def rows_of(batch: Batch) -> int:
    """How many rows a nested batch has: the first size of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    if is_dataclass(batch):
        batch = vars(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return next((size for part in parts if not isinstance(part, str) and (size := rows_of(part))), 0)


def take(batch: Batch, rows: slice) -> Batch:
    """Some rows of every tensor, and of every tuple of strings, in nested tuples, lists, mappings and dataclasses."""
    if isinstance(batch, Mapping):
        return {key: take(value, rows) for key, value in batch.items()}
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{field.name: take(getattr(batch, field.name), rows) for field in fields(batch)})
    if isinstance(batch, (tuple, list)) and not all(isinstance(value, str) for value in batch):
        return type(batch)([take(value, rows) for value in batch])
    return batch[rows]


def accumulate_gradients(
    parameters: Sequence[nn.Parameter],
    work: Callable[..., tuple[Sequence[Tensor | None], T]],
    weights: Sequence[float],
    *arguments: Iterable[object],
) -> list[T]:
    """Give each parameter the weighted sum of its gradients of all parts; one that none has used gets none.

    `work(*row)`, for each row of `zip(*arguments)`, returns gradients and something else, such as metrics, a list of
    which is returned. A CPU works on several parts at once, a GPU on one after the other. Gradients are added as they
    come, always in the same order: no more of them are held than those of the parts in work, and their sum.
    """
    together = cores() if parameters[0].device.type == "cpu" else 1
    rows = list(zip(weights, *arguments, strict=True))
    sums: list[Tensor | None] = [None] * len(parameters)
    extras = []
    for begin in range(0, len(rows), together):
        its, *given = zip(*rows[begin : begin + together], strict=True)
        for weight, (grads, extra) in zip(its, parallel_map(work, *given), strict=True):
            extras.append(extra)
            for place, (total, grad) in enumerate(zip(sums, grads, strict=True)):
                if grad is not None:
                    sums[place] = weight * grad if total is None else total.add_(weight * grad)
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total
    return extras


def weighted_sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Always added in the same order."""
    return reduce(torch.add, [weight * value for weight, value in zip(weights, values, strict=True)])
