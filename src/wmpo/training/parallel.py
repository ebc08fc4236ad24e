"""Equal shares of a batch, worked on side by side: how a CPU's cores are used for networks too small to share an
operation.

The shares, not the cores, decide what is computed: a machine with one core finds the same numbers, later.
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


@lru_cache(maxsize=4)
def workers(count: int) -> ThreadPoolExecutor:
    """Threads whose operations use one core each; kept, since starting them costs."""
    return ThreadPoolExecutor(count, "share", initializer=use_one_thread)


def cores() -> int:
    """How many threads may work: OMP_NUM_THREADS, or as many as this process may use cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() else usable_cores()


def use_one_thread() -> None:
    """Let every operation of this thread use one core, so that the shares can have the others."""
    torch.get_num_threads()  # a thread's first question about threads would undo what was set before it
    torch.set_num_threads(1)


def parallel_map(work: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
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
    if is_dataclass(batch):
        batch = vars(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return next((size for part in parts if not isinstance(part, str) and (size := rows_of(part))), 0)


def take(batch: Any, rows: slice) -> Any:
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
    *arguments: Iterable[Any],
) -> list[T]:
    """Give each parameter the weighted sum of its gradients of all parts; one that none has used gets none.

    `work(*row)`, for each row of `zip(*arguments)`, returns gradients and something to tell; what is told is returned.
    A CPU works on parts side by side, a GPU on one after the other. Gradients are added as they come, always in the
    same order: no more of them are held than those of the parts in work, and their sum.
    """
    together = cores() if parameters[0].device.type == "cpu" else 1
    rows = list(zip(weights, *arguments, strict=True))
    sums: list[Tensor | None] = [None] * len(parameters)
    told = []
    for begin in range(0, len(rows), together):
        its, *given = zip(*rows[begin : begin + together], strict=True)
        for weight, (grads, more) in zip(its, parallel_map(work, *given), strict=True):
            told.append(more)
            for place, (total, grad) in enumerate(zip(sums, grads, strict=True)):
                if grad is not None:
                    sums[place] = weight * grad if total is None else total.add_(weight * grad)
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total
    return told


def weighted_sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Always added in the same order."""
    return reduce(torch.add, [weight * value for weight, value in zip(weights, values, strict=True)])
