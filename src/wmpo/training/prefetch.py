"""Build the next batches in a background thread while the optimiser works on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def prefetch(sample: Callable[[int], T], steps: Iterable[int], depth: int = 2) -> Generator[T, None, None]:
    """Yield `sample(step)` for each step in order, at most `depth` batches ahead.

    An exception in `sample` is raised here, at the batch that it belongs to. Leaving the loop early (break,
    exception, garbage collection) stops the thread.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: tuple[T | None, BaseException | None, bool]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in steps:
                if stopped.is_set():
                    return
                put((sample(step), None, False))
            put((None, None, True))
        except BaseException as error:
            put((None, error, True))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            batch, error, last = ready.get()
            if error is not None:
                raise error
            if last:
                return
            yield batch  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
