"""How fast episodes are stored, decoded and sampled, beside what copying the same bytes costs.

python benchmarks/clips.py --size 64 --episodes 200
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmpo.cli.parse import program
from wmpo.data.cache import FrameCache
from wmpo.data.clips import ImitationFrames, RewardClips, VideoClips
from wmpo.data.store import EpisodeStore
from wmpo.types import EnvSpec, Episode


@dataclass
class Settings:
    size: int = 64
    """Height and width of the one camera, in pixels."""
    episodes: int = 200
    """Episodes in the store."""
    length: int = 48
    """Actions per episode."""
    batch_size: int = 32
    context: int = 2
    chunk: int = 4
    seconds: float = 2.0
    """How long each thing is measured."""


def make_episode(number: int, cfg: Settings) -> Episode:
    """A shaded floor on which a block moves."""
    shade = np.linspace(60, 140, cfg.size)[:, None, None]
    images = np.broadcast_to(shade, (cfg.length + 1, cfg.size, cfg.size, 3)).astype(np.uint8)
    block = cfg.size // 6
    for frame, image in enumerate(images):
        left = (number + frame) % (cfg.size - block)
        image[cfg.size // 2 : cfg.size // 2 + block, left : left + block] = (200, 40, number % 256)
    success = np.zeros(cfg.length + 1, bool)
    success[-8:] = number % 2 == 0
    actions = np.random.default_rng(number).uniform(-1, 1, (cfg.length, 4)).astype(np.float32)
    state = np.zeros((cfg.length + 1, 0), np.float32)
    return Episode({"front": images}, state, actions, success, "push", number, "push", "policy")


def rate(work: Callable[[int], object], seconds: float) -> float:
    """Calls per second, the best of five turns."""
    work(0)
    best = 0.0
    step = 0
    for _ in range(5):
        begin, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - begin) < seconds / 5 or not count:
            step, count = step + 1, count + 1
            work(step)
        best = max(best, count / passed)
    return best


def main(cfg: Settings) -> None:
    episodes = [make_episode(number, cfg) for number in range(cfg.episodes)]
    frames = cfg.episodes * (cfg.length + 1)
    with tempfile.TemporaryDirectory() as folder:
        store = EpisodeStore.create(folder, EnvSpec({"front": (cfg.size, cfg.size)}, 0, 4, cfg.length, 10))
        begin = time.perf_counter()
        store.append(episodes)
        print(f"append      {frames / (time.perf_counter() - begin):10.0f} frames/s")
        begin = time.perf_counter()
        cache = FrameCache(store)
        print(f"decode      {frames / (time.perf_counter() - begin):10.0f} frames/s")
        size = sum(path.stat().st_size for path in Path(folder, "videos").rglob("*.mp4"))
        print(f"on disk     {size / frames:10.0f} bytes/frame")

        everything = range(cfg.episodes)
        samplers = {
            "video": (VideoClips(cache, everything, cfg.context, cfg.chunk), cfg.context + 1 + cfg.chunk),
            "reward": (RewardClips(cache, everything, cfg.chunk), cfg.chunk),
            "imitation": (ImitationFrames(cache, everything, cfg.chunk), 1),
        }
        for name, (sampler, per_sample) in samplers.items():
            # The bound: one copy of as many bytes from a place in the frames that changes, as sampling has it.
            count = cfg.batch_size * per_sample
            source = cache.images["front"]
            places = np.random.default_rng(0).integers(len(source) - count, size=4096)

            def copy(step: int, source: np.ndarray = source, count: int = count, places: np.ndarray = places) -> object:
                place = places[step % len(places)]
                return source[place : place + count].copy()

            bound = rate(copy, cfg.seconds) * cfg.batch_size
            reached = rate(lambda step, sampler=sampler: sampler.sample(cfg.batch_size, 0, step), cfg.seconds)
            reached *= cfg.batch_size
            gigabytes = reached * per_sample * 3 * cfg.size**2 / 1e9
            print(
                f"{name:11} {reached:10.0f} samples/s  {gigabytes:5.1f} GB/s  "
                f"{100 * reached / bound:3.0f} % of the {bound:.0f} that copying allows"
            )


if __name__ == "__main__":
    sys.exit(program(Settings, main, "python benchmarks/clips.py"))
