"""Equal parts of a batch, worked on in parallel: how a CPU's cores are used for networks too small to split one
operation between them.

The number of parts, not that of cores, decides what is computed: a machine with one core finds the same numbers, later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, reduce
from typing import TypeVar

import torch
from torch import Tensor, nn

from wmpo.io.machine import usable_cores

T = TypeVar("T")


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
