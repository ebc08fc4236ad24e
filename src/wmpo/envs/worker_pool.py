"""Worker processes that answer requests: started clean, never hanging, gone with their parent.

A worker is `python -m wmpo.envs.worker_pool`, not a fork: a fork of a process that uses threads or a GPU may lock up,
and multiprocessing's spawn would import the caller's main module (and torch) again in every worker.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, cast

from wmpo.errors import UserError

Handler = Callable[[Any], Any]


class Pool:
    """`workers` processes; each holds one handler, made by `factory(*arguments)` in the worker.

    `factory` is named "module:function". Requests and answers are pickled.
    """

    def __init__(self, workers: int, factory: str, arguments: tuple[Any, ...], environ: Mapping[str, str]) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.connections: list[Connection] = []
        self._close = weakref.finalize(self, _shut, self.processes, self.connections)
        for _ in range(workers):
            here, there = Pipe()
            command = [sys.executable, "-m", "wmpo.envs.worker_pool", str(there.fileno())]
            self.processes.append(
                subprocess.Popen(command, pass_fds=(there.fileno(),), env=dict(environ), stdin=subprocess.DEVNULL)
            )
            there.close()
            self.connections.append(here)
        for index in range(workers):
            self.send(index, (factory, arguments, list(sys.path)))
        for index in range(workers):
            self.receive(index)

    def __len__(self) -> int:
        return len(self.processes)

    def send(self, worker: int, request: object) -> None:
        if not self._close.alive:
            raise RuntimeError("The environment is closed.")
        try:
            self.connections[worker].send(request)
        except OSError:
            self._complain(worker)

    def receive(self, worker: int) -> Any:
        """The answer to the oldest unanswered request; errors in the worker are raised here."""
        try:
            kind, answer = self.connections[worker].recv()
        except (EOFError, OSError):
            self._complain(worker)
        except KeyboardInterrupt:
            self.close()  # or the answers still under way would be taken for those of the next requests
            raise
        if kind == "user error":
            self.close()
            raise UserError(answer)
        if kind == "error":
            self.close()
            raise RuntimeError(f"A simulator process failed:\n{answer}")
        return answer

    def _complain(self, worker: int) -> NoReturn:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.processes[worker].wait(timeout=5)
        code = self.processes[worker].returncode
        self.close()
        raise RuntimeError(f"Simulator process {worker} died with exit code {code}; the environment is closed.")

    def map(self, requests: Iterable[object]) -> Iterator[Any]:
        """Answers in the order of the requests, each taken by whichever worker is free."""
        queue = enumerate(requests)
        running: dict[Connection, tuple[int, int]] = {}  # connection -> (worker, number of the request)
        answers: dict[int, Any] = {}
        for worker, (number, request) in zip(range(len(self)), queue, strict=False):
            self.send(worker, request)
            running[self.connections[worker]] = (worker, number)
        wanted = 0
        while running or answers:
            while wanted in answers:
                yield answers.pop(wanted)
                wanted += 1
            for connection in cast(list[Connection], wait(list(running)) if running else []):
                worker, number = running.pop(connection)
                answers[number] = self.receive(worker)
                following = next(queue, None)
                if following is not None:
                    self.send(worker, following[1])
                    running[self.connections[worker]] = (worker, following[0])

    def close(self) -> None:
        self._close()


def _shut(processes: list[subprocess.Popen[bytes]], connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()  # a worker ends when its pipe does
    for process in processes:
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _serve(connection: Connection) -> None:
    """What a worker does: make the handler, then answer until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent decides; its end closes the pipe
    handler: Handler | None = None
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if handler is None:
                name, arguments, path = request
                sys.path[:] = path
                module, _, function = name.partition(":")
                handler = getattr(importlib.import_module(module), function)(*arguments)
                answer: Any = None
            else:
                answer = handler(request)
            reply = ("answer", answer)
        except UserError as error:
            reply = ("user error", str(error))
        except Exception:
            reply = ("error", traceback.format_exc())
        try:
            connection.send(reply)
        except OSError:
            return


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
    # Skip the interpreter's clean-up: a worker owns nothing that outlives it, and OpenGL drivers may stumble there.
    sys.stdout.flush()
    os._exit(0)
