"""The baselines: what they learn from is what was played, and the real rollouts that they use are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.baselines import methods
from experiments.baselines.methods import METHODS, BaselineConfig, dpo, improve, within
from experiments.baselines.preference import Preference, PreferencePairs, Rollouts, log_probability, rivals, tokens_of
from wmpo.algorithm import collect, demonstrations, imitate
from wmpo.config import CollectConfig, DemonstrationConfig, EvaluateConfig, FitConfig, GRPOConfig, Recipe
from wmpo.data.cache import FrameCache
from wmpo.data.normalizer import Normalizer
from wmpo.data.records import EpisodeRecord
from wmpo.data.store import EpisodeStore
from wmpo.envs import make_env
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.errors import UserError
from wmpo.opening import open_run
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.recipes.checks import check_recipe
from wmpo.rollout import rollout
from wmpo.run import is_rollout

ENV = TabletopSettings(image_size=32, renderer="rays", workers=0)
FIT = FitConfig(steps=3, batch_size=4, warmup=1)
TINY = Recipe(
    env=ENV,
    device="cpu",
    demonstrations=DemonstrationConfig(episodes=4),
    policy=MiniVLASettings(width=8, hidden=16, fit=FIT),
    collect=CollectConfig(episodes=16),
    grpo=GRPOConfig(groups=2, group_size=2, n_initial_states=4),
    evaluate=EvaluateConfig(episodes=4, practice_eval_freq=0),
)
SETTINGS = BaselineConfig(online=GRPOConfig(groups=2, group_size=4), dpo=FIT, sft=FIT, upper_iterations=1)


def record(index: int, start: int, succeeded: bool) -> EpisodeRecord:
    return EpisodeRecord(index, 5, 0, 0, 0, start, "round-1", "push", "push", succeeded, False, {})


def test_rivals_are_of_the_same_start_where_there_are_some() -> None:
    played = [record(0, 7, True), record(1, 7, False), record(2, 8, True), record(3, 9, False), record(4, 7, False)]
    assert rivals(played, across_states=True) == {0: [1, 4], 2: [1, 3, 4]}
    assert rivals(played) == {0: [1, 4]}
    assert rivals(played[:1], across_states=True) == {} and rivals(played[1:2], across_states=True) == {}


@pytest.mark.parametrize(
    ("groups", "size", "budget", "expected"), [(8, 8, 128, (8, 2)), (8, 8, 1280, (8, 20)), (8, 8, 20, (2, 1))]
)
def test_online_practice_stays_within_the_budget(
    groups: int, size: int, budget: int, expected: tuple[int, int]
) -> None:
    cfg = within(GRPOConfig(groups=groups, group_size=size, max_resamples=3), budget)
    assert (cfg.groups, cfg.iterations) == expected
    assert cfg.groups * cfg.group_size * cfg.iterations * (1 + cfg.max_resamples) <= budget


def test_online_practice_begins_where_that_of_wmpo_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the initial states of its rollouts and at those from which WMPO imagines, of its round."""
    given: list[int] = []
    monkeypatch.setattr(methods, "practise_for_real", lambda run, policy, cfg, numbers, *_: given.extend(numbers))
    with open_run(TINY, tmp_path / "run", quiet=True) as run:
        unused: Any = None
        methods.online_grpo(run, unused, 2, SETTINGS)
        assert given == run.initial_states("collect", 16, 2) + run.initial_states("practise", 4, 2)
    assert len(set(given)) == 20


def test_a_budget_below_one_group_is_refused() -> None:
    with pytest.raises(UserError, match="no group of 8"):
        within(GRPOConfig(group_size=8), 7)


def test_stored_rollouts_hold_the_very_decisions(tmp_path: Path) -> None:
    """Played, stored, read back: the same tokens, the same mask, the same log-probabilities."""
    env = make_env(ENV)
    torch.manual_seed(0)
    policy = MiniVLA.build(TINY.policy, env.spec)
    dice = np.random.default_rng(0)
    shown = [dice.normal(0, 0.3, (4000, size)).astype(np.float32) for size in (4, env.spec.state_dim)]
    policy.set_normalizer(Normalizer.fit(*shown))
    generator = torch.Generator().manual_seed(1)
    played = rollout(env, policy, [3, 4, 5], temperature=0.7, generator=generator, record="round-1")
    env.close()
    EpisodeStore.create(tmp_path / "store", env.spec).append(played.episodes)
    cache = FrameCache(EpisodeStore.open(tmp_path / "store"))
    order = [2, 0, 1]
    decisions = Rollouts(cache, policy).decisions(order)
    assert torch.equal(decisions.mask, played.mask[order][:, : decisions.mask.shape[1]])
    rows = decisions.index
    assert torch.equal(decisions.trace, played.trace[torch.tensor(order)[rows[:, 0]], rows[:, 1]])
    counted = torch.where(played.mask[..., None], played.log_prob, torch.zeros(())).flatten(1).sum(1)[order]
    for some in (None, 5):
        torch.testing.assert_close(log_probability(policy, decisions, 0.7, some), counted, rtol=1e-4, atol=1e-3)

    pairs = PreferencePairs(cache, policy, {0: [1, 2]}, 0.7, torch.device("cpu"))
    batch = pairs.sample(4, seed=0, step=0)
    assert batch.decisions.mask.shape[0] == 8
    loss, metrics = Preference(policy, 0.1, 0.7)(batch)
    assert loss.item() == pytest.approx(0.6931, abs=1e-3)  # log 2: the policy is its own reference
    assert metrics["margin"].item() == pytest.approx(0, abs=1e-2)


