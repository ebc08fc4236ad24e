"""The numbers that a checkpoint was normalised with: of actions and states, and of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmpo.errors import UserError, named
from wmpo.io.files import read_json

STATISTICS = "dataset_statistics.json"
Three = tuple[float, float, float]
PIXELS: tuple[tuple[Three, Three], ...] = (  # mean and deviation of red, green and blue
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # DINOv2: ImageNet's
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # SigLIP
)


def quantiles(folder: Path, described: Mapping[str, Any], chosen: str | None) -> tuple[Tensor, Tensor | None]:
    """The 1 % and 99 % quantiles in training, of actions (2, D) and of states (2, S) where there are any.

    `described`: the checkpoint's config.json, which may hold them too; `chosen`: which data set's.
    """
    path = folder / STATISTICS
    sets = read_json(path) if path.is_file() else described.get("norm_stats")
    if not isinstance(sets, dict) or not sets:
        raise UserError(f"{path} does not exist: without it nobody knows what the policy's actions mean.")
    if chosen is None and len(sets) > 1:
        raise UserError(f"{path} knows several data sets: choose one with statistics=, of {', '.join(sets)}.")
    name = chosen if chosen is not None else next(iter(sets))
    own = named("data set with statistics", name, sets)
    action = _range(own, "action", path)
    if action is None:
        raise UserError(f"{path} has no action statistics of {name!r}.")
    if (largest := float(action.abs().max())) > 1:
        raise UserError(
            f"{path}: actions of {name!r} reach {largest:.4g}, but actions here lie in [-1, 1]: bring q01 and q99 to "
            "the units of your environment."
        )
    return action, _range(own, "proprio", path)


def _range(own: Any, what: str, path: Path) -> Tensor | None:
    """(2, dimensions): q01 and q99, or -1 and 1 where `mask` says that a dimension is not normalised."""
    stats = own.get(what) if isinstance(own, dict) else None
    if stats is None:
        return None
    try:
        low, high = (torch.tensor(stats[name], dtype=torch.float32) for name in ("q01", "q99"))
        mask = torch.tensor(stats.get("mask", [True] * len(low)))
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise UserError(f"{path}: {what} statistics need q01 and q99, lists of numbers.") from None
    if low.ndim != 1 or not low.shape == high.shape == mask.shape or not bool((low <= high).all()):
        raise UserError(f"{path}: q01, q99 and mask of {what} must be of one length, with q01 nowhere above q99.")
    return torch.stack([torch.where(mask, low, -1.0), torch.where(mask, high, 1.0)])


def pixels(folder: Path) -> tuple[tuple[Three, Three], ...]:
    """Mean and deviation of the pixels of either tower: what the image processor uses, where it is there."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return PIXELS
    described = read_json(path)
    try:
        if "tvf_normalize_params" in described:
            pairs = [(three["mean"], three["std"]) for three in described["tvf_normalize_params"]]
        else:
            pairs = list(zip(described["means"], described["stds"], strict=True))
        (dino, siglip) = ((_three(mean), _three(std)) for mean, std in pairs)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} does not give three means and three deviations for either vision tower.") from None
    return dino, siglip


def _three(values: Any) -> Three:
    red, green, blue = map(float, values)
    return red, green, blue
