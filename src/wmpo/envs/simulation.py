"""What one process does with its share of a batch of tabletop episodes. Imports no torch.

Frames are written where the parent reads them: into a file that both map into memory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wmpo.envs.tabletop.env import Snapshot, TabletopEnv
from wmpo.envs.tabletop.experts import Noise, act
from wmpo.envs.tabletop.settings import STATE_DIM


@dataclass(frozen=True)
class Board:
    """Shared memory for the frames of one request: per camera (slots, K, 3, H, W) uint8, one after the other."""

    path: str
    slots: int
    frames: int  # K
    cameras: tuple[str, ...]
    image_size: int

    @property
    def bytes(self) -> int:
        return len(self.cameras) * self.slots * self.frames * 3 * self.image_size**2

    def arrays(self, memory: np.ndarray) -> dict[str, np.ndarray]:
        shape = (len(self.cameras), self.slots, self.frames, 3, self.image_size, self.image_size)
        return dict(zip(self.cameras, memory[: self.bytes].reshape(shape), strict=True))


def share(size: int) -> str:
    """A new file of `size` bytes, in memory where there is enough of it: containers often allow only 64 MB there."""
    folder = tempfile.gettempdir()
    if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2 * size:
        folder = "/dev/shm"
    handle, path = tempfile.mkstemp(prefix="wmpo-frames-", dir=folder)
    os.truncate(handle, size)
    os.close(handle)
    return path


@dataclass(frozen=True)
class Map:
    """Map the board into memory; its file is removed after that."""

    board: Board


@dataclass(frozen=True)
class Begin:
    """Start episodes: from initial-state numbers or from saved states."""

    rows: tuple[int, ...]
    origins: tuple[int | Snapshot, ...]
    slots: tuple[int, ...]  # where on the board the first frames go
    board: Board


@dataclass(frozen=True)
class Advance:
    """Execute a chunk in some rows."""

    rows: tuple[int, ...]
    chunk: np.ndarray  # (rows, K, D) float32
    slots: tuple[int, ...]
    board: Board


@dataclass(frozen=True)
class Save:
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Draw:
    """Draw current frames and drop them, to measure the renderer."""

    rows: tuple[int, ...]
    times: int


@dataclass(frozen=True)
class Demonstrate:
    initial_state: int
    noise: float
    seed: int
    min_pace: float


@dataclass(frozen=True)
class Answer:
    """What happened, beside the frames."""

    state: np.ndarray  # (rows, K, S) float32
    success: np.ndarray  # (rows, K) bool
    done: np.ndarray  # (rows,) bool
    events: list[dict[str, int]]  # per row: counts so far


@dataclass(frozen=True)
class Scripted:
    """One episode of a scripted expert."""

    images: dict[str, np.ndarray]  # camera -> (T+1, H, W, 3) uint8
    state: np.ndarray  # (T+1, S) float32
    actions: np.ndarray  # (T, D) float32, executed
    labels: np.ndarray  # (T, D) float32, what the expert meant
    success: np.ndarray  # (T+1,) bool
    meta: dict[str, str]


class Simulation:
    """Answers the requests above. All its episodes share one model and one renderer."""

    def __init__(self, task: str, cameras: tuple[str, ...], image_size: int, renderer: str, disruption: str) -> None:
        self.settings = (task, cameras, image_size, renderer, disruption)
        self.episodes: dict[int, TabletopEnv] = {}
        self.demonstrator = self._make()
        self.spare: list[TabletopEnv] = []
        self.cameras = cameras
        self.memory = np.empty(0, np.uint8)

    def _make(self) -> TabletopEnv:
        return TabletopEnv(*self.settings)

    def __call__(self, request: object) -> Any:
        if isinstance(request, Map):
            self.memory = np.memmap(request.board.path, np.uint8, "r+").view(np.ndarray)
            return None
        if isinstance(request, Begin):
            return self.begin(request)
        if isinstance(request, Advance):
            return self.advance(request)
        if isinstance(request, Save):
            return [self.episodes[row].get_state() for row in request.rows]
        if isinstance(request, Draw):
            for row in request.rows * request.times:
                for camera in self.cameras:
                    self.episodes[row].draw(camera)
            return None
        if isinstance(request, Demonstrate):
            return self.demonstrate(request)
        raise TypeError(f"unknown request {type(request)}")

    def begin(self, request: Begin) -> Answer:
        self.spare += self.episodes.values()
        self.episodes = {}
        arrays = request.board.arrays(self.memory)
        states = np.empty((len(request.rows), 1, STATE_DIM), np.float32)
        for index, (row, origin, slot) in enumerate(zip(request.rows, request.origins, request.slots, strict=True)):
            episode = self.episodes[row] = self.spare.pop() if self.spare else self._make()
            if isinstance(origin, Snapshot):
                episode.set_state(origin)
            else:
                episode.restart(origin)
            states[index, 0] = episode.state()
            for camera in self.cameras:
                arrays[camera][slot, 0] = episode.draw(camera).transpose(2, 0, 1)
        nothing = np.zeros((len(request.rows), 1), bool)
        return Answer(states, nothing, nothing[:, 0], self._events(request.rows))

    def advance(self, request: Advance) -> Answer:
        arrays = request.board.arrays(self.memory)
        count, frames = request.chunk.shape[:2]
        answer = Answer(
            np.empty((count, frames, STATE_DIM), np.float32), np.empty((count, frames), bool), np.empty(count, bool), []
        )
        for index, (row, slot) in enumerate(zip(request.rows, request.slots, strict=True)):
            episode = self.episodes[row]
            for frame, action in enumerate(request.chunk[index]):
                answer.success[index, frame] = episode.advance(action)
                answer.state[index, frame] = episode.state()
                for camera in self.cameras:
                    arrays[camera][slot, frame] = episode.draw(camera).transpose(2, 0, 1)
            answer.done[index] = episode.done
        answer.events.extend(self._events(request.rows))
        return answer

    def _events(self, rows: tuple[int, ...]) -> list[dict[str, int]]:
        counters = [self.episodes[row].counters for row in rows]
        return [{"contacts": count.contacts, "grasps": count.grasps} for count in counters]

    def demonstrate(self, request: Demonstrate) -> Scripted:
        """The scripted expert acts until the episode is done; noise depends on seed and initial-state number only."""
        episode = self.demonstrator
        episode.restart(request.initial_state)
        rng = np.random.default_rng([request.seed, request.initial_state])
        noise = Noise(request.noise * episode.task.noise, rng)
        pace = rng.uniform(request.min_pace, 1.0)
        noise.scale *= rng.uniform()  # some demonstrators have a steadier hand than others
        patience = episode.horizon / request.min_pace  # a demonstrator takes the time that they need
        images = {camera: [episode.draw(camera).copy()] for camera in self.cameras}
        state, success, actions, labels = [episode.state()], [False], [], []
        while not episode.lingered and episode.counters.frame < patience:
            labels.append(act(episode.task, episode.view(), pace))
            actions.append(noise.disturb(labels[-1]))
            success.append(episode.advance(actions[-1]))
            state.append(episode.state())
            for camera in self.cameras:
                images[camera].append(episode.draw(camera).copy())
        counters = asdict(episode.counters)
        return Scripted(
            {camera: np.stack(frames) for camera, frames in images.items()},
            np.stack(state),
            np.stack(actions),
            np.stack(labels),
            np.array(success),
            {name: str(counters[name]) for name in ("contacts", "grasps")},
        )
