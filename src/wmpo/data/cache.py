"""Decoded frames of a store in memory-mapped files, so that any frame of any episode is one copy away."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from wmpo.data import layout
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.io.files import atomic_write, file_lock
from wmpo.types import Observation

CACHE = "WMPO_CACHE"
"""Environment variable: a folder for the decoded frames of all stores."""
FRAMES_AT_ONCE = 64
"""Of a digest: how many are copied into memory."""
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class FrameCache:
    """All frames of a store, decoded, with its vectors beside them.

    The frames lie in `<store>/cache/<camera>.rgb`, or where `cache_folder` says. What is missing after an append is
    decoded when the cache is next opened; a cache that is absent, cut short, or of other files is built anew. It may be
    deleted at any time.
    """

    images: dict[str, np.ndarray]
    """Camera -> (frames, 3, H, W) uint8, mapped, channel-first as tensors are."""
    action: np.ndarray
    """(frames, D) float32; the last frame of each episode repeats its last action."""
    label: np.ndarray
    """(frames, D) float32, what an imitator should do; the action where nothing else was said."""
    state: np.ndarray
    """(frames, S) float32."""
    success: np.ndarray
    """(frames,) bool."""
    first: np.ndarray
    """(episodes,) int64, number of each episode's frame 0."""
    length: np.ndarray
    """(episodes,) int64, T: the number of actions."""
    instruction: np.ndarray
    """(episodes,) str objects."""

    def __init__(self, store: EpisodeStore) -> None:
        if not len(store):
            raise UserError(f"The episode store in {store.root} is empty: collect episodes first.")
        self.store = store
        self.folder = cache_folder(store.root)
        self.refresh()

    def __len__(self) -> int:
        return len(self.length)

    def refresh(self) -> None:
        """Take in what was appended to the store; samplers made before keep what they saw."""
        self._read_vectors()  # first, since they are quickly checked
        try:
            with file_lock(self.folder / ".lock"):
                self._check_space()
                self.images = {name: self._frames(name) for name in self.store.spec.cameras}
        except OSError as error:
            raise UserError(
                f"The decoded frames of {self.store.root} can't be kept in {self.folder}: {error.strerror}; look for "
                f"space and permissions, or name another folder in {CACHE}."
            ) from error

    def frames_of(self, episodes: np.ndarray, actions_only: bool = False) -> np.ndarray:
        """Numbers of all frames of some episodes, in order; `actions_only` leaves out each episode's last frame."""
        count = self.length[episodes] + (not actions_only)
        before = np.cumsum(count) - count
        return np.arange(count.sum()) + np.repeat(self.first[episodes] - before, count)

    def observation(self, frames: np.ndarray) -> Observation:
        """What a policy sees at frames of these numbers."""
        episodes = np.searchsorted(self.first, frames, side="right") - 1
        images = {name: torch.from_numpy(np.take(images, frames, axis=0)) for name, images in self.images.items()}
        return Observation(images, torch.from_numpy(self.state[frames]), tuple(self.instruction[episodes]))

    def digest(self, episodes: Sequence[int]) -> str:
        """What tells some episodes from others: 16 hexadecimal digits from all but their frames, of which the first of
        each counts, and from what the cameras are called."""
        found = hashlib.sha256(repr([*self.store.spec.cameras.items()]).encode())
        chosen = np.asarray(episodes, dtype=np.int64)
        frames = self.frames_of(chosen)
        for values in (
            self.length[chosen],
            *(array[frames] for array in (self.action, self.label, self.state, self.success)),
        ):
            found.update(np.ascontiguousarray(values).data)
        for images in self.images.values():
            for some in np.array_split(self.first[chosen], max(len(chosen) // FRAMES_AT_ONCE, 1)):
                found.update(np.ascontiguousarray(images[some]).data)
        found.update("\n".join(self.instruction[chosen]).encode())
        return found.hexdigest()[:16]

    def labels_of(self, episodes: Sequence[int]) -> np.ndarray:
        """(actions, D): all that an imitator of some episodes should do."""
        chosen = np.asarray(episodes, dtype=np.int64)
        if not len(chosen):
            raise UserError(f"No episodes of {self.store.root} were chosen to take statistics of: collect some first.")
        return self.label[self.frames_of(chosen, actions_only=True)]

    def _check_space(self) -> None:
        """Raise UserError before anything is decoded, where not all of it would find room."""
        there = sum(path.stat().st_size for path in self.folder.glob("*.rgb"))
        missing, free = decoded_bytes(self.store) - there, shutil.disk_usage(self.folder).free
        if missing > free:
            raise UserError(
                f"The decoded frames of {self.store.root} need {missing / 1e9:.1f} GB, but {self.folder} has "
                f"{free / 1e9:.1f} GB left: make room, name another folder in {CACHE}, or make the store smaller by "
                "`wmpo data import` with --image-size and --fps."
            )

    def _frames(self, camera: str) -> np.ndarray:
        store = self.store
        size = store.spec.cameras[camera]
        shape = (store.total_frames, 3, *size)
        frame_bytes = 3 * size[0] * size[1]
        path = self.folder / f"{camera}.rgb"
        about = self.folder / f"{camera}.json"
        videos = [store.video(part, camera) for part in range(store.parts)]
        sources = [video.stamp() for video in videos]
        known = _known(about, sources)
        ready = sum(store.part_frames[:known])
        if known and (path.is_symlink() or not path.exists() or path.stat().st_size < ready * frame_bytes):
            known = ready = 0
        if known < store.parts:
            # Others may have the old file mapped: one that is built anew gets a new file, one that grows keeps its.
            target = path if known else path.with_suffix(".tmp")
            if target.is_symlink():  # nothing is written elsewhere, whoever has made the store
                target.unlink()
            with target.open("r+b" if known else "wb") as file:
                file.seek(ready * frame_bytes)
                for video in videos[known:]:
                    for block in video.blocks():
                        file.write(np.ascontiguousarray(block.transpose(0, 3, 1, 2)).data)
                file.flush()
                os.fsync(file.fileno())
            if target != path:
                about.unlink(missing_ok=True)
                os.replace(target, path)
            atomic_write(about, json.dumps(sources))
        return np.asarray(np.memmap(path, np.uint8, "r", shape=shape))

    def _read_vectors(self) -> None:
        store = self.store

        names = [layout.ACTION, layout.LABEL, "success"] + [layout.STATE] * bool(store.spec.state_dim)
        parts = [[store.columns(part, name) for name in names] for part in range(store.parts)]
        self.action, self.label, self.success, *state = (np.concatenate(column) for column in zip(*parts, strict=True))
        self.state = state[0] if state else np.zeros((store.total_frames, 0), np.float32)
        self.first = np.array([record.first_frame for record in store.records()], dtype=np.int64)
        self.length = np.array([record.length for record in store.records()], dtype=np.int64)
        self.instruction = np.array([record.instruction for record in store.records()], dtype=object)


def decoded_bytes(store: EpisodeStore) -> int:
    """What the decoded frames of a store take."""
    return 3 * store.total_frames * sum(height * width for height, width in store.spec.cameras.values())


def _known(about: Path, sources: list[list[int]]) -> int:
    """How many of the parts are in the cache already, from the first on; where small parts were merged, those before.

    0 if it was made of other files.
    """
    try:
        cached = json.loads(about.read_text())
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(cached, sources, strict=False))))
    except (OSError, ValueError, TypeError):
        return 0


def cache_folder(store: Path) -> Path:
    """Where the decoded frames of a store lie: in it; elsewhere where that can't be written, or `WMPO_CACHE` is set."""
    elsewhere = os.environ.get(CACHE)
    if not elsewhere:
        try:
            folder = store / "cache"
            folder.mkdir(exist_ok=True)
            (folder / ".lock").touch()
            return folder
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise UserError(f"{folder} can't be made: {error.strerror}.") from None
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wmpo"
    place = hashlib.sha256(os.fsencode(store.resolve())).hexdigest()[:16]
    folder = (Path(elsewhere) if elsewhere else user) / f"{store.resolve().name[:50]}-{place}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except OSError as error:
        raise UserError(
            f"{store} can't be written, nor can {folder}, to keep its decoded frames ({error.strerror}): name a "
            f"folder in {CACHE}."
        ) from None
