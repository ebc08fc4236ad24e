"""Simulator processes: started clean, replaced when they die or hang, gone with their parent.

A worker runs `worker.py` by its path, not a fork: a fork of a process that uses threads or a GPU may lock up, and
multiprocessing's spawn would import the caller's main module (and torch) again in every worker.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from wmpo.envs import worker as child
from wmpo.errors import UserError, reason_of

if TYPE_CHECKING:
    from wmpo.envs.worker import Request

LOSSES = 3  # replacements of a worker, with one and the same request, before it is given up
START = 60.0  # seconds that a worker may take at least to start, however short the timeout of requests
_log = logging.getLogger(__name__)


class WorkerLostError(Exception):
    """A worker died or hangs; the text goes on after "process 0 "."""


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    pending: deque[Request] = field(default_factory=deque)
    """Sent, and not yet answered."""
    rows: set[int] = field(default_factory=set)
    """Whose episodes it holds."""
    deadline: float = 0.0
    losses: int = 0
    """How many workers its oldest pending request has cost."""


def told(name: str, what: str, sentence: str, *raised: Any) -> UserError:
    """What `worker.failure` says of an episode class."""
    return UserError(" ".join(sentence.split()) or f"{name} {what}: {reason_of(*raised)}.")


class InProcess:
    """What a pool does, done in this process: simplest to debug."""

    shared = np.empty(0, np.uint8)

    def __init__(self, start: Request) -> None:
        self._name = start["episode"]
        self._server: child.Server | None = None
        with self._told("can't be made"):
            self._server = child.Server(self._name, start["settings"])
            self.described: Request = self._server.describe()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            raise told(self._name, what, *child.failure(error, self._name)) from error

    def __len__(self) -> int:
        return 1

    def reserve(self, size: int) -> bool:
        return False

    def run(self, batches: Callable[[int], Iterable[Request]]) -> Iterator[tuple[Request, Any]]:
        while batch := list(batches(0)):
            for request in batch:
                if self._server is None:
                    raise RuntimeError("The environment is closed.")
                with self._told("failed"):
                    answer = self._server(request)
                yield request, answer

    def close(self) -> None:
        self._server = None


class WorkerPool:
    """`workers` processes that serve one episode class: `start` names it, as in `VectorEnv`.

    Raises UserError if a worker can't start. One that dies, or gives no sign of life for `timeout` seconds, is replaced
    and its unanswered requests are repeated, each after those that `history` gives for its row: the caller sees the
    same outcome.
    """

    def __init__(
        self,
        workers: int,
        start: Request,
        history: Callable[[int], list[Request]],
        python: str = "",
        timeout: float = 120.0,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.timeout, self._start, self._history = timeout, start, history
        self._environ = {**os.environ, **(environ or {})}
        program = shutil.which(os.path.expanduser(python)) if python else sys.executable
        if not program:
            raise UserError(
                f"env.python is {python!r}, which is no program here: give the path of a Python interpreter."
            )
        # Files of the working directory, named like modules of others (random.py), must not be imported. Another Python
        # has packages of its own, so it doesn't look where this one's environment points either.
        self._command = [program, "-I" if python else "-P", child.__file__]
        self.shared = np.empty(0, np.uint8)
        self._descriptor = _nameless_file()
        self._serial = 0
        self.described: Request = {}
        self._workers: list[Worker] = []
        self._close = weakref.finalize(self, _shut, self._workers, self._descriptor)
        for _ in range(workers):
            self._workers.append(self._spawn())
        for index in range(workers):
            try:
                [self.described] = self._receive(index)
            except WorkerLostError as lost:
                raise UserError(f"Simulator process {index} ({program}) {lost} while it started.") from None

    def __len__(self) -> int:
        return len(self._workers)

    def reserve(self, size: int) -> bool:
        """Make `shared`, memory that all workers see, hold so many bytes; False where there is none."""
        if self._descriptor >= 0 and size > len(self.shared):
            try:
                os.ftruncate(self._descriptor, size)
                self.shared = np.frombuffer(mmap.mmap(self._descriptor, size), np.uint8)
            except (OSError, ValueError):
                return False
        return self._descriptor >= 0

    def run(self, batches: Callable[[int], Iterable[Request]]) -> Iterator[tuple[Request, Any]]:
        """Requests with their answers, as these come. `batches(worker)` is its next batch, the last one empty."""
        if not self._close.alive:
            raise RuntimeError("The environment is closed.")
        self._serial += 1
        serial = self._serial
        for index, worker in enumerate(self._workers):
            worker.pending, worker.losses = deque(batches(index)), 0
            self._send(index)
        while busy := {worker.connection: index for index, worker in enumerate(self._workers) if worker.pending}:
            soonest = min(self._workers[index].deadline for index in busy.values())
            ready = wait(list(busy), timeout=max(0.0, soonest - time.monotonic()))
            for connection, index in busy.items():
                worker = self._workers[index]
                if connection not in ready and time.monotonic() < worker.deadline:
                    continue
                try:
                    answers = self._receive(index)
                except WorkerLostError as lost:
                    self._replace(index, str(lost))
                    continue
                for answer in answers:
                    request, worker.losses = worker.pending.popleft(), 0
                    if not worker.pending:  # first, so that the worker goes on while the caller uses the answer
                        worker.pending.extend(batches(index))
                        self._send(index)
                    yield request, answer
                    if serial != self._serial:
                        raise RuntimeError("The environment got another request before this one was answered in full.")

    def _spawn(self) -> Worker:
        here, there = socket.socketpair()
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # a worker may stop in the middle of a message
            here.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(self.timeout) + 1, 0))
        inherited = [there.fileno(), *([self._descriptor] if self._descriptor >= 0 else [])]
        command = [*self._command, str(there.fileno()), str(self._descriptor), str(min(1.0, self.timeout / 4))]
        try:
            process = subprocess.Popen(
                command, pass_fds=inherited, env=self._environ, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise UserError(
                f"The Python {command[0]} of simulator processes doesn't start: {error.strerror}."
            ) from error
        there.close()
        worker = Worker(process, Connection(here.detach()), deadline=time.monotonic() + max(START, self.timeout))
        with contextlib.suppress(OSError):  # then receiving fails, too
            worker.connection.send_bytes(child.dumps((self._serial, 0, [self._start])))
        return worker

    def _send(self, index: int) -> None:
        """Send all that is pending; a failure shows when the answer is received."""
        worker = self._workers[index]
        requests = []
        for request in worker.pending:
            row = request.get("row")
            past = self._history(row) if row is not None and row not in worker.rows and request["op"] != "begin" else []
            requests.append({**request, "past": past})
            worker.rows |= set() if row is None else {row}
        worker.deadline = time.monotonic() + self.timeout
        if requests:
            with contextlib.suppress(OSError):
                worker.connection.send_bytes(child.dumps((self._serial, len(self.shared), requests)))

    def _receive(self, index: int) -> list[Any]:
        """Answers to the oldest pending requests, maybe none. Raises WorkerLostError, or what failed in the worker."""
        worker = self._workers[index]
        try:
            if not worker.connection.poll(max(0.0, worker.deadline - time.monotonic())):
                raise WorkerLostError("gave no sign of life until its time was up (env.timeout)")
            message = worker.connection.recv_bytes()
        except (EOFError, OSError):
            raise WorkerLostError(_ending(worker.process)) from None
        except (KeyboardInterrupt, SystemExit):
            self.close()  # half a message may have been read
            raise
        worker.deadline = time.monotonic() + self.timeout
        try:
            serial, answers, failure = pickle.loads(message)
        except Exception:  # a simulator has written to the pipe: anything may have been read
            raise WorkerLostError("answered with bytes that can't be read") from None
        if serial != self._serial:
            return []  # of an earlier request whose answers nobody took
        if failure:
            by = f" by {self._command[0]}" if "-I" in self._command else ""
            raise told(self._start["episode"], "failed" if worker.pending else f"can't be made{by}", *failure)
        return list(answers)

    def _replace(self, index: int, why: str) -> None:
        """Another process for a lost one, with the same requests."""
        lost = self._workers[index]
        while True:
            rows = [str(request["row"]) for request in lost.pending if "row" in request]
            about = ", ".join([lost.pending[0]["op"], *(f"row {row}" for row in rows[:4]), *("..." for _ in rows[4:5])])
            if lost.losses == LOSSES:
                raise UserError(
                    f"Simulator process {index} {why} ({about}), as did the {LOSSES} that took its place: look at what "
                    "the simulator printed, or simulate in this process with --env.workers 0."
                )
            _log.warning(
                "Simulator process %d %s (%s); it is replaced and its episodes begin again.", index, why, about
            )
            _end(lost)
            fresh = self._workers[index] = self._spawn()
            fresh.losses = lost.losses + 1
            try:
                self._receive(index)
            except WorkerLostError as again:
                why, fresh.pending = f"{again} while it started", lost.pending
                lost = fresh
                continue
            fresh.pending = lost.pending
            self._send(index)
            return

    def close(self) -> None:
        self._serial += 1
        self._close()


def _nameless_file() -> int:
    """A file in memory that nobody else sees and that ends with its processes; -1 where there is no such thing.

    Unlike /dev/shm it has no size of its own to run out of, which containers often set to 64 MB.
    """
    try:
        return os.memfd_create("wmpo-frames")
    except (AttributeError, OSError):
        return -1


def _ending(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "stopped in the middle of an answer"
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"was ended by signal {-code}"


def _end(worker: Worker) -> None:
    """With all processes that it has started: they are a group of their own."""
    worker.connection.close()
    with contextlib.suppress(OSError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait()


def _shut(workers: list[Worker], descriptor: int) -> None:
    for worker in workers:
        worker.connection.close()  # an idle worker ends when its pipe does
    deadline = time.monotonic() + 2
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        _end(worker)
    if descriptor >= 0:
        os.close(descriptor)
