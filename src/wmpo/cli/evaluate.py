"""`wmpo evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import tyro

from wmpo.config import EPISODES, SEEDS, EnvConfig, Recipe
from wmpo.errors import UserError, require_between, require_temperature

if TYPE_CHECKING:
    from wmpo.protocols import Env, Policy
    from wmpo.report.results import RunResult
    from wmpo.training.log import RunLog


@dataclass(frozen=True)
class EvaluateCommand:
    """Measure policies of a run in the real environment, all on the same initial states, which nothing learned from.

    Prints success with its Wilson interval and the paired gain over the base policy, for each task too where there are
    several. Outcomes are kept in FOLDER/evaluations, one file per setting, and compared with what is there already.
    Where the run or a policy names a class of yours, add --allow module:Class.

    On a robot the policies take turns, in an order that nobody sees, and each episode is kept when it ends.
    """

    folder: tyro.conf.Positional[Path]
    """Folder of the run; with --env options any folder, and --policy names folders."""
    policy: tuple[str, ...] = ()
    """base, wmpo-1, control, or folders that hold a policy; default: base and the last one that practised."""
    episodes: int | None = None
    """Initial states; default as in the recipe."""
    temperature: float | None = None
    """Sampling temperature, 0 for the greedy choice; default as in the recipe."""
    disruption: str = "none"
    """Change the scene as the paper does, in a way that the environment offers; the embedded one knows position,
    background and texture, and paraphrase, which changes the sentence alone."""
    seed: int = 0
    """Of the sampling, where the temperature is above 0."""
    device: str = "auto"
    """auto: a GPU where there is one."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Another environment than that of the run, a robot for instance; without any of its options, that of the run."""
    elsewhere: tyro.conf.Suppress[bool] = False

    @classmethod
    def parse(cls, args: Sequence[str]) -> Self:
        from wmpo.cli.parse import parse

        return replace(parse(cls, args, "wmpo evaluate"), elsewhere=any(arg.startswith("--env.") for arg in args))

    def recipe(self) -> Recipe:
        from wmpo.families import completed
        from wmpo.opening import RECIPE, load_recipe

        if not self.elsewhere:
            return load_recipe(self.folder)
        there = (self.folder / RECIPE).exists()
        if not there and not self.policy:
            raise UserError(f"{self.folder} holds no run: name the folders of policies with --policy.")
        recipe = load_recipe(self.folder, without=["env"]) if there else Recipe(name=self.folder.name)
        return completed(replace(recipe, env=self.env))

    def execute(self) -> None:
        from wmpo.cli.models import find_policy, fitting, latest
        from wmpo.data.initial_states import initial_states
        from wmpo.envs import make_env, task_names
        from wmpo.evaluate import evaluate
        from wmpo.opening import pick_device
        from wmpo.policies import load_policy
        from wmpo.recipes.checks import check_recipe
        from wmpo.report.results import PolicyResult, RunResult
        from wmpo.report.tables import terminal_table
        from wmpo.training.log import RunLog
        from wmpo.training.parallel import use_one_thread

        recipe = self.recipe()
        check_recipe(recipe)
        episodes = recipe.evaluate.episodes if self.episodes is None else self.episodes
        temperature = recipe.evaluate.temperature if self.temperature is None else self.temperature
        require_between("--episodes", episodes, *EPISODES)
        require_temperature("--temperature", temperature)
        require_between("--seed", self.seed, *SEEDS)
        use_one_thread()
        device = pick_device(self.device)
        numbers = initial_states("evaluate", recipe.seed, episodes)
        places = dict(find_policy(self.folder, name) for name in self.policy or latest(recipe, self.folder))
        name = f"{self.disruption}-t{temperature:g}-n{episodes}-s{self.seed}.json"
        file = self.folder / "evaluations" / name
        result = RunResult.begin(recipe)
        with closing(make_env(recipe.env, self.disruption)) as env:
            policies = {name: fitting(load_policy, place, env.spec, device) for name, place in places.items()}
            if file.exists():
                result.policies = RunResult.load(file).policies
            with RunLog(self.folder / "evaluations") as log:
                blind = env.spec.max_batch == 1
                if blind:
                    self.take_turns(recipe, env, policies, numbers, temperature, file, result, log)
                for name, policy in () if blind else policies.items():
                    log.info(f"{name}: {episodes} real episodes, disruption {self.disruption}")
                    measured = evaluate(
                        env, policy, numbers, temperature=temperature, seed=self.seed, task=task_names(env),
                        time_factor=recipe.evaluate.time_factor,
                    )  # fmt: skip
                    result.policies[name] = PolicyResult.of(measured, temperature, self.disruption)
                    result.save(file)
                log.console.print(terminal_table(result))
                log.info(f"Outcomes: {file}")

    def take_turns(
        self,
        recipe: Recipe,
        env: Env,
        policies: Mapping[str, Policy],
        numbers: Sequence[int],
        temperature: float,
        file: Path,
        result: RunResult,
        log: RunLog,
    ) -> None:
        """On a robot; see `wmpo.evaluate.evaluate_blind`."""
        from wmpo.data.store import EpisodeStore
        from wmpo.envs import task_names
        from wmpo.evaluate import evaluate_blind
        from wmpo.io.files import read_json, write_json
        from wmpo.report.results import PolicyResult
        from wmpo.training.checkpoint import digest_of

        store = EpisodeStore.open_or_create(file.with_suffix(""), env.spec)
        kept, digests = store.root / "policies.json", {name: digest_of(policy) for name, policy in policies.items()}
        if kept.exists() and read_json(kept) != digests:
            raise UserError(f"{store.root} holds episodes of other policies: evaluate these in another folder.")
        write_json(kept, digests)
        with log.progress("episodes", len(policies) * len(numbers)) as bar:
            measured = evaluate_blind(
                env, policies, numbers, store, temperature=temperature, seed=self.seed, task=task_names(env),
                time_factor=recipe.evaluate.time_factor, on_episode=lambda: bar.update(1),
            )  # fmt: skip
        for name, played in measured.items():
            result.policies[name] = PolicyResult.of(played, temperature, self.disruption)
        result.save(file)
