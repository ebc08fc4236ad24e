"""GRPO on a task whose answer is known, and the same weights after a stop as without one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coin import Coin, pictures
from wmpo import grpo
from wmpo.config import GRPOConfig
from wmpo.data.clips import ImitationBatch
from wmpo.errors import UserError
from wmpo.grpo import (
    add_imitation,
    advantages,
    distance,
    frozen_copy,
    learning_rate,
    log_prob_under,
    play_groups,
    practise,
    update,
)
from wmpo.rollout import rollout
from wmpo.training.log import RunLog, read_metrics
from wmpo.types import Decision, EnvSpec, Observation, Outcome


class Guess:
    """Success where the first action of a chunk is the initial-state number's parity. One chunk of two actions."""

    spec = EnvSpec({"front": (2, 2)}, 0, 1, 2, 1)

    def reset(self, initial_states: Sequence[int]) -> Observation:
        self.parity = torch.tensor([start % 2 for start in initial_states])
        count = len(initial_states)
        return Observation({"front": pictures(self.parity)}, torch.zeros(count, 0), ("guess",) * count)

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        right = chunk_AKD[:, 0, 0] == self.parity[list(rows)]
        success = torch.stack([right, right], dim=1)
        images = torch.zeros(len(rows), 2, 3, 2, 2, dtype=torch.uint8)
        done = torch.ones(len(rows), dtype=torch.bool)
        return Outcome({"front": images}, torch.zeros(len(rows), 2, 0), success, done)

    def close(self) -> None: ...


CONFIG = GRPOConfig(
    iterations=12, groups=8, group_size=6, lr=0.2, freeze=(), warmup=0, minibatches=2, max_resamples=1, temperature=1.0
)
STARTS = list(range(20))


def run(folder: Path, policy: nn.Module, config: GRPOConfig, callback: Any = None, shown: Any = None) -> Any:
    generator = torch.Generator()
    with RunLog(folder, quiet=True) as log:
        return practise(
            Guess(), policy, STARTS, config, seed=5, generator=generator, folder=folder, name="practice", log=log,
            callback=callback, shown=shown,
        )  # fmt: skip


def right(policy: Any) -> float:
    """Probability of the right first action, averaged over both parities."""
    log_probs = policy.log_probs(Guess().reset([0, 1]))
    return float((log_probs[0, 0, 0].exp() + log_probs[1, 0, 1].exp()).detach() / 2)


def test_grpo_learns_what_is_rewarded(tmp_path: Path) -> None:
    policy = Coin()
    assert right(policy) == pytest.approx(0.5)
    run(tmp_path, policy, CONFIG)
    assert right(policy) > 0.9


def test_distance_is_that_of_the_two_distributions() -> None:
    """KL of (p, 1-p) against halves, for the second action, on which success does not depend."""
    start, policy = Coin(), Coin()
    with torch.no_grad():
        policy.linear.bias += torch.tensor([0.0, 0.0, 0.5, -0.5])
    generator = torch.Generator().manual_seed(1)
    many = replace(CONFIG, groups=400, max_resamples=0, min_group_success=0.0, max_group_success=1.0)
    groups = play_groups(Guess(), policy, STARTS, many, generator=generator, temperature=1.0)
    assert len(groups.rollout) > 1000
    p = 1 / (1 + math.exp(-1.0))
    known = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert distance(start, groups.rollout, many) == pytest.approx(known, rel=0.15)
    assert distance(policy, groups.rollout, many) == pytest.approx(0.0, abs=1e-6)


def test_practice_ends_where_trust_does(tmp_path: Path) -> None:
    free = run(tmp_path / "free", Coin(), replace(CONFIG, target_kl=0.0))
    bound = run(tmp_path / "bound", Coin(), replace(CONFIG, target_kl=0.3))
    metrics = read_metrics(tmp_path / "bound")
    away, taken = [value for _, value in metrics["practice/distance"]], len(metrics["practice/success"])
    assert 0 < taken < CONFIG.iterations and away[0] == pytest.approx(0.0, abs=1e-6)
    assert max(away) <= 0.3  # the iteration that found more has learned nothing
    assert right(bound) < right(free)

    short = run(tmp_path / "short", Coin(), replace(CONFIG, target_kl=0.0, iterations=taken))
    assert torch.equal(short.linear.weight, bound.linear.weight)  # it ended after exactly so many

    def kill(iteration: int, policy: Any) -> None:
        if iteration == 2:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run(tmp_path / "broken", Coin(), replace(CONFIG, target_kl=0.3), kill)
    resumed = run(tmp_path / "broken", Coin(), replace(CONFIG, target_kl=0.3))
    assert torch.equal(resumed.linear.weight, bound.linear.weight)


