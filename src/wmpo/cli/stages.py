"""The stages that meet the real environment or its demonstrations, one by one: for your own data or policy."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from wmpo.config import ROUNDS, CollectConfig, CurvesKind, DemonstrationConfig, EnvConfig, PolicyConfig, Recipe
from wmpo.errors import require_between


@dataclass(frozen=True)
class DemonstrateCommand:
    """Scripted demonstrations of a task, into an episode store; an unfinished or smaller store is filled up."""

    data: Path
    """Folder of the episode store, made where there is none."""
    env: EnvConfig = field(default_factory=EnvConfig)
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    seed: int = 0
    """Chooses the initial states and the noise."""

    def execute(self) -> None:
        from wmpo.algorithm import demonstrations
        from wmpo.envs import make_env
        from wmpo.families import completed
        from wmpo.opening import open_stage
        from wmpo.recipes.checks import check_recipe

        recipe = completed(Recipe(seed=self.seed, env=self.env, demonstrations=self.demonstrations))
        check_recipe(recipe)  # before the simulators start
        with closing(make_env(self.env)) as env, open_stage(recipe, self.data / "log", self.data, env=env) as run:
            demonstrations(run)
            tell(self.data)


@dataclass(frozen=True)
class ImitateCommand:
    """A policy from the successful demonstrations in a store: its episodes of source "expert"."""

    data: Path
    """Folder of the episode store."""
    out: Path
    """Folder for the training and for the policy, in OUT/policies/base. The same command continues it."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    seed: int = 0
    """Of weights and batches."""
    device: str = "auto"
    """auto: a GPU where there is one."""
    curves: CurvesKind = "tensorboard"
    """Where the numbers of the training are shown: tensorboard, wandb or trackio; they stand in OUT/metrics.jsonl
    anyway."""

    def execute(self) -> None:
        from wmpo.algorithm import imitate
        from wmpo.opening import open_stage

        recipe = Recipe(seed=self.seed, policy=self.policy, device=self.device, curves=self.curves)
        with open_stage(recipe, self.out, self.data) as run:
            imitate(run)
            run.log.info(f"Policy: {self.out / 'policies' / 'base'}")


@dataclass(frozen=True)
class CollectCommand:
    """Real rollouts of a policy, into an episode store. Rollouts of a round that are there already are not repeated."""

    policy: Path
    """Folder of the policy, such as runs/place-seed0/policies/base."""
    data: Path
    """Folder of the episode store, made where there is none."""
    env: EnvConfig = field(default_factory=EnvConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    round: int = 1
    """Rollouts are stored as of source "round-N", from initial states of their own."""
    seed: int = 0
    """Chooses the initial states and the sampling."""
    device: str = "auto"
    """auto: a GPU where there is one."""

    def execute(self) -> None:
        from wmpo.algorithm import collect
        from wmpo.cli.models import fitting
        from wmpo.envs import make_env
        from wmpo.families import completed, saved_family
        from wmpo.opening import open_stage, pick_device
        from wmpo.policies import load_policy
        from wmpo.recipes.checks import check_recipe

        saved_family("policy", self.policy, "")  # there is one
        require_between("--round", self.round, *ROUNDS)
        recipe = completed(Recipe(seed=self.seed, env=self.env, collect=self.collect, device=self.device))
        check_recipe(recipe)  # before the simulators start
        with closing(make_env(self.env)) as env:
            policy = fitting(load_policy, self.policy, env.spec, pick_device(self.device))
            with open_stage(recipe, self.data / "log", self.data, env=env) as run:
                collect(run, policy, self.round)
                tell(self.data)


def tell(data: Path) -> None:
    """How much a store holds."""
    from wmpo.data.store import EpisodeStore

    for line in EpisodeStore.open(data).summary().lines():
        print(f"{data}: {line}")
