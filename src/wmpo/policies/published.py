"""Policies in the folders in which others publish them: weights as safetensors, never pickles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from wmpo.data.normalizer import SAME, Normalizer
from wmpo.errors import UserError, optional
from wmpo.policies.adapters import ADAPTER, Adapter, base_of
from wmpo.training.checkpoint import load_tensors

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FARTHEST = 20.0  # standard deviations: what makes up 1/400 of the data or more lies within (Chebyshev)


Prefix = Any
"""What a network computes once per decision; opaque to everybody else."""


class FlowNetwork(Protocol):
    """What `FlowVLA` asks of a network. Time runs from data, 0, to noise, 1."""

    begin: tuple[int, ...]
    """Tokens before every sentence."""
    state_width: int
    action_width: int
    width: int
    """Of the features that `velocity` gives."""

    def pixels(self, image_BCHW: Tensor) -> Tensor:
        """uint8 pictures of any size to what `prefix` takes: (B, 3, size, size) in [-1, 1]."""
        ...

    def prefix(self, images_BVCHW: Tensor, tokens_BL: Tensor, mask_BL: Tensor, state: Tensor) -> Prefix:
        """Of V pictures in [-1, 1], words and padded states (B, state_width)."""
        ...

    def velocity(self, prefix: Prefix, x: Tensor, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """(velocity (B, K, action_width), features (B, K, width)) at noisy actions x."""
        ...


@dataclass(frozen=True)
class Published:
    """What a published folder says about a policy."""

    network: Literal["pi0", "smolvla"]
    settings: dict[str, object]
    features: tuple[str, ...]
    """Its own names of its cameras, in the order of the network; () where it has none."""
    cameras: tuple[str, ...]
    """What these are called where it acts."""
    chunk: int
    steps: int
    """Of denoising."""
    tensors: Mapping[str, Tensor]
    normalizer: Normalizer
    tokenizer: Path


@dataclass(frozen=True)
class Republished:
    """What changes in a published folder when a policy that began there goes back to it."""

    weights: Mapping[str, Tensor]
    """Name there -> tensor; what isn't named stays, as far as it is used by nobody here."""
    frozen: str = ""
    """How the names begin of what was never trained; "" where nothing is left as it was."""
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """File of JSON -> entries that change."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """File -> another to take in its place."""
    parts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """What is stored apart: name without ending -> tensors."""
    remark: str = ""
    """What a person should know."""


@runtime_checkable
class Republishes(Protocol):
    """A policy that knows the layout that it was published in."""

    @property
    def origin(self) -> str:
        """The folder that it began from; "" where nobody knows."""
        ...

    def republished(self, folder: Path, scratch: Path) -> Republished:
        """For the published `folder`; a folder `scratch` is there to write in. Raises UserError where they differ."""
        ...


def check_statistics(own: Normalizer, found: Normalizer, folder: Path) -> None:
    """A policy keeps the statistics that it was published with, but for the limits of its actions."""
    for name, row in found.state_dict().items():
        kept = name in ("action_min", "action_max") or torch.equal(row, own.state_dict()[name].cpu())
        if not kept:
            raise UserError(f"{folder} has other statistics than the policy: give the folder that it began from.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that hold the weights of a folder, in one piece or several; of an adapter, those of its base."""
    folder = base_of(Path(folder))
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        pickles = [path.name for kind in PICKLES for path in Path(folder).glob(f"*{kind}")]
        if pickles:
            raise UserError(
                f"{folder} holds its weights as a pickle, {pickles[0]}, which could run any code when opened: "
                "save them as safetensors."
            )
        raise UserError(f"{folder} holds no weights: there is no model.safetensors.")
    return files


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by the names that they have there; with the changes of an adapter."""
    return {name: tensor for _, tensors in stored_weights(folder) for name, tensor in tensors.items()}


def stored_weights(folder: Path) -> Iterator[tuple[Path, dict[str, Tensor]]]:
    """Each file of `weight_files` with its tensors, to which the changes of an adapter are added."""
    folder = Path(folder)
    adapter, base = (Adapter.read(folder) if (folder / ADAPTER).is_file() else None), base_of(folder)
    names: set[str] = set()
    for path in weight_files(folder):
        tensors, _ = load_tensors(path)
        names |= tensors.keys()
        if adapter is not None:
            tensors = {name: adapter.added(name, tensor, base) for name, tensor in tensors.items()}
        yield path, tensors
    if adapter is not None:
        adapter.check(names, base)


def standardizer(
    state: tuple[Tensor, Tensor], action: tuple[Tensor, Tensor], limits: tuple[Tensor, Tensor] | None = None
) -> Normalizer:
    """Of means and standard deviations, (S,) and (D,) each. Actions are kept within `limits`; where these are unknown,
    within [-1, 1], or for actions that are not in such units, within what is not too far to have been demonstrated.

    A dimension that never moved is not scaled.
    """
    (state_mean, state_std), (action_mean, action_std) = state, action
    still = action_std <= SAME * action_mean.abs().clamp(min=1)
    if limits is None:
        usual = (action_mean.abs() + action_std <= 1) & ~still
        reach = FARTHEST * action_std
        limits = torch.where(usual, -1.0, action_mean - reach), torch.where(usual, 1.0, action_mean + reach)
    least, most = limits
    unit = torch.where(still, 1.0, action_std)
    found = Normalizer(len(action_mean), len(state_mean))
    rows = {
        "action_low": action_mean - unit,
        "action_high": action_mean + unit,
        "action_min": torch.minimum(least, action_mean),
        "action_max": torch.maximum(most, action_mean),
        "state_mean": state_mean,
        "state_std": torch.where(state_std <= SAME * state_mean.abs().clamp(min=1), 1.0, state_std),
    }
    found.load_state_dict(rows, strict=False)
    return found


def statistics(mean: object, std: object, size: int, what: str, folder: Path) -> tuple[Tensor, Tensor]:
    """(mean, std) of `size` numbers each; they must be there, finite, and as many as the robot has dimensions."""
    if mean is None or std is None:
        raise UserError(
            f"{folder} has no mean and standard deviation of {what}: fine-tune the policy on your robot's data first, "
            "which saves them."
        )
    rows = torch.as_tensor(mean, dtype=torch.float32).flatten(), torch.as_tensor(std, dtype=torch.float32).flatten()
    if any(len(row) != size for row in rows):
        raise UserError(f"{folder} has statistics of {len(rows[0])} {what} dimensions, but its policy has {size}.")
    if not all(row.isfinite().all() for row in rows) or (rows[1] < 0).any():
        raise UserError(f"{folder} has statistics of {what} that are no finite numbers.")
    return rows


def transformers() -> ModuleType:
    transformers = optional("transformers", "pi0 and SmolVLA need")
    if not hasattr(transformers, "PI0Config"):
        raise UserError("pi0 and SmolVLA need transformers 5 or later: pip install -U transformers.")
    return transformers
