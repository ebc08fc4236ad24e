"""Plays episodes for `wmpo.envs.vector`, in a simulator process or in the caller's own.

A simulator process runs this file by its path, maybe under another Python (3.8 or newer) that has neither wmpo nor
torch: it needs NumPy and the standard library only. Whoever brings a simulator writes an `Episode` class.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import io
import mmap
import os
import pickle
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

try:
    import numpy as np
except ImportError:
    sys.exit(f"{sys.executable} has no NumPy, which a simulator process needs.")

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Plain = Any  # numbers, strings, arrays, and lists and dicts of them
    Request = dict[str, Any]  # "op": a method of Server; its arguments; "past": requests to repeat before it
    Cameras = dict[str, tuple[int, int]]


class Episode(Protocol):
    """Plays one episode at a time. Made with the family's settings, plain values, as keyword arguments.

    It may also have any of these:

        action_low, action_high          a number or D numbers, -1 and 1 without them
        get_state(), set_state(state)    save an episode, and continue it in any object of the class
        events() -> dict[str, int]       what happened in the episode -> how often so far
        tasks, task_of(initial_state)    names of several tasks, and which one an episode is about
        demonstrate(initial_state, noise, seed, min_pace)
                                         an episode of a scripted expert, as a dict: "images" camera -> (T+1, H, W, 3)
                                         uint8, "state" (T+1, S), "actions" (T, D) as executed, "success" (T+1,) bool,
                                         and as you like "labels" (T, D), what the expert meant, and "meta", strings
    """

    cameras: Cameras  # camera -> (height, width) in pixels
    state_dim: int  # S, 0 without a state
    action_dim: int  # D
    horizon: int  # longest episode, in actions; evaluation may go on for longer, to see who is only slow
    fps: int  # actions per second
    instruction: str  # what to do in this episode, in words
    done: bool  # whether this episode needs no further action

    def reset(self, initial_state: int) -> None:
        """Begin an episode. Equal numbers mean equal initial states, whatever was played before."""

    def observe(self) -> dict[str, Plain]:
        """ "images": {camera: (H, W, 3) uint8}, and "state": (S,) float32."""

    def step(self, action: np.ndarray) -> bool:
        """Execute an action, (D,) float32; whether the task counts as accomplished now."""


FACTS = ("cameras", "state_dim", "action_dim", "horizon", "fps")
EXTRAS = ("demonstrate", "get_state", "set_state", "events", "tasks", "task_of")


class EpisodeError(Exception):
    """What an episode class gets wrong; the text goes on after the class's name."""


def truth(value: Any, what: str) -> bool:
    """A bool, or what stands for one: 0, 1, or an array of one such value and no dimensions."""
    value = value.item() if getattr(value, "shape", None) == () else value
    if type(value) not in (bool, int) or value not in (0, 1):
        raise EpisodeError(f"{what} {value!r:.40} where True or False is due")
    return bool(value)


def frames(memory: np.ndarray, at: int, cameras: Cameras, count: int) -> dict[str, np.ndarray]:
    """Camera -> (count, 3, H, W), one after the other in `memory` from byte `at` on."""
    views = {}
    for camera, (height, width) in cameras.items():
        size = count * 3 * height * width
        views[camera] = memory[at : at + size].reshape(count, 3, height, width)
        at += size
    return views


def frame_bytes(cameras: Cameras) -> int:
    """Bytes of one frame of all cameras."""
    return sum(3 * height * width for height, width in cameras.values())


