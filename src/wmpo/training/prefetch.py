"""Build the next batches in a background thread while the optimiser works on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(sample: Callable[[int], T], steps: Iterable[int], depth: int = 2) -> Generator[T, None, None]:
    """Yield `sample(step)` for each step in order, at most `depth` batches ahead.

    An exception in `sample` is raised here, at the batch that it belongs to. Leaving the loop early (break,
    exception, garbage collection) stops the thread.
    """
    ahead: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        try:
            for step in steps:
                ahead.append(thread.submit(sample, step))
                if len(ahead) > depth:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)
