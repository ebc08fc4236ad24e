"""Policies. Anything that fits `wmpo.protocols.Policy` plugs in: families named here, and those that installed packages
name as entry points of the group wmpo.policies (docs/own_policy.md)."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from wmpo.config import PolicyConfig
from wmpo.errors import UserError, named
from wmpo.io.files import read_json
from wmpo.training.checkpoint import CONFIG, check_fits
from wmpo.types import EnvSpec

FAMILIES: dict[str, str] = {
    "minivla": "wmpo.policies.minivla:MiniVLA",
    "openvla": "wmpo.policies.openvla_oft:OpenVLAOFT",
    "openvla_oft": "wmpo.policies.openvla_oft:OpenVLAOFT",
    "pi0": "wmpo.policies.flow_vla:FlowVLA",
    "smolvla": "wmpo.policies.flow_vla:FlowVLA",
}
"""Family, or what config.json of a published checkpoint calls it -> "module:Class" with `from_pretrained(folder)`."""

FAR, OFTEN, NARROW = 0.5, 0.25, 0.1


def family_of(folder: Path) -> str:
    """What the config.json of a folder says; LeRobot and transformers call it type and model_type."""
    described = read_json(Path(folder) / CONFIG)
    if not isinstance(described, dict):
        raise UserError(f"{Path(folder) / CONFIG} describes no policy: it holds no JSON object.")
    return str(described.get("family") or described.get("type") or described.get("model_type") or "minivla")


def class_of(family: str) -> Any:
    """The class of a family. What a checkpoint says is only looked up: it can't have anything imported."""
    plugged = {entry.name: entry.value for entry in entry_points(group="wmpo.policies")}
    module, _, name = named("policy family", family, {**plugged, **FAMILIES}).partition(":")
    return getattr(import_module(module), name)


def load_policy(folder: Path) -> Any:
    """The policy that a folder holds, of any family, ready to act."""
    return class_of(family_of(folder)).from_pretrained(Path(folder))


def build_policy(config: PolicyConfig, spec: EnvSpec) -> Any:
    """The policy that a run begins with: that of `config.pretrained`, or one of `config.family` from scratch."""
    if config.pretrained:
        policy = load_policy(Path(config.pretrained))
        if hasattr(policy, "prepare"):
            policy.prepare(config)
        check_fits(policy.config, spec, config.pretrained)
        if policy.chunk != config.chunk:
            raise UserError(
                f"{config.pretrained} decides {policy.chunk} actions at once, but policy.chunk is {config.chunk}."
            )
        return policy
    family = class_of(config.family)
    if not hasattr(family, "build"):
        raise UserError(
            f"A {config.family} can't be built from scratch: name a folder to begin from, policy.pretrained."
        )
    return family.build(config, spec)


def check_actions(policy: Any, action_ND: np.ndarray, where: str | Path, data: str | Path) -> None:
    """Complain where `policy` (from `where`) has the action statistics of another robot or other units than `data`.

    In some dimension, more than the share OFTEN of the actions lies outside its `action_range()` by more than FAR times
    the width of that range, or times NARROW where it is narrower. Of the data that a range was taken from, 2 % lie
    outside quantiles of 1 % and 99 % at all, and at most a 36th that far outside of mean +- 3 standard deviations.
    A policy without `action_range` is not checked.
    """
    if not hasattr(policy, "action_range"):
        return
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
