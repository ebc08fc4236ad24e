"""LIBERO: what a decision costs here, beside the same by robosuite and its bare simulator, in CPU milliseconds.

    python benchmarks/libero_speed.py [--suite libero_spatial] [--task 2] [--size 128]

CPU time of this process, so that other work on the machine counts less; one process, one thread of OpenGL.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np

from wmpo.envs.tabletop import display

SUBSTEPS = 25  # of the physics in a step of the controller


def milliseconds(action: Callable[[], object], repeats: int) -> float:
    action()
    began = time.process_time()
    for _ in range(repeats):
        action()
    return (time.process_time() - began) / repeats * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--task", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    display.prepare_environment(display.choose("egl"))
    import mujoco  # now that it knows how to draw

    from wmpo.envs.libero.episode import LiberoEpisode
    from wmpo.envs.libero.scene import REPEAT, scene

    began = time.process_time()
    episode = LiberoEpisode(options.suite, [options.task], ["front", "wrist"], options.size, True, 2000)
    episode.reset(0)
    print(f"building the task, first time      {time.process_time() - began:8.1f} s")
    playing = scene(options.suite, options.task, 2000)
    action = np.array([0.2, -0.3, -0.2, 0, 0, 0.1, -1.0])

    def bare() -> None:
        mujoco.mj_step(playing.model, playing.data, REPEAT * SUBSTEPS)

    def by_robosuite() -> None:
        for _ in range(REPEAT):
            for substep in range(SUBSTEPS):
                playing.libero.sim.forward()
                playing.libero._pre_action(action, substep == 0)
                playing.libero.sim.step()

    saved = episode.get_state()
    rows = {
        "reset": lambda: episode.reset(1),
        "a decision, physics and controller": lambda: episode.step(action),
        "the bare simulator's steps": bare,
        "the same by robosuite": by_robosuite,
        "drawing two cameras": episode.observe,
        "saving": episode.get_state,
        "restoring": lambda: episode.set_state(saved),
    }
    for name, each in rows.items():
        episode.set_state(saved)
        print(f"{name:35}{milliseconds(each, options.repeats):8.2f} ms")
    print(f"load when done                     {os.getloadavg()[0]:8.1f}")


if __name__ == "__main__":
    main()
