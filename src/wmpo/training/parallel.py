"""Equal parts of a batch, worked on in parallel: how a CPU's cores are used for networks too small to split one
operation between them.

The number of parts, not that of cores, decides what is computed: a machine with one core finds the same numbers, later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from wmpo.io.machine import usable_cores
from wmpo.training import ranks

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


def parallel_map(
    work: Callable[..., T],
    *arguments: Iterable[object],
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> list[T]:
    """`[work(*row) for row in zip(*arguments)]`, as many at a time as there are cores (or `OMP_NUM_THREADS` says); one
    after the other on other devices, whose memory they would share.

    Modes of gradients and of precision do not travel into `work`: it must set its own.
    """
    rows = list(zip(*arguments, strict=True))
    count = cores() if device.type == "cpu" else 1
    if count < 2 or len(rows) < 2:
        return [work(*row) for row in rows]
    return list(workers(count).map(lambda row: work(*row), rows))


def accumulate_gradients(
    parameters: Sequence[nn.Parameter],
    work: Callable[..., tuple[Sequence[Tensor | None], Mapping[str, Tensor]]],
    weights: Sequence[float],
    *arguments: Iterable[object],
) -> dict[str, Tensor]:
    """Give each parameter the weighted sum of its gradients of all parts; one that none has used gets none.

    `work(*row)`, for each row of `zip(*arguments)`, returns gradients and metrics, of which the weighted sums are
    returned. Ranks share the parts. A CPU works on several of them at once, a GPU on one after the other. Gradients are
    added as they come, always in the same order: no more of them are held than those of the parts in work, and their
    sum.
    """
    together = cores() if parameters[0].device.type == "cpu" else 1
    rows = list(zip(weights, *arguments, strict=True))
    # a rank for which no part is left works on the first one for nothing, and so knows what there is to add up
    rows = [rows[place] for place in ranks.share(len(rows))] or [(0.0, *rows[0][1:])]
    sums: list[Tensor | None] = [None] * len(parameters)
    metrics: dict[str, Tensor] = {}
    for begin in range(0, len(rows), together):
        its, *given = zip(*rows[begin : begin + together], strict=True)
        for weight, (grads, found) in zip(its, parallel_map(work, *given), strict=True):
            for name, value in found.items():
                metrics[name] = weight * value if name not in metrics else metrics[name] + weight * value
            for place, (total, grad) in enumerate(zip(sums, grads, strict=True)):
                if grad is not None:
                    sums[place] = weight * grad if total is None else total.add_(weight * grad)
            del grads, grad  # before the next parts have theirs
    if ranks.world() > 1:
        sums, metrics = _added_up(parameters, sums, metrics)
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total
    return metrics


def _added_up(
    parameters: Sequence[nn.Parameter], sums: Sequence[Tensor | None], metrics: Mapping[str, Tensor]
) -> tuple[list[Tensor | None], dict[str, Tensor]]:
    """Over all ranks. A parameter may have been used by some of them only."""
    device = parameters[0].device
    filled = [torch.zeros_like(own) if total is None else total for own, total in zip(parameters, sums, strict=True)]
    used = torch.tensor([float(total is not None) for total in sums], device=device)
    values = torch.stack([value.detach().float().to(device) for value in metrics.values()])
    ranks.add_up([*filled, used, values])
    found = [total if count else None for total, count in zip(filled, used.tolist(), strict=True)]
    return found, dict(zip(metrics, values.unbind(), strict=True))
