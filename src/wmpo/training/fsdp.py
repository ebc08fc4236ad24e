"""Trainings of networks too large for one GPU: every rank keeps a share of each tensor, some of its rows (FSDP2).

That holds for weights, gradients, running mean and the optimiser's state. Ranks gather the weights where they compute
with them: those of a unit (`protocols.HasUnits`) while it is gone through, the others as long as a step lasts.

Importing torch's part takes seconds, so only who shares does.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from wmpo.errors import UserError, reason
from wmpo.protocols import HasUnits, Trainable
from wmpo.training import ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shared(module: Trainable, device: torch.device) -> nn.Module:
    """A copy of `module` of which this rank keeps its share only, on `device`; `module` should be on the CPU."""
    from torch.distributed.fsdp import fully_shard

    if not isinstance(module, nn.Module):
        raise UserError(f"{type(module).__name__} is no torch.nn.Module, so that fsdp can't share it: turn that off.")
    # our units return views, into which nobody writes
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    copied, mesh = copy.deepcopy(module), ranks.mesh(device)
    try:
        for unit in copied.units() if isinstance(copied, HasUnits) else ():
            fully_shard(unit, mesh=mesh)
        fully_shard(copied, mesh=mesh)
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise UserError(f"fsdp can't share {type(module).__name__} ({reason(error)}): turn that off.") from error
    return copied


def is_shared(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This rank's rows, of a tensor that ranks share; it as it is, else. The memory is the same."""
    return cast("DTensor", tensor).to_local() if is_shared(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """All rows, of a tensor that ranks share; it as it is, else."""
    return cast("DTensor", tensor).full_tensor() if is_shared(tensor) else tensor


@ranks.listening(computing=True)
@torch.no_grad()
def gather_weights(module: Trainable, whole: Trainable) -> None:
    """Fill `whole` with the weights of `module`, which ranks share: one tensor after the other."""
    own = whole.state_dict()
    for name, tensor in module.state_dict().items():
        own[name].copy_(full(tensor))


def shares(tensors: Mapping[str, Tensor]) -> dict[str, DTensor]:
    """Those that ranks share."""
    return {name: cast("DTensor", tensor) for name, tensor in tensors.items() if is_shared(tensor)}


def rows_of(tensor: DTensor) -> range:
    """The rows that this rank keeps: as many as any, but for the last ranks, which may have fewer or none."""
    rows = range(len(tensor))
    most = -(-len(rows) // ranks.world())
    return rows[ranks.rank() * most :][:most]


def with_shares(tensors: Mapping[str, Tensor], like: Mapping[str, DTensor]) -> dict[str, Tensor]:
    """Of the tensors that `like` has, this rank's rows become its share of the whole."""
    from torch.distributed.tensor import DTensor

    def share(rows: Tensor, whole: DTensor) -> Tensor:
        rows = rows.to(whole.device)
        return DTensor.from_local(rows, whole.device_mesh, whole.placements, shape=whole.shape, stride=whole.stride())

    return {name: share(tensor, like[name]) if name in like else tensor for name, tensor in tensors.items()}


def share_gradients(
    work: Callable[..., tuple[Tensor, Mapping[str, Tensor]]],
    weights: Sequence[float],
    *arguments: Iterable[object],
) -> dict[str, Tensor]:
    """As `parallel.accumulate_gradients`, for a network of `shared` that has no gradients yet: each rank gets its rows
    of the sums.

    `work(*row)` returns loss and metrics. All parts must use the same parameters.
    """
    every = list(zip(weights, *arguments, strict=True))
    rows = [every[place] for place in ranks.share(len(every))]
    # Weights are gathered by all or none: a rank with fewer parts goes through the first one, for nothing.
    rows += [(0.0, *every[0][1:])] * (-(-len(every) // ranks.world()) - len(rows))
    metrics: dict[str, Tensor] = {}
    for weight, *given in rows:
        loss, found = work(*given)
        (ranks.world() * weight * loss).backward()  # torch takes the mean over ranks
        for name, value in found.items():
            metrics[name] = metrics.get(name, 0.0) + weight * value.detach().float()
    values = torch.stack([*metrics.values()])
    ranks.add_up([values])
    return dict(zip(metrics, values.unbind(), strict=True))
