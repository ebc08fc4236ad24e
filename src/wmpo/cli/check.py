"""`wmpo check`: does an implementation keep the promises of `wmpo.protocols`?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from wmpo.config import EnvConfig, PolicyConfig, Recipe, RewardConfig, WorldModelConfig
from wmpo.errors import UserError, named, require_between

KINDS = {"env": "env", "policy": "policy", "world-model": "world_model", "reward-model": "reward", "data": ""}


@dataclass(frozen=True)
class CheckCommand:
    """Try an implementation out, and say in plain words what it gets wrong; status 1 if anything.

    wmpo check env|policy|world-model|reward-model NAME, where NAME is a family, an entry point, module:Class, or the
    folder of a saved model; wmpo check data FOLDER for an episode store. Models are tried on random pictures of the
    given size.
    """

    kind: tyro.conf.Positional[Literal["env", "policy", "world-model", "reward-model", "data"]]
    """What it is."""
    name: tyro.conf.Positional[str]
    """Its name, or its folder."""
    env: EnvConfig
    """Settings of the environment, for check env."""
    policy: PolicyConfig
    """Settings of the policy, for check policy."""
    world_model: WorldModelConfig
    """Settings of the world model, for check world-model."""
    reward: RewardConfig
    """Settings of the reward model, for check reward-model."""
    data: Path | None = None
    """Folder of an episode store: the model is tried on cameras, states and actions such as it has."""
    size: tuple[int, int] = (64, 64)
    """Height and width of the pictures that a model is tried on, without --data."""
    state_dim: int = 4
    """Numbers of the proprioceptive state that a model is tried on."""
    action_dim: int = 4
    """Numbers of an action."""
    chunk: int = 4
    """Actions at once, for check world-model."""

    @classmethod
    def parse(cls, args: Sequence[str]) -> CheckCommand:
        from wmpo.cli.parse import parse, settings_from, value_of

        kind, name = [*args, "", ""][:2]
        asked = any(arg in ("-h", "--help") for arg in args[:2])
        if not asked:
            if kind.startswith("-") or name.startswith("-"):
                raise UserError("Name what to check before its options, as in: wmpo check policy NAME --size 32 32.")
            named("kind of thing to check", kind, KINDS)
            if not name:
                raise UserError(f"Which {kind}? Give its name or its folder, as in: wmpo check {kind} NAME.")
        field = "" if asked else KINDS[kind]
        family = value_of(f"{field}.family", args)
        if family not in ("", name):
            raise UserError(f"Both {name} and --{field}.family {family} say what to check: leave one of them away.")
        is_saved = kind != "env" and Path(name).is_dir()
        chosen = [f"--{field}.family", name] if field and not is_saved else []
        settings = {key: settings_from(key, [*args, *(chosen if key == field else [])])
                    for key in ("env", "policy", "world_model", "reward")}  # fmt: skip
        return parse(cls, args, "wmpo check", cls("data", "", **settings) if asked
                     else cls(kind, name, **settings))  # type: ignore[arg-type]  # fmt: skip

    def execute(self) -> int:
        check = {"data": self._data, "env": self._env}.get(self.kind, self._model)
        complaints = check()
        for complaint in complaints:
            print(f"- {complaint}")
        what = f"{self.kind} {self.name}"
        things = f"{len(complaints)} thing{'s' * (len(complaints) > 1)} to mend"
        print(f"{what}: {things if complaints else 'keeps the contract'}")
        return int(bool(complaints))

    def _data(self) -> list[str]:
        from wmpo.data.store import EpisodeStore

        store = EpisodeStore.open(Path(self.name))
        for _ in store:  # every frame and number is read, and refused if it is damaged
            pass
        for line in store.summary().lines():
            print(line)
        return []

    def _env(self) -> list[str]:
        from wmpo.contracts import check_env, optional
        from wmpo.envs import make_env
        from wmpo.recipes.checks import check_recipe

        check_recipe(Recipe(env=self.env))
        with closing(make_env(self.env)) as env:
            complaints = check_env(env)
            if not complaints:
                print(optional.tried(env))
            return complaints

    def _model(self) -> list[str]:
        import torch

        from wmpo import contracts
        from wmpo.data.store import EpisodeStore
        from wmpo.policies import build_policy, load_policy
        from wmpo.recipes.checks import check_recipe
        from wmpo.rewards import build_reward_model, load_reward_model
        from wmpo.training.checkpoint import check_fits
        from wmpo.types import EnvSpec
        from wmpo.world_models import build_world_model, load_world_model

        for option, value, least in (
            ("--size", min(self.size), 1), ("--size", max(self.size), 1), ("--chunk", self.chunk, 1),
            ("--action-dim", self.action_dim, 1), ("--state-dim", self.state_dim, 0),
        ):  # fmt: skip
            require_between(option, value, least, 4096)
        check_recipe(Recipe(env=self.env, policy=self.policy, world_model=self.world_model, reward=self.reward))
        spec = EnvSpec({"front": self.size}, self.state_dim, self.action_dim, horizon=1024, fps=10)
        if self.data is not None:
            spec = EpisodeStore.open(self.data).spec
        torch.manual_seed(0)
        made: Any
        if Path(self.name).is_dir():
            load = {"policy": load_policy, "world-model": load_world_model, "reward-model": load_reward_model}
            made = load[self.kind](Path(self.name))
            try:
                check_fits(made, spec, self.name)
            except UserError as error:
                how = "" if self.data else " Say what it was made for by --data STORE, or by --size and its neighbours."
                raise UserError(f"{error}{how}") from None
        elif self.kind == "policy":
            made = build_policy(self.policy, spec)
        elif self.kind == "world-model":
            made = build_world_model(self.world_model, spec, self.chunk)
        else:
            made = build_reward_model(self.reward, spec)
        return contracts.try_out(self.kind, made, spec)
