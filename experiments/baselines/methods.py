"""The other ways of spending the same P real rollouts, top to bottom: what WMPO is compared with.

Each takes the base policy, improves it in place, and returns it; `improve` is to them what `optimise` is to WMPO. They
share the policy class, the demonstrations, the initial states and the evaluation with it, and use all P rollouts.

How they are tuned: by `python -m experiments tuning` and `tuning-more`, on two tasks and a seed that no other
experiment uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from experiments.baselines.preference import Preference, PreferencePairs, rivals
from wmpo.algorithm import (
    collect,
    demonstrations,
    evaluate_in_practice,
    evaluate_policy,
    imitate,
    save_policy,
    successes,
)
from wmpo.config import FitConfig, GRPOConfig
from wmpo.data.cache import FrameCache
from wmpo.data.clips import ImitationFrames
from wmpo.errors import UserError
from wmpo.grpo import practise
from wmpo.policies import load_policy
from wmpo.protocols import Env, Policy
from wmpo.report.measure import outcomes
from wmpo.report.results import BASE, Interactions, RunResult
from wmpo.run import Purpose, Run, is_demonstration
from wmpo.training.log import read_metrics
from wmpo.types import Observation, Outcome


@dataclass(frozen=True)
class BaselineConfig:
    """What the baselines need beside the settings of a recipe."""

    online: GRPOConfig = field(
        default_factory=lambda: GRPOConfig(lr=1e-3, groups=8, group_size=8, warmup=4, minibatches=2, ema=0.0)
    )
    """GRPO on real rollouts. Its batches are small, since P pays for few; iterations, too few to average, and refills
    are set by P."""
    beta: float = 1.0
    """DPO: how strongly the policy is held to the base; the smaller, the farther it may move."""
    dpo: FitConfig = field(default_factory=lambda: FitConfig(steps=200, batch_size=16, lr=1e-4, warmup=20))
    """DPO: training on pairs of a success and a failure; batch_size counts pairs."""
    sft: FitConfig = field(default_factory=lambda: FitConfig(optimizer="muon", steps=400, batch_size=128, lr=3e-4))
    """Supervised training that goes on from the base policy, on demonstrations and what was added to them."""
    upper_iterations: int = 60
    """Iterations of GRPO without a limit on real rollouts; all else as in practice."""


def improve(run: Run, method: str, cfg: BaselineConfig) -> RunResult:
    """What `optimise` does, with another method in place of practising in imagination."""
    demonstrations(run)
    base = run.folder / "policies" / BASE  # not imitated anew: demonstrations may have been added since
    policy = load_policy(base).to(run.device) if base.exists() else imitate(run)
    evaluate_policy(run, policy, BASE)
    for turn in range(1, run.recipe.rounds + 1):
        policy = METHODS[method](run, policy, turn, cfg)
        name = f"{method}_{turn}"
        save_policy(run, policy, name)
        evaluate_policy(run, policy, name)
    result, _ = outcomes(run)
    tried, practised = result.interactions["rollouts"], real_practice(run)
    result.interactions["rollouts"] = Interactions(tried.episodes + practised.episodes, tried.steps + practised.steps)
    result.read_logs(run.folder)
    return result


def online_grpo(run: Run, policy: Policy, turn: int, cfg: BaselineConfig) -> Policy:
    """GRPO in the real environment that ends once P real rollouts are used: those are what it learns from."""
    budget = run.recipe.collect.episodes
    numbers = run.initial_states("collect", budget, turn)  # those from which WMPO imagines are at hand as well
    numbers += run.initial_states("practise", run.recipe.grpo.n_initial_states, turn)
    return practise_for_real(run, policy, within(cfg.online, budget), numbers, f"online_grpo-{turn}", turn)


def upper_bound(run: Run, policy: Policy, turn: int, cfg: BaselineConfig) -> Policy:
    """GRPO in the real environment, for as many iterations as are asked for: what there is to learn."""
    unlimited = replace(run.recipe.grpo, iterations=cfg.upper_iterations, target_kl=0.0)  # reality can be trusted
    numbers = run.initial_states("practise", unlimited.n_initial_states, turn)
    return practise_for_real(run, policy, unlimited, numbers, f"upper_bound-{turn}", turn)


def dpo(run: Run, policy: Policy, turn: int, cfg: BaselineConfig) -> Policy:
    """Offline DPO on pairs of a success and a failure of this round's P rollouts, the policy before as reference.

    A success is paired with the failures from its own initial state. Where each state is tried once only, as by default
    (`collect.rollouts_per_state`), it is paired with all failures of the round, though
    DPO's derivation does not hold for such pairs. A round without pairs leaves the policy as it is.
    """
    collect(run, policy, turn)
    with run.log.stage("dpo"):
        records = [record for record in run.store.records() if record.source == f"round-{turn}"]
        pairs = rivals(records, across_states=run.recipe.collect.rollouts_per_state == 1)
        if not pairs:
            run.log.info(f"DPO: round {turn} has no success to prefer to a failure; the policy stays as it is.")
            return policy
        temperature = run.recipe.collect.temperature  # that of the policy which made these decisions
        policy.to(run.device)
        batches = PreferencePairs(FrameCache(run.store), policy, pairs, temperature, run.device)
        seed = run.seed(Purpose.DPO, turn)
        run.fit(
            Preference(policy, cfg.beta, temperature),
            lambda step: batches.sample(cfg.dpo.batch_size, seed, step),
            cfg.dpo,
            f"dpo-{turn}",
            seed,
        )
    return policy


def filtered_bc(run: Run, policy: Policy, turn: int, cfg: BaselineConfig) -> Policy:
    """Filtered behaviour cloning: imitate the demonstrations and the successes of the rollouts so far, as WMPO does
    before it practises."""
    collect(run, policy, turn)
    return imitate_more(run, policy, successes(run, turn), cfg.sft, f"filtered_bc-{turn}", turn)


def more_demonstrations(run: Run, policy: Policy, turn: int, cfg: BaselineConfig) -> Policy:
    """Imitate P more successful demonstrations per round, in place of the policy's own rollouts."""
    recipe = run.recipe
    wanted = recipe.demonstrations.episodes + turn * recipe.collect.episodes
    asked = replace(recipe, demonstrations=replace(recipe.demonstrations, episodes=wanted))
    demonstrations(replace(run, recipe=asked))
    shown = run.episodes(is_demonstration)[:wanted]
    return imitate_more(run, policy, shown, cfg.sft, f"more_demonstrations-{turn}", turn)


