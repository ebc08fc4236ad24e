"""`wmpo play` and `wmpo view`."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from wmpo.errors import UserError, require_between


@dataclass(frozen=True)
class PlayCommand:
    """Drive the dream of a run by hand, in a web page: keys or the mouse act, the policy takes over at a key.

    Beside it the simulator does the same, where there is one; below, what the reward model thinks of the dream. Where
    the run names a class of yours, add --allow module:Class.
    """

    folder: tyro.conf.Positional[Path]
    """Folder of the run."""
    policy: str = ""
    """The policy that takes over: its name or folder; the last one that practised without it."""
    real: bool = True
    """Show the real environment beside the dream; of a robot, or of recorded episodes, never."""
    host: str = "127.0.0.1"
    """Where to listen: only this machine, or 0.0.0.0 for all that reach it, who then need the token that is printed."""
    port: int = 8011
    """0: any that is free."""
    device: str = "auto"
    """auto: a GPU where there is one."""

    def execute(self) -> None:
        from wmpo.cli.models import find_policy, fitting, last_models, latest
        from wmpo.data.store import EpisodeStore
        from wmpo.envs import RECORDED, make_env
        from wmpo.opening import load_recipe, pick_device
        from wmpo.policies import load_policy
        from wmpo.training.parallel import use_one_thread
        from wmpo.web.play import Play
        from wmpo.web.server import serve

        require_between("--port", self.port, 0, 65535)
        recipe, device = load_recipe(self.folder), pick_device(self.device)
        use_one_thread()
        store = EpisodeStore.open(self.folder / "episodes")
        if (models := last_models(self.folder, store.spec, device)) is None:
            raise UserError(f"The run in {self.folder} has no world model with a reward model yet: continue it first.")
        _, place = find_policy(self.folder, self.policy or latest(recipe, self.folder)[-1])
        policy = fitting(load_policy, place, store.spec, device)
        shows = self.real and recipe.env.family not in ("robot", RECORDED)
        beside = replace(
            recipe.env, workers=1
        )  # a process of its own: OpenGL bears one thread, and each call has its own
        with closing(make_env(beside)) if shows else nullcontext() as real:
            play = Play(*models, policy, store, real, device, recipe.evaluate.temperature)
            calls = {"about": play.about, "reset": play.reset, "step": play.step}
            serve("play.html", calls, self.host, self.port)


@dataclass(frozen=True)
class ViewCommand:
    """Look at the episodes of a store in a web page: real beside imagined where a run has a world model."""

    folder: tyro.conf.Positional[Path]
    """Folder of an episode store, or of a run, of which it shows what was learned from."""
    run: Path | None = None
    """Folder of the run whose world model and reward model judge; that which the store is in without it."""
    host: str = "127.0.0.1"
    """Where to listen: only this machine, or 0.0.0.0 for all that reach it, who then need the token that is printed."""
    port: int = 8012
    """0: any that is free."""
    device: str = "auto"
    """auto: a GPU where there is one."""

    def execute(self) -> None:
        from wmpo.cli.models import store_and_models
        from wmpo.opening import owner_of, pick_device
        from wmpo.training.parallel import use_one_thread
        from wmpo.web.server import serve
        from wmpo.web.view import View

        require_between("--port", self.port, 0, 65535)
        device = pick_device(self.device)
        use_one_thread()
        store, models = store_and_models(self.folder, self.run, device)
        view = View(store, models, device, labels=owner_of(store.root) is None)
        calls = {"episodes": view.episodes, "episode": view.episode, "label": view.label}
        serve("view.html", calls, self.host, self.port)
