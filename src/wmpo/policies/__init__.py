"""Policies. Anything that fits `wmpo.protocols.Policy` plugs in; those named here can be opened from a folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from wmpo.errors import UserError, named
from wmpo.training.checkpoint import CONFIG
from wmpo.training.files import read_json

FAMILIES: dict[str, str] = {  # `family` in a policy's config.json -> "module:class"
    "minivla": "wmpo.policies.minivla:MiniVLA",
    "openvla_oft": "wmpo.policies.openvla_oft:OpenVLAOFT",
}


def open_policy(folder: Path) -> Any:
    """The policy that `save_pretrained` wrote to `folder`, of whatever family; without one it is a MiniVLA."""
    described = read_json(Path(folder) / CONFIG)
    if not isinstance(described, dict) or "model_type" in described:  # transformers' mark
        raise UserError(
            f"{folder} is another project's checkpoint: make a policy of it first, see docs/openvla_oft.md."
        )
    family = described.get("family", "minivla")
    module, _, name = named("policy family", str(family), FAMILIES).partition(":")
    return getattr(importlib.import_module(module), name).from_pretrained(folder)