Method = Callable[[Run, Policy, int, BaselineConfig], Policy]
METHODS: dict[str, Method] = {
    method.__name__: method for method in (online_grpo, dpo, filtered_bc, more_demonstrations, upper_bound)
}


def imitate_more(run: Run, policy: Policy, episodes: Sequence[int], cfg: FitConfig, name: str, turn: int) -> Policy:
    """Go on imitating, from the policy as it is."""
    with run.log.stage("imitate more"):
        frames = ImitationFrames(FrameCache(run.store), episodes, policy.chunk, shift=run.recipe.policy.shift)
        seed = run.seed(Purpose.SELF_IMITATION, turn)
        return run.fit(policy, lambda step: frames.sample(cfg.batch_size, seed, step), cfg, name, seed)


def within(cfg: GRPOConfig, budget: int) -> GRPOConfig:
    """As many iterations as `budget` rollouts pay for; what is left of them is less than one iteration."""
    groups = min(cfg.groups, budget // cfg.group_size)
    if not groups:
        raise UserError(
            f"{budget} real rollouts are no group of {cfg.group_size}: raise collect.episodes or choose smaller groups."
        )
    return replace(cfg, groups=groups, max_resamples=0, iterations=budget // (groups * cfg.group_size))


def practise_for_real(
    run: Run, policy: Policy, cfg: GRPOConfig, numbers: Sequence[int], name: str, turn: int
) -> Policy:
    env = Metered(run.env)

    def after(iteration: int, policy: Policy) -> None:
        run.log.scalars(iteration, {f"{name}/real_episodes": env.episodes, f"{name}/real_steps": env.steps})
        env.episodes = env.steps = 0
        evaluate_in_practice(run, policy, name, iteration)

    with run.log.stage(name):
        return practise(
            env,
            policy.to(run.device),
            numbers,
            cfg,
            seed=run.seed(Purpose.ONLINE_GRPO, turn),
            generator=torch.Generator(),
            folder=run.folder,
            name=name,
            log=run.log,
            callback=after,
        )


class Metered:
    """The same environment, counting how much it is used."""

    def __init__(self, env: Env) -> None:
        self.env, self.spec = env, env.spec
        self.episodes = self.steps = 0

    def reset(self, initial_states: Sequence[int]) -> Observation:
        self.episodes += len(initial_states)
        return self.env.reset(initial_states)

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        self.steps += chunk_AKD.shape[0] * chunk_AKD.shape[1]
        return self.env.step(rows, chunk_AKD)

    def close(self) -> None:
        """Nothing to close; the environment belongs to the run."""


def real_practice(run: Run) -> Interactions:
    """What practice in the real environment has used, by its log."""
    used = {"episodes": 0, "steps": 0}
    for name, points in read_metrics(run.folder).items():
        for unit in used:
            if name.endswith(f"/real_{unit}"):
                used[unit] += round(sum(value for _, value in points))
    return Interactions(**used)
