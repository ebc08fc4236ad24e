"""A batch of episodes, advanced together by several processes, whatever class plays them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from operator import index
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor

from wmpo.config import EnvConfig
from wmpo.data.info import check_spec
from wmpo.envs.worker import EXTRAS, FACTS, frame_bytes, frames
from wmpo.envs.worker_pool import InProcess, WorkerPool
from wmpo.errors import UserError
from wmpo.types import EnvSpec, Episode, Observation, Outcome

if TYPE_CHECKING:
    from wmpo.envs.worker import Request


class NotOfferedError(UserError, AttributeError):
    """So that `hasattr` and `isinstance` say no, and a person reads a sentence."""


@dataclass
class Row:
    """How the episode of a row came to where it is."""

    origin: int | bytes
    """Its initial-state number, or a saved state."""
    chunks: list[np.ndarray] = field(default_factory=list)
    """(K, D) each: what was executed since."""


class VectorEnv:
    """Fulfils `wmpo.protocols.Env` with objects of an episode class (`wmpo.envs.worker.Episode`).

    `episode` names the class, as module:Class, and `settings` are its arguments. Also fulfils Demonstrates, NamesTasks,
    Restorable and CountsEvents of `wmpo.protocols`, each where the class has what it takes.

    Rows are dealt out in turn to `config.workers` processes, of the Python `config.python`, with `environ` added to
    their environment variables; 0 simulates in the calling process. An episode that is done inside a chunk still plays
    the chunk to its end, so all frames are real.
    """

    # Set only where the episode class offers them:
    tasks: tuple[str, ...]
    task_of: Callable[[int], str]
    demonstrate: Callable[..., Iterator[Episode]]
    get_state: Callable[[Sequence[int]], list[bytes]]
    reset_to: Callable[[Sequence[bytes]], Observation]
    events: list[dict[str, int]]
    """Per row: what happened, and how often so far."""

    def __init__(
        self, config: EnvConfig, episode: str, settings: Mapping[str, object], environ: Mapping[str, str] | None = None
    ) -> None:
        if not 0 <= config.workers <= 256:
            raise UserError(f"The number of simulator processes must be from 0 to 256, not {config.workers}.")
        self._name = episode
        self._rows: list[Row] = []
        start: Request = {"episode": episode, "settings": dict(settings), **module_paths(episode, config)}
        self._pool: InProcess | WorkerPool
        if config.workers:
            self._pool = WorkerPool(config.workers, start, self._history, config.python, config.timeout, environ)
        elif config.python:
            raise UserError("With env.python, env.workers must be at least 1: another Python is another process.")
        else:
            self._pool = InProcess(start)
        described = self._pool.described
        self.spec, self._bounds = _spec(episode, described)
        offers = set(described["offers"])
        if {"tasks", "task_of"} <= offers:
            self.tasks, self.task_of = tuple(described["tasks"]), self._task_of
        if "demonstrate" in offers:
            self.demonstrate = self._demonstrate
        if {"get_state", "set_state"} <= offers:
            self.get_state, self.reset_to = self._get_state, self._reset_to
        if "events" in offers:
            self.events = []

    def __getattr__(self, name: str) -> NoReturn:
        if name in (*EXTRAS, "reset_to"):
            raise NotOfferedError(f"The environment {self._name} has no {name}, which this needs (docs/own_env.md).")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    def reset(self, initial_states: Sequence[int]) -> Observation:
        if len(initial_states) == 0:
            raise UserError("A batch needs at least one initial-state number.")
        if any(int(number) < 0 for number in initial_states):
            raise UserError(f"Initial-state numbers must be 0 or more, not {min(initial_states)}.")
        return self._begin([int(number) for number in initial_states])

    def _reset_to(self, states: Sequence[bytes]) -> Observation:
        """Like `reset`, but each episode continues from a saved state."""
        if len(states) == 0:
            raise UserError("A batch needs at least one saved state.")
        return self._begin(list(states))

    def _begin(self, origins: Sequence[int | bytes]) -> Observation:
        self._rows = [Row(origin) for origin in origins]
        if "events" in vars(self):
            self.events = [{} for _ in origins]
        requests: list[Request] = [{"op": "begin", "row": row, "origin": origin} for row, origin in enumerate(origins)]
        outcome, instruction = self._play(requests, 1)
        return outcome.last(instruction)

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        rows = [int(row) for row in rows]
        chunk = chunk_AKD.detach().to("cpu", torch.float32, copy=True).numpy()  # kept, for a worker that is lost
        self._check(rows, chunk)
        return self._play(
            [{"op": "step", "row": row, "chunk": actions} for row, actions in zip(rows, chunk, strict=True)],
            chunk.shape[1],
        )[0]

    def _check(self, rows: list[int], chunk: np.ndarray) -> None:
        D = self.spec.action_dim
        if not self._rows:
            raise UserError("Call reset before step.")
        if not rows or len(set(rows)) < len(rows) or min(rows) < 0 or max(rows) >= len(self._rows):
            raise UserError(f"Rows must be different numbers from 0 to {len(self._rows) - 1}, not {rows}.")
        if chunk.ndim != 3 or len(chunk) != len(rows) or chunk.shape[1] == 0 or chunk.shape[2] != D:
            raise UserError(f"Actions must have the shape ({len(rows)}, K, {D}), not {chunk.shape}.")
        if not np.isfinite(chunk).all():
            raise UserError("Actions contain NaN or infinity.")
        low, high = self._bounds
        for d in np.flatnonzero((chunk < low - 1e-6).any((0, 1)) | (chunk > high + 1e-6).any((0, 1))):
            worst = chunk[..., d].flat[np.abs(chunk[..., d] - (low + high)[d] / 2).argmax()]
            raise UserError(f"Action {d} must lie in [{low[d]:g}, {high[d]:g}], not at {worst:.3g}.")

    def _play(self, requests: list[Request], frame_count: int) -> tuple[Outcome, tuple[str, ...]]:
        """What happened in each row, in the order of the requests, and the instructions where episodes begin."""
        spec, count = self.spec, len(requests)
        cameras = dict(spec.cameras)
        size = frame_count * frame_bytes(cameras)
        shared = self._pool.reserve(count * size)
        shares: dict[int, list[Request]] = {}
        slots: dict[int, int] = {}
        for slot, request in enumerate(requests):
            request["at"] = slot * size if shared else None
            slots[request["row"]] = slot
            shares.setdefault(request["row"] % len(self._pool), []).append(request)
        images = {camera: np.empty((count, frame_count, 3, *cameras[camera]), np.uint8) for camera in cameras}
        state = np.empty((count, frame_count, spec.state_dim), np.float32)
        success, done = np.empty((count, frame_count), bool), np.empty(count, bool)
        instruction = [""] * count
        try:
            for request, answer in self._pool.run(lambda worker: shares.pop(worker, [])):
                row, slot = request["row"], slots[request["row"]]
                seen = frames(self._pool.shared, slot * size, cameras, frame_count) if shared else answer["images"]
                for camera, image in images.items():
                    image[slot] = seen[camera]  # a copy: the next request writes to the same memory
                state[slot], success[slot], done[slot] = answer["state"], answer["success"], answer["done"]
                instruction[slot] = answer.get("instruction", "")
                if "events" in vars(self):
                    self.events[row] = answer["events"]
                if "chunk" in request:
                    self._rows[row].chunks.append(request["chunk"])
        except BaseException:
            self._rows = []  # some rows have moved on, others haven't
            raise
        tensors = {camera: torch.from_numpy(image) for camera, image in images.items()}
        outcome = Outcome(tensors, *(torch.from_numpy(array) for array in (state, success, done)))
        return outcome, tuple(instruction)

    def _history(self, row: int) -> list[Request]:
        """The requests that bring the episode of a row to where it is."""
        begin: Request = {"op": "begin", "row": row, "origin": self._rows[row].origin}
        return [begin, *({"op": "step", "row": row, "chunk": chunk} for chunk in self._rows[row].chunks)]

    def _get_state(self, rows: Sequence[int]) -> list[bytes]:
        """Saved states of some rows, for `reset_to`."""
        shares: dict[int, list[Request]] = {}
        for row in rows:
            shares.setdefault(int(row) % len(self._pool), []).append({"op": "save", "row": int(row)})
        found = {request["row"]: state for request, state in self._pool.run(lambda worker: shares.pop(worker, []))}
        return [found[int(row)] for row in rows]

    def _task_of(self, initial_state: int) -> str:
        queue: deque[Request] = deque([{"op": "task_of", "initial_state": int(initial_state)}])
        [(_, name)] = self._pool.run(lambda worker: [queue.popleft()] if queue else [])
        return str(name)

    def _demonstrate(
        self, initial_states: Sequence[int], noise: float, seed: int, min_pace: float = 1.0
    ) -> Iterator[Episode]:
        """One expert episode per initial-state number, in their order; the batch of `reset` is left as it was."""
        if not np.isfinite(noise) or noise < 0:
            raise UserError(f"The noise of demonstrations must be 0 or more, not {noise}.")
        if not 0 < min_pace <= 1:
            raise UserError(f"The least pace of demonstrations must be above 0 and at most 1, not {min_pace}.")
        common: Request = {"op": "demonstrate", "noise": float(noise), "seed": int(seed), "min_pace": float(min_pace)}
        return self._demonstrations([{**common, "initial_state": int(number)} for number in initial_states])

    def _demonstrations(self, requests: list[Request]) -> Iterator[Episode]:
        queue, finished = deque(requests), dict[int, Episode]()
        waiting = deque(requests)
        for request, answer in self._pool.run(lambda worker: [queue.popleft()] if queue else []):
            finished[id(request)] = _episode(self._name, self.spec, self._bounds, request["initial_state"], answer)
            while waiting and id(waiting[0]) in finished:
                yield finished.pop(id(waiting.popleft()))

    def close(self) -> None:
        """End the processes. Closing twice does no harm."""
        self._pool.close()
        self._rows = []


def module_paths(episode: str, config: EnvConfig) -> Request:
    """Where a simulator process looks for modules: as this one does, except in the working directory, whose files may
    be named like modules of others; and last of all where the episode class is. Another Python has its own "path"."""
    here = ""
    with contextlib.suppress(OSError):
        here = os.getcwd()
    path = [entry for entry in sys.path if entry and os.path.join(here, entry) != here]
    folders = []
    with contextlib.suppress(ImportError, ValueError):
        module = find_spec(episode.partition(":")[0].partition(".")[0])
        if module and module.origin:
            file = os.path.abspath(module.origin)
            folders = [os.path.dirname(os.path.dirname(file) if module.submodule_search_locations else file)]
    return {"path": [] if config.python else path, "folders": folders}


def _spec(name: str, described: Request) -> tuple[EnvSpec, tuple[np.ndarray, np.ndarray]]:
    """What an episode class says about itself, checked, and the (D,) bounds of its actions."""
    for fact in FACTS:
        if described[fact] is None:
            raise UserError(f"{name} has no {fact}: an episode class needs {', '.join(FACTS)} (docs/own_env.md).")

    def whole(what: str, value: object) -> int:
        try:
            return index(value)  # type: ignore[arg-type]
        except TypeError:
            raise UserError(f"{name}: {what} is {value!r:.40}; it must be a whole number (docs/own_env.md).") from None

    try:
        cameras = {
            str(camera): (whole(f"the height of {camera}", height), whole(f"the width of {camera}", width))
            for camera, (height, width) in described["cameras"].items()
        }
        spec = EnvSpec(cameras, *(whole(fact, described[fact]) for fact in FACTS[1:]))
        check_spec(spec, name)
        low, high = (
            np.broadcast_to(np.asarray(described[bound], np.float64), (spec.action_dim,)) for bound in ("low", "high")
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name} describes itself wrongly: {error} (docs/own_env.md).") from error
    if not (np.isfinite([low, high]).all() and (low < high).all()):
        raise UserError(f"{name} needs an action_low below its action_high, both finite (docs/own_env.md).")
    return replace(spec, action_low=tuple(low.tolist()), action_high=tuple(high.tolist())), (low, high)


def _episode(
    name: str, spec: EnvSpec, bounds: tuple[np.ndarray, np.ndarray], initial_state: int, shown: Request
) -> Episode:
    """A demonstration, checked."""

    def array(what: str, value: object, shape: tuple[int, ...], kind: type) -> np.ndarray:
        try:
            found = np.asarray(value)
        except ValueError as error:  # rows of different lengths
            raise UserError(f"{name}.demonstrate gives {what} that are no array: {error}.") from error
        if found.shape != shape or not np.can_cast(found.dtype, kind, "same_kind"):
            raise UserError(
                f"{name}.demonstrate gives {what} as {found.dtype} {found.shape}, not {np.dtype(kind)} {shape}."
            )
        return found.astype(kind, copy=False)

    for what in ("images", "meta"):
        if not isinstance(shown.get(what, {}), Mapping):
            raise UserError(f"{name}.demonstrate gives {what} as a {type(shown[what]).__name__}, not as a dict.")
    acted, (low, high) = shown.get("actions"), bounds
    T = len(acted) if isinstance(acted, (list, tuple)) or (isinstance(acted, np.ndarray) and acted.ndim) else 0
    actions = array("actions", acted, (T, spec.action_dim), np.float32)
    for d in np.flatnonzero(((actions < low - 1e-6) | (actions > high + 1e-6)).any(0)):
        raise UserError(
            f"{name}.demonstrate gives an action {d} of {np.abs(actions[:, d]).max():.3g} from initial state "
            f"{initial_state}, but its own bounds are [{low[d]:g}, {high[d]:g}]: give the actions as executed."
        )
    images, labels = shown.get("images", {}), shown.get("labels")
    return Episode(
        images={
            camera: array(f"images of {camera}", images.get(camera), (T + 1, *size, 3), np.uint8)
            for camera, size in spec.cameras.items()
        },
        state=array("state", shown.get("state", np.empty((T + 1, 0))), (T + 1, spec.state_dim), np.float32),
        actions=actions,
        success=array("success", shown.get("success"), (T + 1,), np.bool_),
        instruction=shown["instruction"],
        initial_state=initial_state,
        task=shown["task"],
        source="expert",
        meta={str(key): str(value) for key, value in shown.get("meta", {}).items()},
        labels=None if labels is None else array("labels", labels, actions.shape, np.float32),
    )
