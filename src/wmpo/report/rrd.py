"""Episodes as a recording for the Rerun viewer: cameras, states, actions and success, one episode after another.

What was imagined of the same actions lies beside it, with what the reward model thinks of both.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError, optional
from wmpo.imagination import replay
from wmpo.io.files import atomic_path
from wmpo.protocols import RewardModel, WorldModel
from wmpo.report.measure import score_video
from wmpo.training.log import ProgressBar
from wmpo.types import Episode

QUALITY = 95  # of the JPEGs that pictures become


def rerun() -> ModuleType:
    """The package, imported where it is used."""
    return optional("rerun", "A recording for the Rerun viewer needs", "rerun")


def write_rrd(
    out: Path,
    store: EpisodeStore,
    episodes: Sequence[int],
    models: tuple[WorldModel, RewardModel] | None,
    device: torch.device,
    bar: ProgressBar,
) -> None:
    """Write these episodes to a file that isn't there yet; with `models`, their dreams and scores, too."""
    library = rerun()
    if out.exists():
        raise UserError(f"{out} exists already: choose another file, or remove it.")
    with atomic_path(out) as path:
        stream = library.RecordingStream("wmpo", recording_id=out.stem)
        stream.save(path)
        with stream:  # whose end completes the file
            begin = 0
            for index, episode in zip(episodes, store.each(episodes), strict=True):
                page = Page(library, stream, begin, store.spec.fps)
                page.describe(index, episode)
                page.show("real", episode)
                page.numbers("action", episode.actions)
                page.numbers("success", episode.success[:, None])
                if models is not None:
                    _dream(page, store, episode, models, device)
                begin += episode.length + 1
                bar.update(1)


class Page:
    """The part of the time line that an episode takes: frames `begin` and on."""

    def __init__(self, library: ModuleType, stream: Any, begin: int, fps: int) -> None:
        self.library, self.stream, self.begin, self.fps = library, stream, begin, fps

    def describe(self, index: int, episode: Episode) -> None:
        """Which episode it is, in words at its beginning and as a number all along."""
        told = "success" if episode.succeeded else "failure"
        text = f"episode {index}, {episode.source}, {episode.meta.get('success') or 'recorded'}: {told}. "
        self._send("episodes", 1, self.library.TextLog.columns(text=[text + episode.instruction]))
        self.numbers("episode", np.full((episode.length + 1, 1), index))

    def show(self, who: str, episode: Episode) -> None:
        """What all cameras see, and the state."""
        for camera, frames in episode.images.items():
            pictures = self.library.EncodedImage.columns(
                blob=[_jpeg(frame) for frame in frames], media_type=["image/jpeg"] * len(frames)
            )
            self._send(f"{who}/{camera}", len(frames), pictures)
        if episode.state.shape[1]:
            self.numbers(f"{who}/state", episode.state)

    def numbers(self, name: str, values: np.ndarray) -> None:
        """(frames, dimensions), from the first frame on."""
        self._send(name, len(values), self.library.Scalars.columns(scalars=values.astype(np.float64)))

    def _send(self, name: str, rows: int, columns: Any) -> None:
        frames = np.arange(self.begin, self.begin + rows)
        times = [
            self.library.TimeColumn("frame", sequence=frames),
            self.library.TimeColumn("time", duration=frames / self.fps),
        ]
        self.stream.send_columns(name, indexes=times, columns=columns)


def _dream(
    page: Page, store: EpisodeStore, episode: Episode, models: tuple[WorldModel, RewardModel], device: torch.device
) -> None:
    world_model, reward_model = models
    dream = replay(world_model, reward_model, store.spec, [episode], chunk=world_model.chunk, device=device)
    page.show("dream", dream.episodes[0])
    video = next(iter(episode.images.values()))
    scores = {"real": score_video(reward_model, video, episode.instruction), "dream": dream.scores[0]}
    for who, score in scores.items():
        logits = torch.from_numpy(np.asarray(score, np.float64))[:, None]
        page.numbers(f"{who}/success_probability", logits.sigmoid().numpy())


def _jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()