def test_actions_of_somebody_else_are_refused() -> None:
    policy = MiniVLA.build(TINY.policy, make_env(ENV).spec)
    tokens = torch.randint(policy.config.bins, (5, 4, 4))
    assert torch.equal(tokens_of(policy, policy.decode_actions(tokens)), tokens)
    with pytest.raises(UserError, match="can't choose"):
        tokens_of(policy, torch.full((1, 4, 4), 0.017))


def test_any_policy_that_chooses_tokens_will_do() -> None:
    class Three(torch.nn.Module):
        bins = 3

        def __init__(self) -> None:
            super().__init__()
            self.levels = torch.nn.Parameter(torch.tensor([-1.0, 0.5, 0.5]))  # two tokens of one action: the first

        def decode_actions(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.levels[tokens]

    policy: Any = Three()
    assert tokens_of(policy, torch.tensor([[[0.5, -1.0]]])).tolist() == [[[1, 0]]]
    policy.bins = 0
    with pytest.raises(UserError, match="needs a policy that chooses tokens"):
        tokens_of(policy, torch.zeros(1, 1, 2))


def test_dpo_prefers_what_succeeded(tmp_path: Path) -> None:
    """Rollouts of the policy, half of which are called successes: training makes these likelier than the others."""
    settings = replace(SETTINGS, dpo=FitConfig(steps=40, batch_size=8, lr=3e-3, warmup=1))
    with open_run(TINY, tmp_path / "run", quiet=True) as run:
        torch.manual_seed(0)
        policy = MiniVLA.build(TINY.policy, run.env.spec)
        generator = torch.Generator().manual_seed(1)
        numbers = run.initial_states("collect", 8, 1)
        played = rollout(run.env, policy, numbers, temperature=0.6, generator=generator, record="round-1").episodes
        last = [np.arange(episode.length + 1) == episode.length for episode in played]
        run.store.append([
            replace(episode, success=hit & (i % 2 == 0))
            for i, (episode, hit) in enumerate(zip(played, last, strict=True))
        ])  # fmt: skip
        pairs = rivals(run.store.records(), across_states=True)
        assert list(pairs) == [0, 2, 4, 6]
        batch = PreferencePairs(FrameCache(run.store), policy, pairs, 0.6, run.device).sample(16, seed=0, step=0)
        before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
        dpo(run, policy, 1, settings)
        loss, metrics = Preference(policy, 0.1, 0.6)(batch)
        assert metrics["preferred"].item() > 0.8 and loss.item() < 0.6
        after = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
        policy.load_state_dict(before)
        dpo(run, policy, 1, settings)  # a second time nothing is learned, only loaded
        assert all(torch.equal(after[name], tensor) for name, tensor in policy.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_every_baseline_plays_to_its_end(method: str, tmp_path: Path) -> None:
    with open_run(TINY, tmp_path, quiet=True) as run:
        result = improve(run, method, SETTINGS)
    assert list(result.policies) == ["base", f"{method}_1"]
    assert result.policies["base"].initial_states == result.policies[f"{method}_1"].initial_states
    used = result.interactions["rollouts"].episodes
    assert used == {"more_demonstrations": 0, "upper_bound": 4}.get(method, 16)
    assert (result.interactions["rollouts"].steps > 0) == (used > 0)
    shown = result.interactions["demonstrations"].episodes
    assert shown >= 4 + 16 * (method == "more_demonstrations")
    with open_run(TINY, tmp_path, quiet=True) as run:  # a second time nothing is played
        again = improve(run, method, SETTINGS)
    assert again.policies == result.policies and again.interactions == result.interactions


def test_several_rollouts_of_each_state(tmp_path: Path) -> None:
    recipe = replace(TINY, collect=CollectConfig(episodes=16, rollouts_per_state=4))
    with open_run(recipe, tmp_path, quiet=True) as run:
        demonstrations(run)
        collect(run, imitate(run), 1)
        played = [record.initial_state for record in run.store.records() if is_rollout(record)]
    assert len(played) == 16 and len(set(played)) == 4 and played == sorted(played)
    with pytest.raises(UserError, match=r"multiple of collect.rollouts_per_state, 3"):
        check_recipe(replace(TINY, collect=CollectConfig(episodes=16, rollouts_per_state=3)))


def test_rounds_go_on_from_one_another(tmp_path: Path) -> None:
    with open_run(replace(TINY, rounds=2), tmp_path, quiet=True) as run:
        result = improve(run, "filtered_bc", SETTINGS)
    assert list(result.policies) == ["base", "filtered_bc_1", "filtered_bc_2"]
    assert result.interactions["rollouts"].episodes == 32
