"""Frames per second on the page of `wmpo play`, in a headless Chromium, dream and simulator together.

    PYTHONPATH=. python benchmarks/play.py [--recipe place] [--seconds 20] [--no-real]

Models are of the recipe's sizes, with random weights. First an arrow key is held, then the policy acts.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import torch

from tests.browser import Browser
from wmpo.cli.parse import program
from wmpo.data.cache import FrameCache
from wmpo.data.normalizer import Normalizer
from wmpo.data.store import EpisodeStore
from wmpo.envs import make_env
from wmpo.policies import build_policy
from wmpo.protocols import Demonstrates
from wmpo.recipes import recipe_named
from wmpo.rewards import build_reward_model
from wmpo.training.parallel import use_one_thread
from wmpo.web.play import Play
from wmpo.web.server import make_server
from wmpo.world_models import build_world_model


@dataclass
class Settings:
    recipe: str = "place"
    """Whose sizes count."""
    seconds: float = 20.0
    """How long each of both is watched."""
    real: bool = True
    """Whether the simulator goes along."""


def rate(page: Browser, seconds: float) -> float:
    began, frames = time.monotonic(), page.run("return state.frames")
    time.sleep(seconds)
    return (page.run("return state.frames") - frames) / (time.monotonic() - began)


def main(settings: Settings) -> None:
    use_one_thread()
    recipe = recipe_named(settings.recipe)
    torch.manual_seed(0)
    with ExitStack() as held:
        real = held.enter_context(closing(make_env(replace(recipe.env, workers=1))))
        assert isinstance(real, Demonstrates)
        store = EpisodeStore.create(held.enter_context(tempfile.TemporaryDirectory()), real.spec)
        store.append([*real.demonstrate(range(4), 0.3, 0)])
        seen = Normalizer.from_cache(FrameCache(store), range(4))
        policy = build_policy(recipe.policy, real.spec)
        world = build_world_model(recipe.world_model, real.spec, policy.chunk)
        policy.set_normalizer(seen)
        world.set_normalizer(seen)
        judge = build_reward_model(recipe.reward, real.spec)
        play = Play(world, judge, policy, store, real if settings.real else None, torch.device("cpu"), 0.0)
        calls = {"about": play.about, "reset": play.reset, "step": play.step}
        server, address = make_server("play.html", calls, "127.0.0.1", 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with closing(Browser(address)) as page:
            page.until("return state.states")
            page.run("document.getElementById('speed').value = 60")
            page.run("dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
            by_hand = rate(page, settings.seconds)
            page.run("dispatchEvent(new KeyboardEvent('keyup', {key: 'ArrowRight'}))")
            page.press("p")
            page.until("return state.policy")
            by_policy = rate(page, settings.seconds)
            assert page.run("return state.error") == ""
        server.shutdown()
        size = next(iter(real.spec.cameras.values()))
    print(f"{settings.recipe}, {size[0]} pixels, {'dream and simulator' if settings.real else 'the dream alone'}")
    print(f"load when done    {os.getloadavg()[0]:6.1f}")
    print(f"by hand           {by_hand:6.1f} frames/s")
    print(f"the policy acts   {by_policy:6.1f} frames/s")


if __name__ == "__main__":
    sys.exit(program(Settings, main, "python -m benchmarks.play"))
