"""The numbers that a checkpoint was normalised with: of actions and states, and of pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from wmpo.data.normalizer import IDENTITY, QUANTILES, Normalizer
from wmpo.errors import UserError, named
from wmpo.io.files import read_json

STATISTICS = "dataset_statistics.json"
NARROW, STILL = 1e-8, 1e-3  # ranges of actions and of states that are taken for none
Three = tuple[float, float, float]
PIXELS: tuple[tuple[Three, Three], ...] = (  # mean and deviation of red, green and blue
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # DINOv2: ImageNet's
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # SigLIP
)


def normalizer(folder: Path, described: Mapping[str, object], chosen: str | None, sees_state: bool) -> Normalizer:
    """What the policy's actions (D) and, if it `sees_state`, states (S) mean: their 1 % and 99 % quantiles in training.

    `described`: the checkpoint's config.json, which may hold them too; `chosen`: which data set's.
    """
    path, sets = folder / STATISTICS, _sets(folder, described)
    if chosen is None and len(sets) > 1:
        raise UserError(f"{path} knows several data sets: choose one with statistics=, of {', '.join(sets)}.")
    name = chosen if chosen is not None else next(iter(sets))
    own = named("data set with statistics", name, sets)
    action, state = _range(own, "action", path), _range(own, "proprio", path) if sees_state else None
    if action is None:
        raise UserError(f"{path} has no action statistics of {name!r}.")
    if sees_state and state is None:
        raise UserError(f"{path} lacks those of proprio, which the proprio_projector needs.")
    found = Normalizer(len(action.low), len(state.low) if state else 0)
    # A dimension that never moved is -1 when normalised, as in the authors' code.
    high = torch.where(action.high - action.low > NARROW, action.high, action.low + 2)
    rows = {
        "action_mode": torch.where(action.mask, QUANTILES, IDENTITY),
        "action_low": action.low, "action_high": high, "action_min": action.least, "action_max": action.most,
    }  # fmt: skip
    if state:
        half = ((state.high - state.low) / 2).clamp(min=STILL)
        rows |= {"state_mean": state.low + half, "state_std": half}
    found.load_state_dict(rows, strict=False)
    return found


def names(folder: Path, described: Mapping[str, object]) -> list[str]:
    """The data sets whose statistics a checkpoint holds."""
    return list(_sets(folder, described))


def _sets(folder: Path, described: Mapping[str, object]) -> dict[str, object]:
    path = folder / STATISTICS
    sets = read_json(path) if path.is_file() else described.get("norm_stats")
    if not isinstance(sets, dict) or not sets:
        raise UserError(f"{path} does not exist: without it nobody knows what the policy's actions mean.")
    return sets


class Range(NamedTuple):
    """Of each dimension."""

    low: Tensor  # q01, or -1 where the dimension is not normalised
    high: Tensor  # q99, or 1
    mask: Tensor  # bool, whether it is normalised
    least: Tensor  # the lowest value in training, at most `low`
    most: Tensor


def _range(own: object, what: str, path: Path) -> Range | None:
    stats = own.get(what) if isinstance(own, dict) else None
    if stats is None:
        return None
    try:
        low, high = (torch.tensor(stats[name], dtype=torch.float32) for name in ("q01", "q99"))
        least, most = (torch.tensor(stats.get(name, row), dtype=torch.float32)
                       for name, row in (("min", low.tolist()), ("max", high.tolist())))  # fmt: skip
        mask = torch.tensor(stats.get("mask", [True] * len(low)), dtype=torch.bool)
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise UserError(f"{path}: {what} statistics need q01 and q99, lists of numbers.") from None
    rows = (high, mask, least, most)
    if low.ndim != 1 or any(row.shape != low.shape for row in rows) or not bool((low <= high).all()):
        raise UserError(f"{path}: q01, q99 and mask of {what} must be of one length, with q01 nowhere above q99.")
    if not all(bool(row.isfinite().all()) for row in (low, high, least, most)):
        raise UserError(f"{path}: statistics of {what} must be finite numbers.")
    low, high = torch.where(mask, low, -1.0), torch.where(mask, high, 1.0)
    return Range(low, high, mask, torch.minimum(least, low), torch.maximum(most, high))


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


def _three(values: Iterable[float]) -> Three:
    red, green, blue = map(float, values)
    return red, green, blue
