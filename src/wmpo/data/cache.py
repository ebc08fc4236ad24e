"""Decoded frames of a store in memory-mapped files, so that any frame of any episode is one copy away."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wmpo.data import layout
from wmpo.data.stats import vector_stats
from wmpo.data.store import EpisodeStore
from wmpo.data.video import take
from wmpo.errors import UserError

BLOCK = 256
"""Frames decoded at a time: bounds the memory of building."""


class Statistics(NamedTuple):
    """What a policy normalises by."""

    action_low: Tensor  # (D,) float32, 1 % quantile
    action_high: Tensor  # (D,) float32, 99 % quantile
    state_mean: Tensor  # (S,) float32
    state_std: Tensor  # (S,) float32


class FrameCache:
    """All frames of a store, decoded, with its vectors beside them.

    The frames lie in `<store>/cache/<camera>.rgb`. What is missing after an append is decoded when the cache is next
    opened; a cache that is absent, cut short, or of other files is built anew. It may be deleted at any time.
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
        self.folder = store.root / "cache"
        self.refresh()

    def __len__(self) -> int:
        return len(self.length)

    def refresh(self) -> None:
        """Take in what was appended to the store; samplers made before keep what they saw."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.images = {name: self._frames(name) for name in self.store.spec.cameras}
        self._read_vectors()

    def frames_of(self, episodes: np.ndarray, actions_only: bool = False) -> np.ndarray:
        """Numbers of all frames of some episodes, in order; `actions_only` leaves out each episode's last frame."""
        count = self.length[episodes] + (not actions_only)
        before = np.cumsum(count) - count
        return np.arange(count.sum()) + np.repeat(self.first[episodes] - before, count)

    def labels_of(self, episodes: Sequence[int]) -> np.ndarray:
        """(actions, D): all that an imitator of some episodes should do."""
        chosen = np.asarray(episodes, dtype=np.int64)
        if not len(chosen):
            raise UserError(f"No episodes of {self.store.root} were chosen to take statistics of: collect some first.")
        return self.label[self.frames_of(chosen, actions_only=True)]

    def statistics(self, episodes: Sequence[int]) -> Statistics:
        """Over some episodes; actions are the labels, since those are what is imitated."""
        action = vector_stats(self.labels_of(episodes))
        state = vector_stats(self.state[self.frames_of(np.asarray(episodes, dtype=np.int64))])
        values = (action["q01"], action["q99"], state["mean"], state["std"])
        return Statistics(*(torch.from_numpy(value.astype(np.float32)) for value in values))

    def _frames(self, camera: str) -> np.ndarray:
        store = self.store
        size = store.spec.cameras[camera]
        shape = (store.total_frames, 3, *size)
        frame_bytes = 3 * size[0] * size[1]
        path = self.folder / f"{camera}.rgb"
        about = self.folder / f"{camera}.json"
        sources = [_fingerprint(layout.video_path(store.root, part, camera)) for part in range(store.parts)]
        known = _known(about, sources)
        ready = sum(store.part_frames[:known])
        if known and (not path.exists() or path.stat().st_size < ready * frame_bytes):
            known = ready = 0
        if known < store.parts:
            # Others may have the old file mapped: one that is built anew gets a new file, one that grows keeps its.
            target = path if known else path.with_suffix(".tmp")
            with target.open("r+b" if known else "wb") as file:
                file.seek(ready * frame_bytes)
                for part in range(known, store.parts):
                    self._decode(part, camera, file)
                file.flush()
                os.fsync(file.fileno())
            if target != path:
                about.unlink(missing_ok=True)
                os.replace(target, path)
            fresh = about.with_suffix(".json.tmp")
            fresh.write_text(json.dumps(sources))
            os.replace(fresh, about)
        return np.asarray(np.memmap(path, np.uint8, "r", shape=shape))

    def _decode(self, part: int, camera: str, file: Any) -> None:
        frames = self.store.frames(part, camera)
        path = layout.video_path(self.store.root, part, camera)
        left = self.store.part_frames[part]
        while left:
            block = take(frames, min(BLOCK, left), path)
            file.write(np.ascontiguousarray(block.transpose(0, 3, 1, 2)).data)
            left -= len(block)

    def _read_vectors(self) -> None:
        store = self.store

        def whole(name: str) -> np.ndarray:
            return np.concatenate([store.columns(part, name) for part in range(store.parts)])

        frames = store.total_frames
        self.action = whole(layout.ACTION).reshape(frames, -1)
        self.label = whole(layout.LABEL).reshape(frames, -1)
        has_state = store.spec.state_dim > 0
        self.state = whole(layout.STATE).reshape(frames, -1) if has_state else np.zeros((frames, 0), np.float32)
        self.success = whole("success").astype(bool)
        self.first = np.array([record.first_frame for record in store.records()], dtype=np.int64)
        self.length = np.array([record.length for record in store.records()], dtype=np.int64)
        self.instruction = np.array([record.instruction for record in store.records()], dtype=object)


def _fingerprint(path: Path) -> list[int]:
    """Changes when the file does."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"The video {path} is missing: restore it from a copy of the store.") from None
    return [status.st_size, status.st_mtime_ns]


def _known(about: Path, sources: list[list[int]]) -> int:
    """How many of the parts are in the cache already; 0 if it was made of other files."""
    try:
        cached = json.loads(about.read_text())
        return len(cached) if cached == sources[: len(cached)] else 0
    except (OSError, ValueError, TypeError):
        return 0
