"""Frames per second of real collection, beside what the renderer alone does with the same processes.

Both are measured in turns in the same processes, so that a busy machine slows both. The actions are those of
noisy demonstrations: random ones would rarely touch anything, and physics would look cheaper than it is.

    python benchmarks/collect.py [--task push] [--workers 2] [--size 64] [--renderer auto]
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch

from wmpo.envs import make_env
from wmpo.envs.tabletop.settings import TabletopSettings

BATCH, CHUNK = 64, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="push")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--renderer", default="auto", choices=("auto", "egl", "rays"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = TabletopSettings(
        task=options.task, workers=options.workers, image_size=options.size, renderer=options.renderer
    )
    env = make_env(config)
    try:
        initial_states = range(BATCH)
        began = time.perf_counter()
        episodes = env.demonstrate(initial_states, 0.3, 0)
        demonstrating = sum(episode.length for episode in episodes) / (time.perf_counter() - began)
        chunks = env.spec.horizon // CHUNK
        actions = np.zeros((BATCH, chunks * CHUNK, env.spec.action_dim), np.float32)
        for row, episode in enumerate(episodes):
            length = min(episode.length, chunks * CHUNK)
            actions[row, :length] = episode.actions[:length]
        blocks = torch.from_numpy(actions).split(CHUNK, dim=1)
        collecting, drawing = [], []
        for _ in range(options.repeats):
            env.reset(initial_states)
            for block in blocks:
                began = time.perf_counter()
                env.step(range(BATCH), block)
                middle = time.perf_counter()
                env.draw_again(CHUNK)
                collecting.append(middle - began)
                drawing.append(time.perf_counter() - middle)
        frames = BATCH * CHUNK * len(collecting)
        print(f"{options.task}, {options.workers} processes, {options.size} pixels, {env.renderer}")
        print(f"load when done        {os.getloadavg()[0]:8.1f}")
        print(f"collection            {frames / sum(collecting):8.0f} frames/s")
        print(f"renderer alone        {frames / sum(drawing):8.0f} frames/s")
        print(f"ratio                 {sum(drawing) / sum(collecting):8.2f}")
        print(f"ratio, median of pairs{np.median(np.array(drawing) / np.array(collecting)):8.2f}")
        print(f"demonstrations        {demonstrating:8.0f} frames/s")
    finally:
        env.close()


if __name__ == "__main__":
    main()
