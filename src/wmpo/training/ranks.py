"""Several processes that compute one run together: its ranks, as torchrun starts them.

Every rank goes through the same program, with the same weights. What is heavy is shared out (`share`, `add_up`,
`gather`); what meets the real environment or writes a file, rank 0 does while the others wait (`first`), so that nobody
reads what is half done. A process on its own is rank 0 of 1: there nothing here does anything.

Objects and small numbers go through the CPU (gloo), where one may wait for hours and yet hears at once of a rank that
has died; gradients on GPUs go through NCCL. Ranks trust one another: objects travel pickled.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.rendezvous import rendezvous

from wmpo.batches import Batch, to_device
from wmpo.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(days=14)  # for what rank 0 does alone, such as playing in the real environment
MESSAGE = 2**25  # numbers of gradients that are sent at once


class _State:
    store: dist.distributed_c10d.Store | None = None  # where ranks leave word for one another, even when they end
    gpus: dist.ProcessGroup | None = None
    alone = False  # while rank 0 does what the others wait for


def start() -> None:
    """Join the ranks that torchrun has started, by its environment variables; nothing without those."""
    if _State.store is not None or not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) < 2:
        return
    try:
        store, rank, world = next(iter(rendezvous("env://")))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=PATIENCE)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"The processes don't find one another ({reason}): see docs/cluster.md.") from error
    _State.store = store


def end() -> None:
    """Part, once all have come so far."""
    if _State.store is not None:
        _meet()
        dist.destroy_process_group()
        _State.store = _State.gpus = None


def world() -> int:
    """How many processes there are."""
    return 1 if _State.alone or not dist.is_initialized() else dist.get_world_size()


def rank() -> int:
    """Which of them this is, from 0 on."""
    return 0 if world() == 1 else dist.get_rank()


def local_rank() -> int:
    """Which of those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world() > 1 else 0


def share(count: int) -> range:
    """The parts, of `count`, that are this rank's to work on: neighbours, and none where there are too few."""
    return range(count * rank() // world(), count * (rank() + 1) // world())


def first(work: Callable[[], T]) -> T:
    """Once all are here, rank 0 does `work`, on its own; all get what it returns."""
    if world() == 1:
        return work()
    _meet()
    if rank() > 0:
        told: T = pickle.loads(_from_first(b""))
        return told
    _State.alone = True
    try:
        answer = work()
    finally:
        _State.alone = False
    _from_first(pickle.dumps(answer))
    return answer


def gather(batch: Batch) -> list[Batch]:
    """Those of all ranks, in their order, with tensors on the CPU where there are several."""
    if world() == 1:
        return [batch]
    own = _bytes(pickle.dumps(to_device(batch, "cpu")))
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(world())]
    _wait(dist.all_gather(sizes, torch.tensor([len(own)]), async_op=True))
    longest = max(map(int, sizes))
    every = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
    _wait(dist.all_gather(every, torch.cat([own, own.new_zeros(longest - len(own))]), async_op=True))
    return [pickle.loads(one[: int(size)].numpy().data) for one, size in zip(every, sizes, strict=True)]


def agree(*flags: bool) -> tuple[bool, ...]:
    """Of each, whether it is true for any rank."""
    if world() == 1:
        return flags
    counts = torch.tensor(flags, dtype=torch.int)
    with listening():
        dist.all_reduce(counts)
    return tuple(count > 0 for count in counts.tolist())


def add_up(tensors: Sequence[Tensor]) -> None:
    """Give each tensor, all on one device, the sum of those of all ranks: every rank gets the same bits."""
    if world() == 1:
        return
    begin = 0
    while begin < len(tensors):
        end, size = begin + 1, tensors[begin].numel()
        while end < len(tensors) and size + tensors[end].numel() <= MESSAGE:
            size += tensors[end].numel()
            end += 1
        some = tensors[begin:end]
        flat = torch.cat([tensor.flatten().float() for tensor in some])
        with listening():
            dist.all_reduce(flat, group=_group(flat.device))
        for tensor, summed in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
            tensor.copy_(summed.view_as(tensor))
        begin = end


def same(tensors: Iterable[Tensor]) -> None:
    """Give the tensors of all ranks the values that they have at rank 0."""
    if world() == 1:
        return
    for tensor in tensors:
        sent = tensor.detach().contiguous()
        with listening():
            dist.broadcast(sent, 0, group=_group(sent.device))
        tensor.data.copy_(sent)


def mesh(device: torch.device) -> DeviceMesh:
    """All ranks, as torch wants them where they share tensors of that device."""
    return DeviceMesh.from_group(_group(device) or dist.distributed_c10d._get_default_group(), device.type)


def last_words(text: str, status: int) -> tuple[str, int]:
    """What a rank that can't go on should say, and its exit status: the first one tells why; the others, which it
    takes along, end with its status and say nothing."""
    if _State.store is None:
        return text, status
    mine = f"{dist.get_rank()} {status}"
    with suppress(RuntimeError):  # whoever kept the store has ended: nobody is left to ask
        told = _State.store.compare_set("ended", "", mine).decode()
        if told != mine:
            return "", int(told.split()[1])
    return text, status


def _meet() -> None:
    _wait(dist.all_reduce(torch.zeros(1), async_op=True))


def _from_first(packed: bytes) -> bytes:
    """What rank 0 has packed."""
    size = torch.tensor([len(packed)])
    _wait(dist.broadcast(size, 0, async_op=True))
    sent = _bytes(packed) if rank() == 0 else torch.empty(int(size), dtype=torch.uint8)
    _wait(dist.broadcast(sent, 0, async_op=True))
    return sent.numpy().tobytes()


def _bytes(packed: bytes) -> Tensor:
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def _group(device: torch.device) -> dist.ProcessGroup | None:
    """NCCL for tensors on GPUs, which it alone moves without the CPU."""
    if device.type == "cuda" and _State.gpus is None:
        _State.gpus = dist.new_group(backend="nccl")
    return _State.gpus if device.type == "cuda" else None


def _wait(work: dist.Work) -> None:
    """Until it is done, but, unlike torch's, so that being asked to stop ends it."""
    pause = 1e-4
    with listening():
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        work.wait()


@contextmanager
def listening(computing: bool = False) -> Iterator[None]:
    """Raises UserError where another rank has ended meanwhile. `computing`: there may be other errors, which pass."""
    try:
        yield
    except RuntimeError as error:
        if computing and not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise UserError(
            "Another process of this run has ended, and so does this one: look for what it says; the same command "
            "continues."
        ) from error
