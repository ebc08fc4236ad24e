"""`wmpo evaluate`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import tyro

from wmpo.config import EPISODES, SEEDS
from wmpo.errors import require_between, require_temperature


@dataclass(frozen=True)
class EvaluateCommand:
    """Measure policies of a run in the real environment, all on the same initial states, which nothing learned from.

    Prints success with its Wilson interval and the paired gain over the base policy, for each task too where there are
    several. Outcomes are kept in FOLDER/evaluations, one file per setting, and compared with what is there already.
    Where the run or a policy names a class of yours, add --allow module:Class.
    """

    folder: tyro.conf.Positional[Path]
    """Folder of the run."""
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

    def execute(self) -> None:
        from wmpo.cli.models import find_policy, fitting, latest
        from wmpo.data.initial_states import initial_states
        from wmpo.envs import make_env, task_names
        from wmpo.evaluate import evaluate
        from wmpo.opening import load_recipe, pick_device
        from wmpo.policies import load_policy
        from wmpo.report.results import PolicyResult, RunResult
        from wmpo.report.tables import terminal_table
        from wmpo.training.log import RunLog
        from wmpo.training.parallel import use_one_thread

        recipe = load_recipe(self.folder)
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
                for name, policy in policies.items():
                    log.info(f"{name}: {episodes} real episodes, disruption {self.disruption}")
                    measured = evaluate(
                        env, policy, numbers, temperature=temperature, seed=self.seed, task=task_names(env),
                        time_factor=recipe.evaluate.time_factor,
                    )  # fmt: skip
                    result.policies[name] = PolicyResult.of(measured, temperature, self.disruption)
                    result.save(file)
                log.console.print(terminal_table(result))
                log.info(f"Outcomes: {file}")
