"""What a decision costs in other people's worlds, beside bare physics and their own step, in CPU milliseconds.

    python benchmarks/worlds_speed.py [--family metaworld] [--task peg-insert-side-v3] [--size 64]

CPU time of this process, so that other work on the machine counts less; one process, one thread of OpenGL.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from wmpo.envs.tabletop import display


def milliseconds(action: Callable[[], object], repeats: int) -> float:
    action()
    began = time.process_time()
    for _ in range(repeats):
        action()
    return (time.process_time() - began) / repeats * 1e3


def metaworld(task: str, size: int) -> tuple[Any, int, np.ndarray, Callable[[], object]]:
    """An episode, the physics' time steps in a decision, an action, and the same by MetaWorld with its picture."""
    from wmpo.envs.metaworld.episode import MetaWorldEpisode
    from wmpo.envs.metaworld.settings import CONTROL, REPEAT

    episode = MetaWorldEpisode([task], ["front"], size, True, 1000)
    scene = episode.scene_of(task)
    action = np.array([0.1, -0.1, -0.1, -1.0])
    env = type(scene.env)(render_mode="rgb_array", camera_name="corner4")
    env._freeze_rand_vec, env._set_task_called = False, True
    env.reset()

    def theirs() -> None:
        for _ in range(REPEAT):
            env.step(action)
        env.render()

    return episode, round(REPEAT / CONTROL / scene.model.opt.timestep), action, theirs


def aloha(task: str, size: int) -> tuple[Any, int, np.ndarray, Callable[[], object]]:
    from gym_aloha.env import AlohaEnv

    from wmpo.envs.aloha.episode import AlohaEpisode
    from wmpo.envs.aloha.settings import CONTROL, REPEAT, TASKS

    episode = AlohaEpisode([task], ["top"], size, True)
    scene = episode.scene_of(task)
    scene.begin(0)
    action, env = scene.state(), AlohaEnv(TASKS[task].name)
    env.reset(seed=0)

    def theirs() -> None:
        for _ in range(REPEAT):
            env.step(action)

    return episode, round(REPEAT / CONTROL / scene.model.opt.timestep), action, theirs


def robosuite(task: str, size: int) -> tuple[Any, int, np.ndarray, Callable[[], object]]:
    from wmpo.envs.robosuite.episode import RobosuiteEpisode
    from wmpo.envs.robosuite.settings import CONTROL, REPEAT

    episode = RobosuiteEpisode([task], ["front"], size, True, 1000)
    scene = episode.scene_of(task)
    scene.begin(0)
    action, env = np.zeros(7), RobosuiteEpisode([task], ["front"], size, True, 0).scene_of(task).env
    env.reset()

    def theirs() -> None:
        for _ in range(REPEAT):
            env.step(action)

    return episode, round(REPEAT / CONTROL / scene.model.opt.timestep), action, theirs


def mimicgen(task: str, size: int) -> tuple[Any, int, np.ndarray, Callable[[], object]]:
    """A checkout of MimicGen is on PYTHONPATH."""
    from wmpo.envs.mimicgen.episode import MimicGenEpisode
    from wmpo.envs.mimicgen.settings import CONTROL

    episode = MimicGenEpisode([task], ["front"], size, True, "", 1, 1000)
    scene = episode.scene_of(task)
    scene.begin(0)
    action, env = np.zeros(7), MimicGenEpisode([task], ["front"], size, True, "", 1, 0).scene_of(task).env
    env.reset()
    return episode, round(1 / CONTROL / scene.model.opt.timestep), action, lambda: env.step(action)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="metaworld", choices=("metaworld", "aloha", "robosuite", "mimicgen"))
    parser.add_argument("--task", default="")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    display.prepare_environment(display.choose("egl"))
    warnings.simplefilter("ignore")
    import mujoco  # now that it knows how to draw

    make, task = {
        "metaworld": (metaworld, "peg-insert-side-v3"),
        "aloha": (aloha, "insertion"),
        "robosuite": (robosuite, "square"),
        "mimicgen": (mimicgen, "Coffee_D0"),
    }[options.family]
    began = time.process_time()
    episode, steps, action, theirs = make(options.task or task, options.size)
    episode.reset(0)
    scene = episode.scene_of(episode.task)
    print(f"building the task                  {time.process_time() - began:8.1f} s")
    saved = episode.get_state()
    rows: dict[str, Callable[[], object]] = {
        "reset": lambda: episode.reset(1),
        "a decision, physics and success": lambda: episode.step(action),
        "the bare simulator's steps": lambda: mujoco.mj_step(scene.model, scene.data, steps),
        "drawing one camera": episode.observe,
        "saving": episode.get_state,
        "restoring": lambda: episode.set_state(saved),
        "a decision and pictures by theirs": theirs,
    }
    if hasattr(episode, "demonstrate"):
        act = scene.expert()
        rows["the expert's decision"] = lambda: act(1.0)
    for name, each in rows.items():
        episode.set_state(saved)
        print(f"{name:35}{milliseconds(each, options.repeats):8.2f} ms")
    print(f"load when done                     {os.getloadavg()[0]:8.1f}")


if __name__ == "__main__":
    main()
