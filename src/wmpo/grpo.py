"""GRPO on any environment: a dream, or the real one.

Per iteration: draw initial states, play a group of G rollouts from each with the current policy, drop groups that
all fail or all succeed (and refill the batch), then a few clipped updates. Practice ends early where the policy has
gone too far from where it began: a dream is right about what that policy did, and flatters what is new to it. What it
hands on is a running mean of the iterations' policies, each of which is a noisy one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from wmpo.config import GRPOConfig
from wmpo.errors import UserError
from wmpo.losses.grpo import clipped_policy_loss, group_advantage, informative, shuffle_within_groups
from wmpo.protocols import Env, Policy
from wmpo.rollout import Rollout, rollout
from wmpo.training.checkpoint import (
    load_optimizer,
    load_tensors,
    load_weights,
    optimizer_tensors,
    save_tensors,
    with_prefix,
    without_prefix,
)
from wmpo.training.fit import step_seed, stop_requests
from wmpo.training.log import RunLog
from wmpo.training.parallel import accumulate_gradients


@dataclass(frozen=True)
class Groups:
    """Informative groups of one iteration: rollouts of equal start lie side by side, G in a row."""

    rollout: Rollout  # B*G episodes
    reward_BG: torch.Tensor  # noqa: N815
    success_rate: float  # over all groups played, informative or not
    played: int
    kept: int


def play_groups(
    env: Env,
    policy: Policy,
    initial_states: Sequence[int],
    cfg: GRPOConfig,
    *,
    generator: torch.Generator,
    temperature: float,
) -> Groups:
    """Play groups until `cfg.groups` of them are informative, or refills are used up. Raises nothing if none is."""
    G = cfg.group_size
    parts: list[Rollout] = []
    rewards: list[torch.Tensor] = []
    played, successes, kept = 0, 0.0, 0
    for _ in range(1 + cfg.max_resamples):
        drawn = torch.randint(len(initial_states), (cfg.groups,), generator=generator, device=generator.device).tolist()
        batch = [initial_states[i] for i in drawn for _ in range(G)]
        played_now = rollout(env, policy, batch, temperature=temperature, generator=generator)
        reward_BG = played_now.success.float().view(-1, G)
        played += len(reward_BG)
        successes += float(reward_BG.sum())
        keep = (
            informative(reward_BG, cfg.min_group_success, cfg.max_group_success)
            .nonzero()
            .squeeze(1)[: cfg.groups - kept]
        )
        if len(keep):
            rows = (keep[:, None] * G + torch.arange(G)).flatten()
            parts.append(played_now.select(rows))
            rewards.append(reward_BG[keep])
            kept += len(keep)
        if kept == cfg.groups:
            break
    if not parts:  # nothing to learn from this time: an empty batch
        parts, rewards = [played_now.select(torch.zeros(0, dtype=torch.long))], [reward_BG[:0]]
    return Groups(Rollout.cat(parts), torch.cat(rewards), successes / (played * G), played, kept)


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    groups: Groups,
    cfg: GRPOConfig,
    generator: torch.Generator,
    taken: int = 0,
) -> dict[str, float]:
    """One pass over the batch in `cfg.minibatches` clipped steps. Returns the mean of each metric over the steps.

    `taken` optimiser steps have been taken before, which places this call in the warm-up.
    """
    batch = groups.rollout
    reward_BG = groups.reward_BG
    if cfg.shuffle_rewards:
        reward_BG = shuffle_within_groups(reward_BG, generator)
    advantage_E = group_advantage(reward_BG, cfg.advantage).flatten()
    device = next(policy.parameters()).device
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def gradient(rows: Tensor) -> tuple[Sequence[Tensor | None], dict[str, float]]:
        observation, trace, index = batch.decisions(rows)
        old, mask = batch.log_prob[rows].to(device), batch.mask[rows].to(device)
        new = policy.log_prob(observation.to(device), trace.to(device), temperature=cfg.temperature)
        full = old.clone().index_put(tuple(index.to(device).T), new)
        loss, metrics = clipped_policy_loss(
            full, old, advantage_E[rows].to(device), mask, cfg.clip_low, cfg.clip_high, cfg.ratio,
            per_episode=cfg.advantage != "dr_grpo",
        )  # fmt: skip
        return torch.autograd.grad(loss, parameters, allow_unused=True), {**metrics, "loss": float(loss.detach())}

    sums: dict[str, float] = {}
    order = torch.randperm(len(batch), generator=generator, device=generator.device).cpu()
    steps = 0
    for rows in order.chunk(cfg.minibatches):
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * min(1.0, (taken + steps + 1) / max(cfg.warmup, 1))
        parts = rows.split(cfg.micro_batch)
        weights = [len(part) / len(rows) for part in parts]
        told = accumulate_gradients(parameters, gradient, weights, parts)
        norm = nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        optimizer.step()
        steps += 1
        sums["grad_norm"] = sums.get("grad_norm", 0.0) + float(norm)
        for weight, metrics in zip(weights, told, strict=True):
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + weight * value
    return {name: value / max(steps, 1) for name, value in sums.items()}


@torch.no_grad()
def distance(start: Policy, groups: Groups, cfg: GRPOConfig) -> float:
    """KL(policy || start) in nats per chunk, estimated on the policy's own choices in the informative groups."""
    batch, device = groups.rollout, next(start.parameters()).device
    found = []
    for rows in torch.arange(len(batch)).split(cfg.micro_batch):
        observation, trace, index = batch.decisions(rows)
        before = start.log_prob(observation.to(device), trace.to(device), temperature=cfg.temperature)
        now = batch.log_prob[rows][tuple(index.T)].to(device)
        found.append((now - before).flatten(1).sum(1))
    return float(torch.cat(found).mean())


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
) -> Policy:
    """Improve `policy` in `env` by GRPO, in place; in the end its weights are the mean over the last iterations.

    `generator` is reseeded each iteration, so that a resumed run equals an uninterrupted one; an `env` that draws
    random numbers must draw them from the same generator. `callback(iteration, policy)` is called after each iteration,
    to measure the policy that practises. Checkpoints: `folder/name`.
    """
    place = Path(folder) / name
    finished, checkpoint = place / "model.safetensors", place / "checkpoint.safetensors"
    if finished.exists():
        load_weights(policy, load_tensors(finished)[0], finished)
        return policy
    start = frozen_copy(policy) if cfg.target_kl else None
    parameters = trained_parameters(policy, cfg.freeze)
    optimizer = torch.optim.AdamW(parameters, lr=cfg.lr, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0, fused=True)
    average = [parameter.detach().clone() for parameter in parameters] if cfg.ema else []
    begin = 0
    if checkpoint.exists():
        tensors, facts = load_tensors(checkpoint)
        load_weights(policy, without_prefix("policy", tensors), checkpoint)
        load_optimizer(optimizer, without_prefix("optimizer", tensors), checkpoint)
        average = [tensors[f"average.{i}"].to(own) for i, own in enumerate(average)]
        begin = int(facts["iteration"])
    policy.eval()
    with log.progress(name, cfg.iterations) as bar, stop_requests() as stop:
        bar.skip(begin)
        for iteration in range(begin, cfg.iterations):
            clock = time.monotonic()
            generator.manual_seed(step_seed(seed, iteration))
            groups = play_groups(env, policy, initial_states, cfg, generator=generator, temperature=cfg.temperature)
            imagined = time.monotonic()
            far = {} if start is None or not groups.kept else {"distance": distance(start, groups, cfg)}
            if far and far["distance"] > cfg.target_kl:
                nats = far["distance"]
                log.info(f"{name}: ends after {iteration} iterations, {nats:.2f} nats per chunk away from its start")
                break
            taken = iteration * cfg.minibatches
            metrics = update(policy, optimizer, groups, cfg, generator, taken) if groups.kept else {}
            if average:
                # at first a plain mean, else the policy before practice would weigh for 1 / (1 - ema) iterations
                torch._foreach_lerp_(average, [p.detach() for p in parameters], max(1 - cfg.ema, 1 / (iteration + 1)))
            metrics |= far | {
                "success": groups.success_rate,
                "groups_played": groups.played,
                "groups_kept": groups.kept,
                "finish_step": float(groups.rollout.finish_step.float().mean()) if groups.kept else 0.0,
                "seconds_playing": imagined - clock,
                "seconds_updating": time.monotonic() - imagined,
            }
            log.scalars(iteration + 1, {f"{name}/{key}": value for key, value in metrics.items()})
            bar.update(1, f"success {groups.success_rate:.0%}")
            if callback is not None:
                callback(iteration + 1, policy)
            tensors = {
                **with_prefix("policy", policy.state_dict()),
                **with_prefix("optimizer", optimizer_tensors(optimizer)),
                **{f"average.{i}": tensor for i, tensor in enumerate(average)},
            }
            save_tensors(checkpoint, tensors, {"iteration": iteration + 1})
            if stop.is_set() and iteration + 1 < cfg.iterations:
                raise KeyboardInterrupt(f"{name}: stopped after iteration {iteration + 1}")
    if average:
        with torch.no_grad():
            torch._foreach_copy_([*parameters], average)
    save_tensors(finished, policy.state_dict())
    checkpoint.unlink(missing_ok=True)
    return policy


def trained_parameters(policy: Policy, freeze: Sequence[str]) -> list[nn.Parameter]:
    """What practice changes. Raises UserError where nothing is left."""
    named = [(name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad]
    kept = [parameter for name, parameter in named if not name.startswith(tuple(freeze))]
    if not kept:
        raise UserError(f"grpo.freeze ({', '.join(freeze)}) leaves no part of the policy to practise: freeze less.")
    return kept


def frozen_copy(policy: Policy) -> Policy:
    """The same policy, to keep while the original goes on learning; they share what doesn't learn."""
    shared = {id(parameter): parameter for parameter in policy.parameters() if not parameter.requires_grad}
    return copy.deepcopy(policy, shared).eval()
