"""Batches of any make: tensors, and tuples of strings, in nested tuples, lists, mappings and dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import chain, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


def map_leaves(work: Callable[..., object], *batches: Batch) -> Batch:
    """The batch of `work(leaf, ...)`, for the leaves that batches of one make have at each place."""
    first: Any = batches[0]
    made: Any
    if isinstance(first, Mapping):
        made = {key: map_leaves(work, *(batch[key] for batch in batches)) for key in first}  # type: ignore[index]
    elif is_dataclass(first) and not isinstance(first, type):
        values = {
            field.name: map_leaves(work, *(getattr(batch, field.name) for batch in batches)) for field in fields(first)
        }
        made = replace(first, **values)
    elif isinstance(first, (tuple, list)) and not all(isinstance(value, str) for value in first):
        made = type(first)([map_leaves(work, *values) for values in zip(*batches, strict=True)])
    else:
        made = work(*batches)
    return made


def cat(batches: Sequence[Batch]) -> Batch:
    """The rows of all batches, in order."""
    return map_leaves(
        lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else tuple(chain(*leaves)), *batches
    )


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Move every tensor; other values stay."""
    return map_leaves(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)


def split(batch: Batch, count: int) -> list[Batch]:
    """The rows of a batch in `count` runs, or in as many as it has rows."""
    size = rows_of(batch)
    bounds = [size * place // count for place in range(count + 1)]
    runs = [slice(a, b) for a, b in pairwise(bounds) if b > a]
    return [map_leaves(lambda leaf, rows=rows: leaf[rows], batch) for rows in runs]


def rows_of(batch: object) -> int:
    """How many rows a batch has: the first size of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    if is_dataclass(batch):
        batch = vars(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return next((size for part in parts if not isinstance(part, str) and (size := rows_of(part))), 0)  # type: ignore
