"""Policies. Anything that fits `wmpo.protocols.Policy` plugs in: families named here, and those that installed packages
name as entry points of the group wmpo.policies (docs/own_policy.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from wmpo.config import PolicyConfig
from wmpo.errors import UserError
from wmpo.families import build, check_rate, family_class, saved_family
from wmpo.protocols import HasActionRange, Policy, TakesSettings, Widens
from wmpo.training.checkpoint import check_fits, opening
from wmpo.types import EnvSpec

FAR, OFTEN, NARROW = 0.5, 0.25, 0.1


def load_policy(folder: Path) -> Policy:
    """The policy that a folder holds, of any family, ready to act. Raises UserError where it holds none."""
    family = saved_family("policy", folder, "minivla")
    with opening(folder):
        policy: Policy = family_class("policy", family).from_pretrained(Path(folder))
    return policy


def build_policy(config: PolicyConfig, spec: EnvSpec) -> Policy:
    """The policy that a run begins with: that of `config.pretrained`, or one of `config.family` from scratch."""
    if config.pretrained:
        policy = load_policy(Path(config.pretrained))
        if isinstance(policy, TakesSettings):
            policy.prepare(config)
        check_fits(policy, spec, config.pretrained)
        check_rate(Path(config.pretrained), spec.fps)
        if policy.chunk != config.chunk:
            raise UserError(
                f"{config.pretrained} decides {policy.chunk} actions at once, but policy.chunk is {config.chunk}."
            )
        return policy
    built: Policy = build("policy", config, spec)
    return built


def match_actions(policy: Policy, action_ND: np.ndarray, where: str | Path, data: str | Path) -> None:
    """Let `policy` (from `where`) reach all actions of `data`, where it can; complain where these are of another robot
    or in other units than its statistics.

    In some dimension, more than the share OFTEN of the actions lies outside its `action_range()` by more than FAR times
    the width of that range, or times NARROW where it is narrower. Of the data that a range was taken from, 2 % lie
    outside quantiles of 1 % and 99 % at all, and at most a 36th that far outside of mean +- 3 standard deviations.
    A policy without `action_range` is not checked.
    """
    if isinstance(policy, HasActionRange):
        _check_range(policy, action_ND, where, data)
    if isinstance(policy, Widens):
        policy.widen(torch.from_numpy(action_ND))


def _check_range(policy: HasActionRange, action_ND: np.ndarray, where: str | Path, data: str | Path) -> None:
    low_D, high_D = (bound.cpu().numpy() for bound in policy.action_range())
    slack_D = FAR * np.maximum(high_D - low_D, NARROW)
    share_D = ((action_ND < low_D - slack_D) | (action_ND > high_D + slack_D)).mean(0)
    worst = int(share_D.argmax())
    if share_D[worst] > OFTEN:
        raise UserError(
            f"{where} has other action statistics than the data's: it acts within {low_D[worst]:.3g} and "
            f"{high_D[worst]:.3g} in dimension {worst}, but {share_D[worst]:.0%} of the actions in {data} lie far "
            "outside; give a policy and data of one robot, in the same units."
        )
