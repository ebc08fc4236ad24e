"""Latents of frames in memory-mapped files, so that a frozen encoder sees each frame once, however long training is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from wmpo.data.cache import CACHE, FrameCache
from wmpo.errors import UserError
from wmpo.io.files import atomic_write, file_lock

AT_ONCE = 64  # frames that are encoded together
KEEP_EVERY = 16  # episodes after which those so far are there to stay, whatever stops the rest


class Encoder(Protocol):
    """What turns frames into latents, and no longer learns."""

    def latent_shape(self, camera: str) -> tuple[int, int, int]:
        """(c, h, w) of one frame."""
        ...

    def encode_camera(self, camera: str, frames: Tensor) -> Tensor:
        """(N, C, H, W) uint8 of a camera -> (N, c, h, w) float32 on the encoder's device."""
        ...

    def encoder_device(self) -> torch.device:
        """Where frames must lie."""
        ...

    def encoder_digest(self) -> str:
        """Tells it from all encoders that give other latents: hexadecimal digits."""
        ...


def encode_once(
    cache: FrameCache, episodes: Sequence[int], encoder: Encoder, tell: Callable[[int], None] = lambda missing: None
) -> dict[str, np.ndarray]:
    """Camera -> (frames of the store, c, h, w) float16, mapped; those of `episodes` are there, of others they may be.

    They lie beside the decoded frames as `<camera>-<digest of the encoder>.f16`. Only episodes that are not there yet
    are encoded; `tell` hears of how many frames before that begins. Files that are cut short or of other episodes are
    made anew, those of other encoders removed; all may be deleted at any time. Raises UserError where there is no room.
    """
    files = _Files(cache, encoder)
    try:
        with file_lock(cache.folder / "latents.lock"):
            files.fill(sorted(set(episodes)), tell)
            return files.mapped()
    except OSError as error:
        raise UserError(
            f"The latents of {cache.store.root} can't be kept in {cache.folder}: {error.strerror}; look for space and "
            f"permissions, name another folder in {CACHE}, or set world_model.cache_latents to False."
        ) from error


class _Files:
    """One file of latents for each camera, and one that says which episodes they hold."""

    def __init__(self, cache: FrameCache, encoder: Encoder) -> None:
        self.cache, self.encoder, self.key = cache, encoder, encoder.encoder_digest()
        self.about = cache.folder / f"latents-{self.key}.json"
        self.shapes = {name: encoder.latent_shape(name) for name in cache.images}
        self.frames = int(cache.first[-1] + cache.length[-1]) + 1

    def path(self, camera: str) -> Path:
        return self.cache.folder / f"{camera}-{self.key}.f16"

    def frame_bytes(self, camera: str) -> int:
        return 2 * int(np.prod(self.shapes[camera]))

    def fill(self, episodes: Sequence[int], tell: Callable[[int], None]) -> None:
        cache = self.cache
        for other in [*cache.folder.glob("*.f16"), *cache.folder.glob("latents-*.json")]:
            if not other.stem.endswith(f"-{self.key}") or other.is_symlink():  # nothing is written through one
                other.unlink(missing_ok=True)  # whoever has it mapped keeps what is in it
        digests = {episode: cache.digest([episode]) for episode in episodes}
        known = self.known()
        if any(known.get(episode, digest) != digest for episode, digest in digests.items()):
            self.forget()
            known = {}
        missing = [episode for episode in episodes if episode not in known]
        if missing:
            tell(int((cache.length[missing] + 1).sum()))
            self._check_space(missing)
        for begin in range(0, len(missing), KEEP_EVERY):
            some = missing[begin : begin + KEEP_EVERY]
            self._encode(some)
            known |= {episode: digests[episode] for episode in some}
            atomic_write(self.about, json.dumps(known))

    def known(self) -> dict[int, str]:
        """Episode -> what it was when it was encoded. Empty where the files can't hold that."""
        try:
            known = {int(episode): str(digest) for episode, digest in json.loads(self.about.read_text()).items()}
            ends = [int(self.cache.first[i] + self.cache.length[i]) + 1 for i in known]
            whole = all(
                self.path(name).stat().st_size >= max(ends, default=0) * self.frame_bytes(name) for name in self.shapes
            )
        except (OSError, ValueError, AttributeError, IndexError):
            whole = False
        if not whole:
            self.forget()
        return known if whole else {}

    def forget(self) -> None:
        for path in (self.about, *map(self.path, self.shapes)):
            path.unlink(missing_ok=True)

    def _check_space(self, episodes: Sequence[int]) -> None:
        frames = int((self.cache.length[episodes] + 1).sum())
        wanted, free = frames * sum(map(self.frame_bytes, self.shapes)), shutil.disk_usage(self.cache.folder).free
        if wanted > free:
            raise UserError(
                f"The latents of {self.cache.store.root} need {wanted / 1e9:.1f} GB, but {self.cache.folder} has "
                f"{free / 1e9:.1f} GB left: make room, name another folder in {CACHE}, or set "
                "world_model.cache_latents to False."
            )

    def _encode(self, episodes: Sequence[int]) -> None:
        """Write the latents of some episodes; what lies between them in the files takes no room on most disks."""
        device = self.encoder.encoder_device()
        for camera, images in self.cache.images.items():
            path = self.path(camera)
            with path.open("r+b" if path.exists() else "wb") as file:
                for episode in episodes:
                    first = int(self.cache.first[episode])
                    end = first + int(self.cache.length[episode]) + 1
                    file.seek(first * self.frame_bytes(camera))
                    for begin in range(first, end, AT_ONCE):
                        frames = torch.from_numpy(images[begin : min(begin + AT_ONCE, end)].copy())
                        latents = self.encoder.encode_camera(camera, frames.to(device))
                        file.write(latents.half().cpu().contiguous().numpy().data)
                file.flush()
                os.fsync(file.fileno())

    def mapped(self) -> dict[str, np.ndarray]:
        found = {}
        for camera, shape in self.shapes.items():
            path = self.path(camera)
            if path.stat().st_size < self.frames * self.frame_bytes(camera):
                os.truncate(path, self.frames * self.frame_bytes(camera))
            found[camera] = np.asarray(np.memmap(path, np.float16, "r", shape=(self.frames, *shape)))
        return found
