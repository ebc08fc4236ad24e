"""How fast the dream is: frames per second, the share of the machine's own matmul peak, and the ratio to the naive way.

    python benchmarks/imagination.py RUN_FOLDER [--episodes 64] [--repeats 3] [--out FILE]

Naive means what the reference code does, with the same weights: every episode to the horizon, 30 Euler steps a
chunk, every frame decoded, and all clips scored only when the video is complete. Both are measured in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from wmpo.cli.machine import matmul_gflops
from wmpo.imagination import ImaginedEnv, first_frames_of
from wmpo.io.plain import to_plain
from wmpo.io.provenance import commit, this_machine
from wmpo.opening import load_recipe, open_run
from wmpo.policies.minivla import MiniVLA
from wmpo.rewards.clip_classifier import ClipClassifier
from wmpo.rollout import rollout
from wmpo.types import Observation
from wmpo.world_models.video_diffusion import VideoDiffusionModel

NAIVE_STEPS = 30


class NeverSucceeds:
    """A reward model that never fires, so that nothing stops early."""

    clip_length, threshold = 1, 1.0

    def score(self, clips: Tensor, instruction: tuple[str, ...]) -> Tensor:
        return torch.zeros(len(clips))


def dream_on(
    world: Any, reward: Any, policy: Any, spec: Any, first: Observation, temperature: float, stride: int
) -> Any:
    numbers = range(len(first))
    generator = torch.Generator().manual_seed(0)
    env = ImaginedEnv(world, reward, spec, first, numbers, generator=generator, stride=stride)
    record = "naive" if isinstance(reward, NeverSucceeds) else None
    return rollout(env, policy, numbers, temperature=temperature, generator=generator, record=record)


def score_afterwards(reward: ClipClassifier, videos: Sequence[Any], sentences: tuple[str, ...]) -> None:
    L = reward.clip_length
    video = torch.stack([torch.from_numpy(frames) for frames in videos]).permute(0, 1, 4, 2, 3)
    for end in range(L, video.shape[1] + 1):
        reward.score(video[:, end - L : end].contiguous(), sentences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a finished run")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    recipe = load_recipe(options.folder)
    policy = MiniVLA.from_pretrained(options.folder / "policies" / "base")
    world = VideoDiffusionModel.from_pretrained(options.folder / "world_model-1")
    reward = ClipClassifier.from_pretrained(options.folder / "reward_model-1")
    slow = VideoDiffusionModel.from_pretrained(options.folder / "world_model-1")
    settings = replace(slow.config.settings, sampling_steps=NAIVE_STEPS)
    slow.config = replace(slow.config, settings=settings)
    with open_run(recipe, options.folder) as run:
        spec = run.env.spec
        chosen = run.evaluation.select(source="base")[: options.episodes]
        episodes = [run.evaluation.episode(i) for i in chosen]
    first = first_frames_of(episodes, spec)
    camera = next(iter(spec.cameras))
    temperature, stride = recipe.grpo.temperature, recipe.reward.stride

    def ours() -> int:
        return int(dream_on(world, reward, policy, spec, first, temperature, stride).length.sum())

    def naive() -> None:
        played = dream_on(slow, NeverSucceeds(), policy, spec, first, temperature, spec.horizon)
        score_afterwards(reward, [episode.images[camera][1:] for episode in played.episodes], first.instruction)

    with FlopCounterMode(display=False) as counter:
        frames = ours()
    flops = counter.get_total_flops()
    times: dict[str, list[float]] = {"ours": [], "naive": []}
    for _ in range(options.repeats):
        for name, play in (("ours", ours), ("naive", naive)):
            began = time.perf_counter()
            play()
            times[name].append(time.perf_counter() - began)
    seconds = statistics.median(times["ours"])
    peaks = {str(dtype).split(".")[1]: matmul_gflops(dtype) for dtype in (torch.float32, torch.bfloat16)}
    rate = flops / seconds / 1e9
    result = {
        "episodes": len(episodes),
        "imagined_frames": frames,
        "frames_per_second": frames / seconds,
        "gflops": rate,
        "matmul_peak_gflops": peaks,
        "share_of_peak": {name: rate / peak for name, peak in peaks.items()},
        "naive_over_ours": statistics.median(b / a for a, b in zip(times["ours"], times["naive"], strict=True)),
        "seconds": times,
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "machine": to_plain(this_machine()),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
