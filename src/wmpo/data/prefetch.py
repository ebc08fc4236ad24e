"""Prepare the next batches while the current one is in use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch(sample: Callable[[int], T], first_step: int, last_step: int, depth: int = 2) -> Iterator[T]:
    """Yield sample(step) for step in [first_step, last_step); a thread keeps up to `depth` of them ready.

    An exception in `sample` is raised here, at its step. The thread ends with the iteration,
    also when that is left early.
    """
    ready: queue.Queue[tuple[bool, T | BaseException]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: tuple[bool, T | BaseException]) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        for step in range(first_step, last_step):
            try:
                item = sample(step)
            except BaseException as error:
                return put((False, error))
            put((True, item))
            if stop.is_set():
                return

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(first_step, last_step):
            fine, item = ready.get()
            if not fine:
                assert isinstance(item, BaseException)
                raise item
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
