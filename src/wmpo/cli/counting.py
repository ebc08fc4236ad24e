"""What a computation holds and computes, found with tensors that have shapes but no numbers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, UntypedStorage, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")
HALF = {  # what autocast computes in bfloat16
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, torch.matmul, torch.mm, torch.bmm,
    torch.addmm, torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm,
    F.scaled_dot_product_attention,
}  # fmt: skip
WHOLE = {F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cross_entropy, torch.softmax, Tensor.softmax}
"""And what in float32."""


class Network(Protocol):
    """What is asked of every network here."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...


class Alive(TorchDispatchMode):
    """Adds up what tensors hold, and what operations compute; `peak` is the most that was alive at once.

    Operations are counted by torch's own formulas. Its `FlopCounterMode` has them too, but also a record of modules,
    which does not bear `torch.autograd.grad` of their inputs.
    """

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        """`networks`: what they hold is not counted, though operations make views of it."""
        super().__init__()
        own = (tensor for module in networks for tensor in module.state_dict().values())
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in own)
        self.live = self.peak = self.flop = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter((args, kwargs, result)):  # a batch is made before, and counted where it is used
            if isinstance(tensor, Tensor) and tensor.device == META:
                self.count(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        if formula := flop_registry.get(func._overloadpacket):
            self.flop += formula(*args, **(kwargs or {}), out_val=result)
        return result

    def count(self, storage: UntypedStorage) -> None:
        """Once, whatever views there are of it, and until the last of them is let go, by autograd too."""
        if storage not in self.known:
            size = storage.nbytes()
            self.known.add(storage)
            self.live += size
            weakref.finalize(storage, self.release, size)

    def release(self, size: int) -> None:
        self.live -= size


class AsOnAGpu(TorchFunctionMode):
    """Lets tensors without numbers be computed as a GPU would: attention without a matrix of all pairs, and, inside of
    `nn.precision.computing_in`, products in bfloat16, which autocast doesn't do for them."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if func in HALF | WHOLE and torch.is_autocast_enabled("cpu"):
            dtype = torch.bfloat16 if func in HALF else torch.float32
            args, kwargs = tree_map(lambda value: cast(value, dtype), (args, kwargs))
        if func is torch.autograd.grad:
            with self:  # also while blocks are computed again for their gradients; torch would leave the mode here
                return gradients(*args, **kwargs)  # type: ignore[arg-type]
        if func is F.scaled_dot_product_attention:
            return attention(*args, **kwargs)  # type: ignore[arg-type]
        return func(*args, **kwargs)


def gradients(outputs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor], **settings: object) -> object:
    """`torch.autograd.grad` of the sum of outputs; inputs that aren't used get none."""
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    ones = tuple(torch.ones_like(output) for output in outputs)
    engine = torch.autograd.Variable._execution_engine
    return engine.run_backward(
        tuple(outputs), ones, False, False, tuple(inputs), allow_unreachable=True, accumulate_grad=False
    )


def cast(value: object, dtype: torch.dtype) -> object:
    on_meta = isinstance(value, Tensor) and value.device == META and value.is_floating_point()
    return value.to(dtype) if on_meta else value  # type: ignore[attr-defined]


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """`F.scaled_dot_product_attention` by the kernel that a GPU takes, where that has one."""
    if query.device != META or query.ndim != 4 or enable_gqa:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    graded = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    found: tuple[Tensor, ...] = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, graded, dropout_p, is_causal, scale=scale
    )
    return found[0]


def go_through(
    mode: AbstractContextManager[object], work: Callable[[], object], networks: Iterable[Network] = ()
) -> Alive:
    """Bytes that `work` has alive at its fullest, beside those of the networks, and what it computes."""
    with Alive(networks) as alive, AsOnAGpu(), mode:
        work()
    return alive
