"""How much time a step of training the world model takes with latents from disk, beside one that encodes its frames.

    python benchmarks/latents.py [--size 64] [--episodes 16] [--repeats 5] [--out benchmarks/results/latents.json]

The denoiser of the recipe place, and a transformer, on latents of the small autoencoder, with random weights. Both
kinds of step are taken in turns, in processor time, so that what else runs on the machine counts little; drawing the
batch is part of a step.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import clips as by_hand  # beside this file
from wmpo.cli.parse import program
from wmpo.data.cache import FrameCache
from wmpo.data.clips import VideoClips
from wmpo.data.latents import encode_once
from wmpo.data.normalizer import Normalizer
from wmpo.data.store import EpisodeStore
from wmpo.io.files import write_json
from wmpo.io.plain import to_plain
from wmpo.io.provenance import commit, this_machine
from wmpo.recipes import recipe_named
from wmpo.training.fit import Learner
from wmpo.training.parallel import use_one_thread
from wmpo.types import EnvSpec
from wmpo.world_models.settings import VideoDiffusionSettings
from wmpo.world_models.video_diffusion import VideoDiffusionModel

CASES: dict[str, dict[str, Any]] = {
    "place's U-Net": {},
    "a transformer, width 64, depth 2": {"backbone": "transformer", "width": 64, "depth": 2, "motion_prior": False},
}


@dataclass
class Settings:
    size: int = 64
    """Height and width of the one camera, in pixels."""
    episodes: int = 16
    """Episodes in the store."""
    repeats: int = 5
    """Steps of each kind, in turns; their median counts."""
    out: Path | None = None
    """Where to write what was measured, as JSON."""


def seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measured(cache: FrameCache, spec: EnvSpec, settings: Settings, changes: dict[str, Any]) -> dict[str, float]:
    recipe = recipe_named("place").world_model
    assert isinstance(recipe, VideoDiffusionSettings)
    torch.manual_seed(0)
    config = replace(recipe, codec="autoencoder", shift=0, precision="float32", **changes)
    model = VideoDiffusionModel.build(config, spec, 4)
    every = range(settings.episodes)
    model.set_normalizer(Normalizer.from_cache(cache, every))
    encoding = seconds(lambda: encode_once(cache, every, model))
    frames = VideoClips(cache, every, model.context, model.chunk)
    latents = frames.encoded(encode_once(cache, every, model), model.encoder_digest())
    learner = Learner(model.train(), replace(config.fit, cpu_shards=1), torch.device("cpu"), 0)

    def take(clips: VideoClips, step: int) -> None:
        learner.step(clips.sample(config.fit.batch_size, 0, step), 0)

    times: dict[str, list[float]] = {"each": [], "once": []}
    for step in range(settings.repeats + 1):
        for name, clips in (("each", frames), ("once", latents)):
            times[name].append(seconds(partial(take, clips, step)))
    each, once = (statistics.median(values[1:]) for values in times.values())  # the first step makes the optimiser
    return {
        "encoding_all_seconds": round(encoding, 3),
        "frames": len(cache.action),
        "latent_bytes_per_frame": 2 * math.prod(model.latent),
        "step_encoding_each_frame_seconds": round(each, 3),
        "step_from_latents_seconds": round(once, 3),
        "ratio": round(each / once, 2),
    }


def main(settings: Settings) -> None:
    use_one_thread()
    episode = by_hand.Settings(size=settings.size)
    spec = EnvSpec({"front": (settings.size, settings.size)}, 0, 4, episode.length, 10)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = EpisodeStore.create(folder, spec)
        store.append([by_hand.make_episode(number, episode) for number in range(settings.episodes)])
        cache = FrameCache(store)
        for name, changes in CASES.items():
            rows.append({"denoiser": name, "pixels": settings.size, **measured(cache, spec, settings, changes)})
            print(rows[-1], flush=True)
            if settings.out is not None:
                write_json(settings.out, {"commit": commit(), "machine": to_plain(this_machine()), "steps": rows})


if __name__ == "__main__":
    sys.exit(program(Settings, main, "python benchmarks/latents.py"))