class Server:
    """Answers requests about the episodes of one batch, a row each. All values that it takes and returns are plain."""

    def __init__(self, episode: str, settings: Request) -> None:
        module, _, name = episode.partition(":")
        self.make = functools.partial(getattr(importlib.import_module(module), name), **settings)
        self.lead = self.make()  # describes, demonstrates and names tasks; not in the batch
        self.cameras: Cameras = {}
        self.memory = np.empty(0, np.uint8)
        self.episodes: dict[int, Any] = {}  # by row
        self.actions: dict[int, int] = {}  # taken so far

    def answers(self, requests: Sequence[Request]) -> Iterator[list[Plain]]:
        """An answer for each, and nothing for the past ones that come before it."""
        for request in requests:
            for past in request.get("past", ()):
                self(past)
                yield []
            yield [self(request)]

    def __call__(self, request: Request) -> Plain:
        return getattr(self, request["op"])(**{key: request[key] for key in request if key not in ("op", "past")})

    def describe(self) -> Request:
        """The class's facts, None where it has none, and which extras it has."""
        facts = {name: getattr(self.lead, name, None) for name in FACTS}
        self.cameras = facts["cameras"] or {}
        offers = [name for name in EXTRAS if hasattr(self.lead, name)]
        low, high = getattr(self.lead, "action_low", -1.0), getattr(self.lead, "action_high", 1.0)
        return {**facts, "low": low, "high": high, "offers": offers, "tasks": list(getattr(self.lead, "tasks", ()))}

    def begin(self, row: int, origin: Plain, at: int | None = None) -> Request:
        """Begin an episode from an initial-state number, or from bytes that `save` answered."""
        if row not in self.episodes:
            self.episodes[row] = self.make()
        episode = self.episodes[row]
        if isinstance(origin, bytes):
            self.actions[row], state = pickle.loads(origin)
            episode.set_state(state)
        else:
            self.actions[row] = 0
            episode.reset(origin)
        return {**self._play(row, [None], at), "instruction": self._instruction(episode)}

    def step(self, row: int, chunk: np.ndarray, at: int | None = None) -> Request:
        """Execute a chunk (K, D); frames go to the shared memory from byte `at` on, or into the answer."""
        self.actions[row] += len(chunk)
        return self._play(row, list(chunk), at)

    def _play(self, row: int, actions: list[Plain], at: int | None) -> Request:
        episode, count = self.episodes[row], len(actions)
        memory = np.empty(count * frame_bytes(self.cameras), np.uint8) if at is None else self.memory
        images = frames(memory, at or 0, self.cameras, count)
        state, success = np.empty((count, int(self.lead.state_dim)), np.float32), np.zeros(count, bool)
        for k, action in enumerate(actions):
            if action is not None:
                success[k] = truth(episode.step(action), "answers step with")
            seen = episode.observe()
            try:
                shown = {camera: np.asarray(seen["images"][camera]) for camera in images}
                felt = np.asarray(seen["state"] if state.shape[1] else (), np.float32)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise EpisodeError(f"observes no images of all cameras with a state of numbers ({error!r})") from error
            for camera, view in images.items():
                image = shown[camera]
                if image.dtype != np.uint8 or image.shape != (*view.shape[2:], 3):
                    raise EpisodeError(
                        f"is wrong: camera {camera} shows {image.dtype} {image.shape}, not uint8 {(*view.shape[2:], 3)}"
                    )
                view[k] = image.transpose(2, 0, 1)
            if felt.shape != state.shape[1:]:
                raise EpisodeError(f"is wrong: the state has the shape {felt.shape}, not {state.shape[1:]}")
            state[k] = felt
        events = episode.events() if hasattr(episode, "events") else {}
        if not isinstance(events, dict) or not all(
            isinstance(name, str) and isinstance(count, (int, np.integer)) for name, count in events.items()
        ):
            raise EpisodeError(f"counts events as {events!r:.40}, not as a dict of whole numbers by name")
        answer = {"state": state, "success": success, "done": truth(episode.done, "says done with")}
        answer["events"] = dict(events)
        return answer if at is not None else {**answer, "images": images}

    def _instruction(self, episode: Any) -> str:
        found = getattr(episode, "instruction", None)
        if not isinstance(found, str):
            raise EpisodeError(f"has the instruction {found!r} where a sentence is due")
        return found

    def save(self, row: int) -> bytes:
        return pickle.dumps((self.actions[row], self.episodes[row].get_state()))

    def task_of(self, initial_state: int) -> str:
        return str(self.lead.task_of(initial_state))

    def demonstrate(self, initial_state: int, noise: float, seed: int, min_pace: float) -> Request:
        shown = self.lead.demonstrate(initial_state, noise, seed, min_pace)
        if not isinstance(shown, dict):
            raise EpisodeError(f"answers demonstrate with a {type(shown).__name__}, not with a dict")
        task = self.task_of(initial_state) if hasattr(self.lead, "task_of") else ""
        return {**shown, "instruction": self._instruction(self.lead), "task": task}


class _Pickler(pickle.Pickler):
    """Arrays and scalars in a form that every version of NumPy reads; its own differs between 1 and 2."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.generic):
            return type(value.item()), (value.item(),)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return np.ndarray, (value.shape, value.dtype.str, bytearray(value.tobytes()))
        return NotImplemented


def dumps(value: object) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol=4).dump(value)
    return stream.getvalue()


def failure(error: BaseException, name: str) -> tuple[str, str, str, list[tuple[str, int]]]:
    """A whole sentence, where it is one already; and what `wmpo.errors.reason_of` takes."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    sentence = str(error) if "UserError" in kinds else ""
    if "EpisodeError" in kinds:
        sentence = f"{name} {error} (docs/own_env.md)."
    places = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    return sentence, type(error).__name__, str(error), places


def _serve(connection: Connection, descriptor: int, period: float) -> None:
    """Answer until the pipe closes. A message is (serial, bytes of shared memory, requests). What comes back
    at its end, and every `period` seconds, so that the parent sees work go on, is (serial, answers so far, failure).
    """
    server: Server | None = None
    while True:
        serial, size, requests = pickle.loads(connection.recv_bytes())
        answers, sent = [], time.monotonic()
        try:
            if server is None:
                start = requests.pop()
                sys.path[:] = [*(start["path"] or sys.path), *start["folders"]]
                server = Server(start["episode"], start["settings"])
                answers = [server.describe()]
            if size > len(server.memory):
                server.memory = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
            for more in server.answers(requests):
                answers += more
                if time.monotonic() > sent + period:
                    connection.send_bytes(dumps((serial, answers, None)))
                    answers, sent = [], time.monotonic()
            message = dumps((serial, answers, None))
        except BaseException as error:  # sys.exit, too; SIGINT does not come
            message = dumps((serial, [], failure(error, start["episode"])))
        connection.send_bytes(message)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent decides
    with contextlib.suppress(OSError, AttributeError):
        # Linux: be killed as soon as the parent's thread that started this ends, even while hanging or stopped.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # what a simulator prints must not get between the lines that a command prints
    with contextlib.suppress(EOFError, OSError):  # the parent closed the pipe, or ended
        _serve(Connection(int(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3]))
    # Skip the interpreter's clean-up: a worker owns nothing that outlives it, and OpenGL drivers may stumble there.
    os._exit(0)


if __name__ == "__main__":
    main()
