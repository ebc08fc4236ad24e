"""GRPO on any environment: a dream, or the real one.

Per iteration: draw initial states, play a group of G rollouts from each with the current policy, drop groups that
all fail or all succeed (and draw others in their place), then a few clipped updates. Practice ends early where the
policy has gone too far from where it began: a dream is right about what that policy did, and flatters what is new to
it. Its result is a running mean of the iterations' policies, each of which is a noisy one.

Ranks share what is heavy, the shards of the groups and the episodes of a mini-batch; all else, every rank does alike.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from wmpo.batches import to_device
from wmpo.config import GRPOConfig
from wmpo.data.clips import ImitationBatch
from wmpo.errors import UserError
from wmpo.imagination import ImaginedEnv
from wmpo.io.plain import numbers_of
from wmpo.losses.grpo import clipped_policy_loss, group_advantage, informative, kl_penalty, shuffle_within_groups
from wmpo.protocols import Env, Policy
from wmpo.rollout import Rollout, rollout
from wmpo.training import actors, ranks
from wmpo.training.checkpoint import (
    digest_of,
    digest_of_numbers,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    with_prefix,
    without_prefix,
)
from wmpo.training.fit import step_seed
from wmpo.training.log import RunLog
from wmpo.training.parallel import accumulate_gradients
from wmpo.training.resume import Checkpoints
from wmpo.training.signals import stop_requests


@dataclass(frozen=True)
class Groups:
    """Informative groups of one iteration: the G rollouts from one initial state are neighbours."""

    rollout: Rollout  # B*G episodes
    reward_BG: torch.Tensor  # noqa: N815
    success_rate: float  # over all groups played, informative or not
    played: int
    kept: int

    def metrics(self) -> dict[str, float]:
        return {
            "success": self.success_rate,
            "groups_played": self.played,
            "groups_kept": self.kept,
            **({"finish_step": float(self.rollout.finish_step.float().mean())} if self.kept else {}),
        }


def play_groups(
    env: Env,
    policy: Policy,
    initial_states: Sequence[int],
    cfg: GRPOConfig,
    *,
    generator: torch.Generator,
    temperature: float,
) -> Groups:
    """Play groups until `cfg.groups` are informative, at most `1 + cfg.max_resamples` batches; none may be."""
    found: list[Shard] = []
    kept = 0
    for _ in range(1 + cfg.max_resamples):
        drawn = torch.randint(len(initial_states), (cfg.groups,), generator=generator, device=generator.device).tolist()
        shards = play_shards(env, policy, [initial_states[i] for i in drawn], cfg, generator, temperature)
        found += (shard for some in ranks.gather(shards) for shard in some)
        kept = min(sum(len(shard.kept) for shard in found) // cfg.group_size, cfg.groups)
        if kept == cfg.groups:
            break
    played, rows = sum(shard.groups for shard in found), torch.arange(kept * cfg.group_size)
    batch = Rollout.cat([shard.kept for shard in found]).select(rows)
    rate = sum(shard.successes for shard in found) / (played * cfg.group_size)
    return Groups(batch, batch.success.float().view(-1, cfg.group_size), rate, played, kept)


@dataclass(frozen=True)
class Shard:
    """Some of the groups of an iteration."""

    groups: int
    successes: int
    kept: Rollout  # of the informative groups


def play_shards(
    env: Env,
    policy: Policy,
    initial_states: Sequence[int],
    cfg: GRPOConfig,
    generator: torch.Generator,
    temperature: float,
) -> list[Shard]:
    """Play this rank's shards of the groups that begin at `initial_states`, one of each.

    With more shards than one, each has random numbers of its own: who plays it, actors even, changes nothing. All
    ranks' generators then are where that of one process would be."""
    count = min(cfg.shards, len(initial_states))
    bounds = [len(initial_states) * place // count for place in range(count + 1)]
    states = [initial_states[begin:end] for begin, end in pairwise(bounds)]
    seeds: list[int | None] = [None]
    if count > 1:
        seeds = torch.randint(2**31, (count + 1,), generator=generator, device=generator.device).tolist()
    pieces = [(states[place], cfg, temperature, seeds[place]) for place in ranks.share(count)]
    if count > 1 and actors.count() and isinstance(env, ImaginedEnv):
        shards = actors.deal_lent(play_shard, (env, policy, generator), policy, pieces)
    else:
        shards = [play_shard(env, policy, generator, *piece) for piece in pieces]
    if seeds[-1] is None:  # the last rank has played all, and it alone has drawn
        generator.set_state(ranks.gather(generator.get_state())[-1])
    else:
        generator.manual_seed(seeds[-1])
    return shards


def play_shard(
    env: Env, policy: Policy, generator: torch.Generator,
    initial_states: Sequence[int], cfg: GRPOConfig, temperature: float, seed: int | None = None,
) -> Shard:  # fmt: skip
    """One group from each of `initial_states`."""
    if seed is not None:
        generator.manual_seed(seed)
    G = cfg.group_size
    again = [state for state in initial_states for _ in range(G)]
    played = rollout(env, policy, again, temperature=temperature, generator=generator)
    reward_BG = played.success.float().view(-1, G)
    keep = informative(reward_BG, cfg.min_group_success, cfg.max_group_success).nonzero()  # (groups, 1)
    return Shard(len(reward_BG), int(reward_BG.sum()), played.select((keep * G + torch.arange(G)).flatten()))


def advantages(groups: Groups, cfg: GRPOConfig, generator: torch.Generator) -> Tensor:
    """(E,) how much better each rollout did than the others of its group."""
    reward_BG = groups.reward_BG
    if cfg.shuffle_rewards:
        reward_BG = shuffle_within_groups(reward_BG, generator)
    return group_advantage(reward_BG, cfg.advantage).flatten()


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    groups: Groups,
    advantage_E: Tensor,
    cfg: GRPOConfig,
    generator: torch.Generator,
    iteration: int = 0,
    reference: Policy | None = None,
    shown: Callable[[int], ImitationBatch] | None = None,
) -> dict[str, float]:
    """`cfg.epochs` passes over the batch, each in `cfg.minibatches` clipped steps. Returns the mean of each metric over
    the steps.

    `iteration`, counted from 0, says how far practice is, for the learning rate; `reference` is the policy that
    `cfg.kl_coef` holds this one to; `shown(step)` is what `cfg.imitation_coef` has it imitate beside.
    """
    if not groups.kept:
        return {}
    device = next(policy.parameters()).device
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    before = log_prob_under(reference, groups.rollout, cfg, device) if reference is not None and cfg.kl_coef else None

    def gradient(rows: Tensor) -> tuple[Sequence[Tensor | None], dict[str, Tensor]]:
        loss, metrics = policy_loss(policy, groups.rollout, advantage_E, rows, cfg, device, before)
        values = {name: torch.tensor(value) for name, value in {**metrics, "loss": float(loss.detach())}.items()}
        return torch.autograd.grad(loss, parameters, allow_unused=True), values

    sums: dict[str, float] = {}
    minibatches: list[Tensor] = []
    for _ in range(cfg.epochs):
        order = torch.randperm(len(groups.rollout), generator=generator, device=generator.device).cpu()
        minibatches += order.chunk(cfg.minibatches)
    taken = iteration * cfg.epochs * cfg.minibatches
    for step, rows in enumerate(minibatches, start=taken + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg, step)
        parts = rows.split(min(cfg.micro_batch, -(-len(rows) // ranks.world())))  # one for each rank, or more
        weights = [len(part) / len(rows) for part in parts]
        metrics = accumulate_gradients(parameters, gradient, weights, parts)
        if shown is not None and cfg.imitation_coef:
            metrics["imitation_loss"] = add_imitation(policy, parameters, shown(step), cfg.imitation_coef, generator)
        metrics["grad_norm"] = nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        optimizer.step()
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return {name: value / len(minibatches) for name, value in sums.items()}


def add_imitation(
    policy: Policy, parameters: Sequence[nn.Parameter], batch: ImitationBatch, coef: float, generator: torch.Generator
) -> Tensor:
    """Add the gradient of `coef` times the imitation loss of real frames; returns that loss. All ranks
    compute it alike."""
    loss, _ = policy(to_device(batch, parameters[0].device), generator)
    grads = torch.autograd.grad(coef * loss, parameters, allow_unused=True)
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is not None:
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
    return loss.detach()


def learning_rate(cfg: GRPOConfig, step: int) -> float:
    """At an optimiser step, counted from 1: linear warm-up, then a line that ends at `lr_end` with the iterations."""
    if step <= cfg.warmup:
        return cfg.lr * step / cfg.warmup
    left = 1 - (step - cfg.warmup) / max(cfg.iterations * cfg.epochs * cfg.minibatches - cfg.warmup, 1)
    return cfg.lr * (cfg.lr_end + (1 - cfg.lr_end) * max(left, 0.0))


def policy_loss(
    policy: Policy,
    batch: Rollout,
    advantage_E: Tensor,
    rows: Tensor,
    cfg: GRPOConfig,
    device: torch.device,
    reference_EMKU: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The clipped loss, and its metrics, of some episodes of a batch; with log-probabilities of a reference policy, the
    penalty on the distance from it is part of the loss."""
    observation, trace, index = batch.decisions(rows)
    old, mask = batch.log_prob[rows].to(device), batch.mask[rows].to(device)
    new = policy.log_prob(observation.to(device), trace.to(device), temperature=cfg.temperature)
    full = old.clone().index_put(tuple(index.to(device).T), new)
    loss, metrics = clipped_policy_loss(
        full, old, advantage_E[rows].to(device), mask, cfg.clip_low, cfg.clip_high, cfg.ratio,
        per_episode=cfg.advantage != "dr_grpo",
    )  # fmt: skip
    if reference_EMKU is not None:
        penalty = kl_penalty(full, reference_EMKU[rows].to(device), mask)
        loss, metrics["kl"] = loss + cfg.kl_coef * penalty, float(penalty.detach())
    return loss, metrics


@torch.no_grad()
def log_prob_under(reference: Policy, batch: Rollout, cfg: GRPOConfig, device: torch.device) -> Tensor:
    """(E, M, K, U): how likely another policy makes the choices of a batch."""
    found = batch.log_prob.clone().to(device)
    for rows in torch.arange(len(batch)).split(cfg.micro_batch):
        observation, trace, index = batch.decisions(rows)
        chosen = reference.log_prob(observation.to(device), trace.to(device), temperature=cfg.temperature)
        found[rows[index[:, 0]].to(device), index[:, 1].to(device)] = chosen
    return found


def distance(begin: Policy, batch: Rollout, cfg: GRPOConfig) -> float:
    """KL(policy || begin) in nats per chunk, estimated on the policy's own choices, sampled at `cfg.temperature`."""
    device = next(begin.parameters()).device
    apart = batch.log_prob.to(device) - log_prob_under(begin, batch, cfg, device)
    return float(apart.flatten(2).sum(2)[batch.mask.any(-1).to(device)].mean())


def practise(
    env: Env,
    policy: Policy,
    initial_states: Sequence[int],
    cfg: GRPOConfig,
    *,
    seed: int,
    generator: torch.Generator,
    folder: Path,
    name: str,
    log: RunLog,
    callback: Callable[[int, Policy], None] | None = None,
    depends: Mapping[str, object] | None = None,
    shown: Callable[[int], ImitationBatch] | None = None,
) -> Policy:
    """Improve `policy` in `env` by GRPO, in place; in the end its weights are the mean over the last iterations.

    `generator` is reseeded each iteration, so that a resumed run equals an uninterrupted one; an `env` that draws
    random numbers must draw them from the same generator. `callback(iteration, policy)` is called after each iteration,
    to measure the policy that practises. Files go to `folder/name`, see `Checkpoints`; `depends` names what else the
    result follows from, such as digests of a dream: settings, seed, initial states and the policy are among it anyway.
    """
    ranks.same(policy.state_dict().values())
    learner, files = Learner(policy, cfg), checkpoints(Path(folder) / name, policy, initial_states, cfg, seed, depends)
    if files.load_result(policy):
        return policy
    begin = frozen_copy(policy) if cfg.target_kl or cfg.kl_coef else None
    done = learner.resume(files)
    policy.eval()
    if (parts := min(cfg.shards, cfg.groups)) < max(ranks.world(), actors.count()):
        log.info(f"{name}: groups are played in {parts} shards, by as many of the processes: see grpo.shards")
    with log.progress(name, cfg.iterations) as bar, stop_requests() as stop:
        bar.skip(done)
        for iteration in range(done, cfg.iterations):
            clock = time.monotonic()
            generator.manual_seed(step_seed(seed, iteration))
            groups = play_groups(env, policy, initial_states, cfg, generator=generator, temperature=cfg.temperature)
            played = time.monotonic()
            far = distance(begin, groups.rollout, cfg) if begin is not None and groups.kept else None
            if far is not None and 0 < cfg.target_kl < far:
                log.info(f"{name}: ends after {iteration} iterations, {far:.2f} nats per chunk away from its beginning")
                break
            advantage_E = advantages(groups, cfg, generator)
            metrics = update(policy, learner.optimizer, groups, advantage_E, cfg, generator, iteration, begin, shown)
            learner.move_average(iteration)
            metrics |= {"seconds_playing": played - clock, "seconds_updating": time.monotonic() - played}
            metrics |= groups.metrics() | ({} if far is None else {"distance": far})
            log.scalars(iteration + 1, {f"{name}/{key}": value for key, value in metrics.items()})
            bar.update(1, f"success {groups.success_rate:.0%}")
            if callback is not None:
                callback(iteration + 1, policy)
            stopping, due = ranks.agree(stop.is_set(), files.is_due())
            if stopping or due:
                files.save(iteration + 1, learner.tensors())
            if stopping and iteration + 1 < cfg.iterations:
                raise KeyboardInterrupt(f"{name}: stopped after iteration {iteration + 1}")
    learner.take_average()
    files.finish(policy, cfg.iterations)
    return policy


def checkpoints(
    folder: Path,
    policy: Policy,
    initial_states: Sequence[int],
    cfg: GRPOConfig,
    seed: int,
    depends: Mapping[str, object] | None,
) -> Checkpoints:
    """The files of practice that begins with this policy."""
    inputs = {"policy": digest_of(policy), "initial_states": digest_of_numbers(initial_states), **(depends or {})}
    return Checkpoints(folder, {**numbers_of(cfg), "seed": seed, **inputs})


class Learner:
    """All that practice changes: the policy, the optimiser's state, the running mean of policies."""

    def __init__(self, policy: Policy, cfg: GRPOConfig) -> None:
        self.policy, self.ema = policy, cfg.ema
        self.parameters = trained_parameters(policy, cfg.freeze)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=cfg.lr, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0, fused=True
        )
        self.average = [parameter.detach().clone() for parameter in self.parameters] if cfg.ema else []

    def move_average(self, iteration: int) -> None:
        if self.average:
            # at first a plain mean, else the policy before practice would weigh for 1 / (1 - ema) iterations
            weight = max(1 - self.ema, 1 / (iteration + 1))
            torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], weight)

    @torch.no_grad()
    def take_average(self) -> None:
        if self.average:
            torch._foreach_copy_([*self.parameters], self.average)

    def tensors(self) -> dict[str, Tensor]:
        return {
            **with_prefix("policy", self.policy.state_dict()),
            **with_prefix("optimizer", optimizer_tensors(self.optimizer)),
            **{f"average.{i}": tensor for i, tensor in enumerate(self.average)},
        }

    def resume(self, files: Checkpoints) -> int:
        """Go on from the checkpoint, where there is one; how many iterations it has seen."""
        tensors, done = files.load()
        if done:
            load_weights(self.policy, without_prefix("policy", tensors), files.checkpoint)
            load_optimizer(self.optimizer, without_prefix("optimizer", tensors), files.checkpoint)
            self.average = [tensors[f"average.{i}"].to(own) for i, own in enumerate(self.average)]
        return done


def trained_parameters(policy: Policy, freeze: Sequence[str]) -> list[nn.Parameter]:
    """What practice changes. Raises UserError where nothing is left, and for a name that no parameter begins with."""
    names = [name for name, _ in policy.named_parameters()]
    for part in freeze:
        if not any(name.startswith(part) for name in names):
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise UserError(f"grpo.freeze names {part!r}, with which no part of the policy begins: they are {parts}.")
    named = [(name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad]
    kept = [parameter for name, parameter in named if not name.startswith(tuple(freeze))]
    if not kept:
        raise UserError(f"grpo.freeze ({', '.join(freeze)}) leaves no part of the policy to practise: freeze less.")
    return kept


def frozen_copy(policy: Policy) -> Policy:
    """The same policy, to keep while the original goes on learning; they share what doesn't learn."""
    shared = {id(parameter): parameter for parameter in policy.parameters() if not parameter.requires_grad}
    return copy.deepcopy(policy, shared).eval()
