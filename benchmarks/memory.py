"""How much memory collecting, replaying and both ways of choosing a threshold take, for several numbers of episodes.

    python benchmarks/memory.py [--episodes 128 1024 4096] [--out benchmarks/results/memory.json]

The stages are those of a run, with small networks, in an environment that is a dot on a tiny picture. Each number of
episodes has a process of its own. What counts is memory that only the process has (RssAnon of Linux), at its fullest:
decoded frames are mapped from a file, whose pages the system takes back whenever it needs them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from wmpo.algorithm import collect
from wmpo.cli.parse import program
from wmpo.config import CollectConfig
from wmpo.data.cache import FrameCache
from wmpo.data.normalizer import Normalizer
from wmpo.data.store import EpisodeStore
from wmpo.io.files import write_json
from wmpo.io.plain import to_plain
from wmpo.io.provenance import commit, this_machine
from wmpo.policies import build_policy
from wmpo.recipes import recipe_named
from wmpo.rewards import build_reward_model
from wmpo.run import Run
from wmpo.success import cross_fitted_threshold, imagined_again, threshold_by_rate, verdicts
from wmpo.training.log import RunLog
from wmpo.training.parallel import use_one_thread
from wmpo.types import EnvSpec, Observation, Outcome
from wmpo.world_models import build_world_model

SIZE, LENGTH, CHUNK, BATCH = 16, 8, 4, 64


@dataclass
class Settings:
    episodes: tuple[int, ...] = (128, 1024, 4096)
    """Rollouts to collect, and all that is done with them, one number after the other."""
    out: Path | None = None
    """Where to write what was measured, as JSON."""


class Dots:
    """A white dot goes where it is told; half of the initial states succeed in the end, whatever is done."""

    spec = EnvSpec({"front": (SIZE, SIZE)}, 2, 2, LENGTH, 10, max_batch=BATCH)

    def reset(self, initial_states: Sequence[int]) -> Observation:
        self.numbers = torch.tensor(initial_states)
        # in different places, or all would score alike
        self.place = torch.stack([self.numbers * 5 % SIZE, self.numbers // SIZE % SIZE], 1).float()
        self.steps = torch.zeros(len(initial_states), dtype=torch.long)
        return Observation({"front": self.draw(self.place)}, self.place / SIZE, ("go",) * len(initial_states))

    def draw(self, place_A2: Tensor) -> Tensor:
        images = torch.zeros(len(place_A2), 3, SIZE, SIZE, dtype=torch.uint8)
        row, column = place_A2.long().unbind(1)
        images[torch.arange(len(row)), :, row, column] = 255
        return images

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        index, frames, states = torch.as_tensor(rows), [], []
        for action in chunk_AKD.unbind(1):
            self.place[index] = (self.place[index] + action).clamp(0, SIZE - 1)
            frames.append(self.draw(self.place[index]))
            states.append(self.place[index] / SIZE)
        self.steps[index] += chunk_AKD.shape[1]
        done = self.steps[index] >= LENGTH
        success = torch.zeros(chunk_AKD.shape[:2], dtype=torch.bool)
        success[:, -1] = done & (self.numbers[index] % 2 == 0)
        return Outcome({"front": torch.stack(frames, 1)}, torch.stack(states, 1), success, done)

    def close(self) -> None:
        pass


def anonymous() -> float:
    """MB of memory that only this process has."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


@contextmanager
def measuring(stage: str, found: dict[str, dict[str, float]]) -> Iterator[None]:
    """Add what the stage takes at its fullest beside what there was before, and its seconds of the processor."""
    before, begin, ended = anonymous(), time.process_time(), threading.Event()
    most = [before]

    def watch() -> None:
        while not ended.wait(0.005):
            most[0] = max(most[0], anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()
    found[stage] = {
        "mb": round(max(most[0], anonymous()) - before, 1),
        "seconds": round(time.process_time() - begin, 1),
    }


def measured(episodes: int, folder: Path) -> dict[str, dict[str, float]]:
    smoke = recipe_named("smoke")
    recipe = replace(smoke, collect=CollectConfig(episodes=episodes), reward=replace(smoke.reward, threshold="rate"))
    env, found = Dots(), {}
    store = EpisodeStore.create(folder / "episodes", env.spec)
    torch.manual_seed(0)
    policy = build_policy(recipe.policy, env.spec)
    world_model = build_world_model(recipe.world_model, env.spec, CHUNK)
    model = build_reward_model(recipe.reward, env.spec)
    for parameter in model.parameters():  # an untrained one gives all the same score
        torch.nn.init.normal_(parameter, std=0.1)
    with RunLog(folder, quiet=True) as log:
        run = Run(recipe, folder, log, torch.device("cpu"), env, store, store)
        first = env.reset([0])
        policy.act(first, temperature=1.0, generator=torch.Generator())  # what is made once and kept
        with measuring("collecting", found):
            collect(run, policy, 1)
        every = range(len(store))
        with measuring("decoding", found):
            world_model.set_normalizer(Normalizer.from_cache(FrameCache(store), every))
        with measuring("replaying", found):
            dreams = imagined_again(run, world_model, every, 1)
        with measuring("threshold by rate", found):
            threshold_by_rate(run, policy, world_model, model, every, 1)

        def judge(fold: int, kept: Sequence[int]) -> Iterator[tuple[float, bool]]:
            for episode in dreams.each(kept):
                # an untrained one knows no success, and no threshold could be chosen
                yield from ((score + hit, hit) for score, hit in verdicts(model, episode, CHUNK, 1))

        with measuring("threshold, cross-fitted", found):
            cross_fitted_threshold(run, every, judge)
    return found


def main(settings: Settings) -> None:
    rows = []
    for episodes in settings.episodes:
        done = subprocess.run([sys.executable, __file__, "one", str(episodes)], stdout=subprocess.PIPE, check=True)
        rows.append({"episodes": episodes, **json.loads(done.stdout)})
        print(rows[-1], flush=True)
        if settings.out is not None:
            write_json(settings.out, {"commit": commit(), "machine": to_plain(this_machine()), "peaks": rows})


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        use_one_thread()
        with tempfile.TemporaryDirectory() as place:
            print(json.dumps(measured(int(sys.argv[2]), Path(place))))
    else:
        sys.exit(program(Settings, main, "python benchmarks/memory.py"))