def test_practice_hands_on_the_mean_of_its_last_iterations(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    config = replace(CONFIG, iterations=6, ema=0.5)
    policy = run(tmp_path, Coin(), config, lambda _, policy: seen.append(policy.linear.weight.detach().clone()))
    first, second, *rest = seen
    known = (first + second) / 2
    for weight in rest:
        known = (known + weight) / 2
    assert torch.allclose(policy.linear.weight, known) and not torch.allclose(known, seen[-1], atol=1e-3)
    last = run(tmp_path / "last", Coin(), replace(config, ema=0.0))
    assert torch.equal(last.linear.weight, seen[-1])


def test_shuffled_rewards_teach_nothing(tmp_path: Path) -> None:
    policy = Coin()
    run(tmp_path, policy, replace(CONFIG, shuffle_rewards=True, lr=0.05))
    assert abs(right(policy) - 0.5) < 0.2


def wrong_ones(step: int) -> ImitationBatch:
    """Real frames whose first action is always the one that is not rewarded; what the second one is, nobody rewards."""
    numbers = [step % 2, 1 + step % 2]
    action = torch.tensor([[[1.0 - number % 2], [1.0]] for number in numbers])
    return ImitationBatch(Guess().reset(numbers), action, torch.ones(2, 2, dtype=torch.bool))


def second(policy: Any) -> float:
    """Probability of token 1 as the second action."""
    return float(policy.log_probs(Guess().reset([0, 1]))[:, 1, 1].exp().detach().mean())


def test_practice_is_held_to_what_it_is_shown(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", Coin(), CONFIG, shown=wrong_ones)  # not asked to imitate, it doesn't
    assert torch.equal(alone.linear.weight, run(tmp_path / "none", Coin(), CONFIG).linear.weight)
    asked = replace(CONFIG, imitation_coef=0.3)
    both = run(tmp_path / "both", Coin(), asked, shown=wrong_ones)
    assert second(both) > 0.95 > 0.85 > second(alone)
    assert right(both) < right(alone)
    loss = [value for _, value in read_metrics(tmp_path / "both")["practice/imitation_loss"]]
    assert len(loss) == CONFIG.iterations

    def kill(iteration: int, policy: Any) -> None:
        if iteration == 4:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", Coin(), asked, kill, wrong_ones)
    again = run(tmp_path / "cut", Coin(), asked, shown=wrong_ones)
    assert torch.equal(again.linear.weight, both.linear.weight)


def test_the_imitation_gradient_is_added_with_its_weight() -> None:
    policy, batch = Coin(), wrong_ones(0)
    parameters = list(policy.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    loss = add_imitation(policy, parameters, batch, 0.5, torch.Generator())
    expected = torch.autograd.grad(policy(batch)[0], parameters)
    assert float(loss) == pytest.approx(math.log(2))
    torch.testing.assert_close(parameters[0].grad, 1 + 0.5 * expected[0])
    torch.testing.assert_close(parameters[1].grad, 0.5 * expected[1])


def test_a_stopped_practice_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", Coin(), CONFIG)

    def kill(iteration: int, policy: Any) -> None:
        if iteration == 7:  # after the update, before the checkpoint of this iteration
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "broken", Coin(), CONFIG, kill)
    resumed = run(tmp_path / "broken", Coin(), CONFIG)
    assert torch.equal(resumed.linear.weight, whole.linear.weight)
    assert torch.equal(resumed.linear.bias, whole.linear.bias)
    assert torch.equal(run(tmp_path / "broken", Coin(), CONFIG).linear.weight, whole.linear.weight)  # only loads


def test_groups_share_their_start_and_are_informative() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = play_groups(Guess(), Coin(), STARTS, CONFIG, generator=generator, temperature=1.0)
    initial_states = torch.tensor(groups.rollout.initial_states).view(-1, 6)
    assert (initial_states == initial_states[:, :1]).all()
    means = groups.reward_BG.mean(1)
    assert ((means >= 0.1) & (means <= 0.9)).all()
    assert torch.equal(groups.reward_BG.flatten().bool(), groups.rollout.success)
    assert groups.kept == len(means) <= 8 and groups.played >= groups.kept


def test_frozen_parts_stay(tmp_path: Path) -> None:
    policy = run(tmp_path, Coin(), replace(CONFIG, freeze=("linear.bias",)))
    assert torch.equal(policy.linear.bias, torch.zeros(4)) and policy.linear.weight.abs().max() > 0.1
    with pytest.raises(UserError, match="leaves no part"):
        run(tmp_path / "other", Coin(), replace(CONFIG, freeze=("linear",)))
    with pytest.raises(UserError, match=r"grpo\.freeze names 'liner', with which no part .* begins: they are linear"):
        run(tmp_path / "another", Coin(), replace(CONFIG, freeze=("linear.bias", "liner")))


class Certain(Coin):
    """Always right: no group is informative."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[-50.0], [50.0], [0.0], [0.0]]))


def test_nothing_to_learn_is_no_error(tmp_path: Path) -> None:
    policy = Certain()
    before = policy.linear.weight.clone()
    groups = play_groups(Guess(), policy, STARTS, CONFIG, generator=torch.Generator(), temperature=1.0)
    assert groups.kept == 0 and groups.played == 16 and groups.success_rate == 1.0
    run(tmp_path, policy, CONFIG)
    assert torch.equal(policy.linear.weight, before)


def test_first_update_has_ratio_one_and_the_gradient_of_reinforce() -> None:
    """With log pi = log pi_old the loss' gradient is -mean(A * grad log pi), which autograd gives by itself."""
    policy = Coin()
    nn.init.normal_(policy.linear.weight, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    groups = play_groups(Guess(), policy, STARTS, CONFIG, generator=generator, temperature=1.0)
    lr = 1e-3
    optimizer = torch.optim.SGD(policy.parameters(), lr=lr)
    before = policy.linear.weight.detach().clone()
    config = GRPOConfig(lr=lr, warmup=0, minibatches=1, grad_clip=1e9)
    advantage_E = advantages(groups, config, torch.Generator())
    metrics = update(policy, optimizer, groups, advantage_E, config, torch.Generator())
    assert metrics["ratio_mean"] == pytest.approx(1.0) and metrics["clip_fraction"] == 0
    moved = (before - policy.linear.weight.detach()) / lr

    twin = Coin()
    twin.linear.load_state_dict({"weight": before, "bias": torch.zeros(4)})
    batch = groups.rollout
    seen = Observation({"front": batch.images["front"][:, 0]}, batch.state[:, 0], batch.instruction)
    log_prob = twin.log_prob(seen, batch.trace[:, 0], temperature=1.0)  # (E, K, 1)
    reward = groups.reward_BG
    advantage = ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)).flatten()
    mask = batch.mask[:, 0].float()  # (E, K)
    per_episode = (log_prob.squeeze(-1) * mask).sum(1) / mask.sum(1)
    (-(advantage * per_episode).mean()).backward()
    assert twin.linear.weight.grad is not None and twin.linear.weight.grad.abs().max() > 0.01
    torch.testing.assert_close(moved, twin.linear.weight.grad, rtol=1e-3, atol=1e-4)


def test_learning_rate_by_hand() -> None:
    """Warm-up over 4 of 3 x 2 x 2 steps, then a line down to the half."""
    cfg = GRPOConfig(lr=2.0, lr_end=0.5, warmup=4, iterations=3, epochs=2, minibatches=2)
    found = [learning_rate(cfg, step) for step in (1, 2, 4, 8, 12, 20)]
    assert found == [0.5, 1.0, 2.0, 1.5, 1.0, 1.0]
    assert [learning_rate(replace(cfg, lr_end=1.0, warmup=0), step) for step in (1, 7, 12)] == [2.0] * 3
    assert [learning_rate(replace(cfg, lr_end=0.0, warmup=0), step) for step in (3, 12)] == [1.5, 0.0]
    assert learning_rate(replace(cfg, warmup=100), 50) == 1.0  # practice may end before the warm-up does


def test_updates_follow_the_learning_rate() -> None:
    policy, generator = Coin(), torch.Generator().manual_seed(0)
    cfg = replace(CONFIG, iterations=4, warmup=3, epochs=2, lr_end=0.1)
    groups = play_groups(Guess(), policy, STARTS, cfg, generator=generator, temperature=1.0)
    optimizer, rates = torch.optim.SGD(policy.parameters(), lr=1.0), []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    for iteration in (0, 2):
        update(policy, optimizer, groups, advantages(groups, cfg, generator), cfg, generator, iteration)
    assert rates == [learning_rate(cfg, step) for step in (1, 2, 3, 4, 9, 10, 11, 12)]


def test_every_epoch_sees_every_episode_once_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, generator = Coin(), torch.Generator().manual_seed(0)
    cfg = replace(CONFIG, epochs=3, minibatches=2, micro_batch=1000, lr=1e-9)
    groups = play_groups(Guess(), policy, STARTS, cfg, generator=generator, temperature=1.0)
    seen: list[list[int]] = []
    real = grpo.policy_loss

    def loss(policy: Any, batch: Any, advantage_E: Tensor, rows: Tensor, *more: Any) -> Any:
        seen.append(rows.tolist())
        return real(policy, batch, advantage_E, rows, *more)

    monkeypatch.setattr(grpo, "policy_loss", loss)
    optimizer = torch.optim.SGD(policy.parameters())
    metrics = update(policy, optimizer, groups, advantages(groups, cfg, generator), cfg, generator)
    passes = [first + second for first, second in zip(seen[::2], seen[1::2], strict=True)]
    assert len(passes) == 3 and all(sorted(rows) == [*range(len(groups.rollout))] for rows in passes)
    assert passes[0] != passes[1] != passes[2]
    assert metrics["ratio_mean"] == pytest.approx(1.0)  # a mean over all steps


def test_more_epochs_learn_more_from_the_same_rollouts(tmp_path: Path) -> None:
    config = replace(CONFIG, iterations=2, lr=0.05, ema=0.0)
    once, thrice = (run(tmp_path / str(n), Coin(), replace(config, epochs=n)) for n in (1, 3))
    assert right(thrice) > right(once) + 0.02
    played = [read_metrics(tmp_path / str(n))["practice/groups_played"][0] for n in (1, 3)]
    assert played[0] == played[1]


def test_choices_of_a_batch_under_another_policy() -> None:
    policy, other, generator = Coin(), Coin(), torch.Generator().manual_seed(0)
    nn.init.normal_(other.linear.weight, generator=torch.Generator().manual_seed(1))
    groups = play_groups(Guess(), policy, STARTS, CONFIG, generator=generator, temperature=1.0)
    batch, device = groups.rollout, torch.device("cpu")
    torch.testing.assert_close(log_prob_under(policy, batch, CONFIG, device), batch.log_prob)
    under = log_prob_under(other, batch, replace(CONFIG, micro_batch=3), device)
    observation, trace, _ = batch.decisions(torch.arange(len(batch)))
    torch.testing.assert_close(under[:, 0], other.log_prob(observation, trace, temperature=1.0).detach())


def test_the_penalty_keeps_the_policy_near_its_beginning(tmp_path: Path) -> None:
    begin = Coin()
    with torch.no_grad():
        begin.linear.bias += torch.tensor([0.5, -0.5, 0.5, -0.5])
    free, held, bound = (
        run(tmp_path / str(kl), frozen_copy(begin), replace(CONFIG, kl_coef=kl)) for kl in (0.0, 0.2, 5.0)
    )

    def apart(policy: Any) -> float:
        log_probs, start = (who.log_probs(Guess().reset([0, 1])).detach() for who in (policy, begin))
        return float((log_probs.exp() * (log_probs - start)).sum(-1).mean())

    assert 0 < apart(bound) < 0.5 * apart(held) < 0.5 * apart(free)
    assert "practice/kl" not in read_metrics(tmp_path / "0.0")
    measured = [value for _, value in read_metrics(tmp_path / "0.2")["practice/kl"]]
    assert 0 < measured[1] < measured[-1] and "practice/distance" in read_metrics(tmp_path / "0.2")

    def kill(iteration: int, policy: Any) -> None:
        if iteration == 5:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run(tmp_path / "broken", frozen_copy(begin), replace(CONFIG, kl_coef=0.2), kill)
    resumed = run(tmp_path / "broken", frozen_copy(begin), replace(CONFIG, kl_coef=0.2))
    assert torch.equal(resumed.linear.weight, held.linear.weight)


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("micro_batch", [1, 7, 1000])
def test_the_size_of_micro_batches_changes_nothing_but_rounding(micro_batch: int, advantage: Any) -> None:
    """Episodes of different lengths, so that a mean over actions would be another than one over episodes."""
    policies, told = [], []
    for size in (32, micro_batch):
        policy = Coin()
        nn.init.normal_(policy.linear.weight, generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(0)
        config = replace(CONFIG, micro_batch=size, lr=0.1, advantage=advantage)
        groups = play_groups(Guess(), policy, STARTS, config, generator=generator, temperature=1.0)
        groups.rollout.mask[::3, :, 1:] = False
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        told.append(update(policy, optimizer, groups, advantages(groups, config, generator), config, generator))
        policies.append(policy.linear.weight.detach())
    assert len(groups.rollout) > 33
    torch.testing.assert_close(policies[0], policies[1], rtol=1e-5, atol=1e-6)
    for name in ("loss", "grad_norm", "clip_fraction"):
        assert told[1][name] == pytest.approx(told[0][name], rel=1e-4, abs=1e-6) and told[0]["grad_norm"] > 0.01


class Scripted:
    """Fixed log-probabilities; acts 0 everywhere."""

    chunk = 2

    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        B = len(observation)
        return Decision(torch.zeros(B, 2, 1), torch.zeros(B, 2, 1, dtype=torch.long), torch.full((B, 2, 1), -1.0))


class Late(Guess):
    """Row i succeeds at frame 2 + i of 6; done two frames later or at the horizon."""

    spec = EnvSpec({"front": (2, 2)}, 0, 1, 6, 1)

    def reset(self, initial_states: Sequence[int]) -> Observation:
        self.time = [0] * len(initial_states)
        return super().reset(initial_states)

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        frames = torch.zeros(len(rows), 2, 3, 2, 2, dtype=torch.uint8)
        success = torch.zeros(len(rows), 2, dtype=torch.bool)
        for place, row in enumerate(rows):
            for k in range(2):
                self.time[row] += 1
                frames[place, k] = self.time[row]
                success[place, k] = self.time[row] >= 2 + row
        done = torch.tensor([self.time[row] >= min(4 + row, 6) for row in rows])
        return Outcome({"front": frames}, torch.zeros(len(rows), 2, 0), success, done)


def test_masks_end_with_the_action_that_succeeds() -> None:
    played = rollout(
        Late(),
        Scripted(),
        [0, 1, 7],
        temperature=1.0,
        generator=torch.Generator(),
        record="x",  # type: ignore[arg-type]
    )
    assert played.finish_step.tolist() == [2, 3, 4]
    assert played.mask.flatten(1).int().tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert played.length.tolist() == [4, 6, 6]
    assert [episode.length for episode in played.episodes] == [4, 6, 6]
    assert [episode.finish_step for episode in played.episodes] == [2, 3, 4]
    assert played.episodes[2].images["front"][:, 0, 0, 0].tolist() == [255, 1, 2, 3, 4, 5, 6]
    _, _, index = played.decisions(torch.tensor([0, 2]))
    assert index.tolist() == [[0, 0], [1, 0], [1, 1]]  # only decisions with an action that counts


def test_a_frozen_copy_stays_and_shares_what_does_not_learn() -> None:
    policy = Coin()
    policy.linear.bias.requires_grad_(False)
    kept = frozen_copy(policy)
    with torch.no_grad():
        policy.linear.weight += 1
    assert kept.linear.weight.abs().max() == 0 and kept.linear.bias is policy.linear.bias


def test_a_result_is_not_reused_for_another_policy_or_dream(tmp_path: Path) -> None:
    def go(policy: Coin, config: GRPOConfig = CONFIG, dream: str = "aaaa", states: Sequence[int] = STARTS) -> None:
        with RunLog(tmp_path, quiet=True) as log:
            practise(
                Guess(), policy, states, config, seed=5, generator=torch.Generator(), folder=tmp_path,
                name="practice", log=log, depends={"world_model": dream},
            )  # fmt: skip

    config = replace(CONFIG, iterations=2)
    go(Coin(), config)
    go(Coin(), replace(config, micro_batch=3))  # changes nothing but rounding
    with pytest.raises(UserError, match=r"practice was trained with lr = 0.2, not 0.1"):
        go(Coin(), replace(config, lr=0.1))
    with pytest.raises(UserError, match="world_model = aaaa, not bbbb"):
        go(Coin(), config, "bbbb")
    with pytest.raises(UserError, match=r"initial_states = \w{16}, not"):
        go(Coin(), config, states=STARTS[1:])
    with pytest.raises(UserError, match=r"policy = \w{16}, not \w{16}"):
        go(Certain(), config)


def test_without_a_group_to_learn_from_no_finish_step_is_logged() -> None:
    none = replace(CONFIG, min_group_success=0.98, max_group_success=0.99, max_resamples=0)
    generator = torch.Generator().manual_seed(1)
    for config in (none, CONFIG):
        metrics = play_groups(Guess(), Coin(), STARTS, config, generator=generator, temperature=1.0).metrics()
        assert ("finish_step" in metrics) == (metrics["groups_kept"] > 0) == (config is CONFIG)
