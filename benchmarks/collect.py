"""Frames per second of real collection, beside what the renderer alone does with as many processes.

Both are measured in turns, so that a busy machine slows both. The actions are those of noisy demonstrations: random
ones would rarely touch anything, and physics would look cheaper than it is.

    python benchmarks/collect.py [--task push] [--workers 2] [--size 64] [--renderer auto]
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import closing

import numpy as np

from wmpo.envs.tabletop.episode import TabletopEpisode

BATCH, CHUNK = 64, 4


class DrawOnly(TabletopEpisode):
    """An action moves nothing, and draws a whole chunk's frames."""

    def step(self, action: np.ndarray) -> bool:
        for camera in self.cameras:
            for _ in range(CHUNK - 1):  # the last one is drawn to be observed
                self.env.draw(camera)
        return False


def main() -> None:
    import torch  # here, since simulator processes import this file too

    from wmpo.envs.tabletop import display
    from wmpo.envs.tabletop.settings import TabletopSettings
    from wmpo.envs.vector import VectorEnv

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="push")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--renderer", default="auto", choices=display.RENDERERS)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    renderer = display.choose(options.renderer)
    environ = dict(os.environ)
    display.prepare_environment(renderer, environ)
    arguments = {
        "task": options.task,
        "image_size": options.size,
        "cameras": ["front"],
        "state": True,
        "renderer": renderer,
        "disruption": "none",
    }
    config = TabletopSettings(workers=options.workers)
    names = "wmpo.envs.tabletop.episode:TabletopEpisode", "collect:DrawOnly"
    real, canvas = (VectorEnv(config, name, arguments, environ) for name in names)
    with closing(real), closing(canvas):
        initial_states = range(BATCH)
        began = time.perf_counter()
        episodes = list(real.demonstrate(initial_states, 0.3, 0))
        demonstrating = sum(episode.length for episode in episodes) / (time.perf_counter() - began)
        chunks = real.spec.horizon // CHUNK
        actions = np.zeros((BATCH, chunks * CHUNK, real.spec.action_dim), np.float32)
        for row, episode in enumerate(episodes):
            length = min(episode.length, chunks * CHUNK)
            actions[row, :length] = episode.actions[:length]
        still = torch.zeros(BATCH, 1, real.spec.action_dim)
        collecting, drawing = [], []
        for _ in range(options.repeats):
            real.reset(initial_states)
            for block in torch.from_numpy(actions).split(CHUNK, dim=1):
                began = time.perf_counter()
                real.step(range(BATCH), block)
                collecting.append(time.perf_counter() - began)
                canvas.reset_to(real.get_state(range(BATCH)))
                began = time.perf_counter()
                canvas.step(range(BATCH), still)
                drawing.append(time.perf_counter() - began)
        frames = BATCH * CHUNK * len(collecting)
        print(f"{options.task}, {options.workers} processes, {options.size} pixels, {renderer}")
        print(f"load when done        {os.getloadavg()[0]:8.1f}")
        print(f"collection            {frames / sum(collecting):8.0f} frames/s")
        print(f"renderer alone        {frames / sum(drawing):8.0f} frames/s")
        print(f"ratio                 {sum(drawing) / sum(collecting):8.2f}")
        print(f"ratio, median of pairs{np.median(np.array(drawing) / np.array(collecting)):8.2f}")
        print(f"demonstrations        {demonstrating:8.0f} frames/s")


if __name__ == "__main__":
    main()
