"""The one supervised loop. Every network's `forward(batch, generator)` returns (loss, metrics): this trains them all.

A step is a pure function of (weights, optimiser state, step number): batches come from `sample(step)` and random
numbers are seeded per step. That is why a resumed run equals an uninterrupted one, bit for bit.

Small networks gain nothing from a second thread inside an operation, but nearly twice the speed from a second thread
that works on the other half of the batch (`FitConfig.shares`).
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from wmpo.config import FitConfig
from wmpo.errors import UserError
from wmpo.io.plain import to_plain
from wmpo.nn.muon import Muon, is_matrix
from wmpo.protocols import Trainable
from wmpo.training.checkpoint import (
    WEIGHTS,
    load_optimizer,
    load_tensors,
    load_weights,
    optimizer_tensors,
    save_tensors,
    with_prefix,
    without_prefix,
)
from wmpo.training.log import RunLog
from wmpo.training.parallel import accumulate_gradients, rows_of, split, weighted_sum
from wmpo.training.prefetch import prefetch

LOG_EVERY = 20
CHECKPOINT = "checkpoint.safetensors"
Network = TypeVar("Network", bound=Trainable)
Batch = Any  # whatever the module's forward accepts: tensors in tuples, lists, mappings, dataclasses


def fit(
    module: Network,
    sample: Callable[[int], Batch],
    config: FitConfig,
    *,
    folder: Path,
    name: str,
    log: RunLog,
    device: torch.device | str = "cpu",
    seed: int = 0,
    betas: tuple[float, float] = (0.9, 0.99),
    precision: torch.dtype | None = None,
    checkpoint_seconds: float = 20.0,
) -> Network:
    """Train `module` in place and return it, in eval mode, with averaged weights where `config.ema` > 0.

    `module(batch, generator)` returns (scalar loss, {metric: scalar tensor}), means over the batch, and draws its
    random numbers from `generator`; `sample(step)` must depend on `step` alone and not draw from torch's global
    generator. `precision` runs forward under autocast. Files go to `folder/name`: a checkpoint while training,
    `model.safetensors` once done, after which a second call only loads it.

    Under torchrun every process draws its own batch, `sample(step * world + rank)`, and gradients are averaged:
    the effective batch is `world` times `config.batch_size`.

    On Ctrl-C or SIGTERM the step in hand is finished and saved, then KeyboardInterrupt is raised.
    """
    device = torch.device(device)
    place = Path(folder) / name
    module.to(device)
    if is_done(folder, name):
        tensors, facts = load_tensors(place / WEIGHTS)
        _same_settings(facts, config, seed, place)
        load_weights(module, tensors, place / WEIGHTS)
        return module.eval()

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    average = _copy(module) if config.ema > 0 else {}
    optimizer = _optimizer(module, config, betas, device)
    begin = 0
    if (place / CHECKPOINT).exists():
        begin = _restore(place / CHECKPOINT, module, average, optimizer, config, seed)
    elif world > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)

    def save(step: int) -> None:
        if rank == 0:
            tensors = {
                **with_prefix("module", module.state_dict()),
                **with_prefix("average", average),
                **with_prefix("optimizer", optimizer_tensors(optimizer)),
            }
            save_tensors(place / CHECKPOINT, tensors, {"step": step, "seed": seed, "config": to_plain(config)})

    module.train()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    shares = config.cpu_shards if device.type == "cpu" else 1

    def gradients(batch: Batch, generator: torch.Generator) -> tuple[tuple[Tensor | None, ...], dict[str, Tensor]]:
        with torch.autocast(device.type, precision) if precision else nullcontext():
            loss, metrics = module(batch, generator)
        metrics = {key: value.detach() for key, value in {**metrics, "loss": loss}.items()}
        return torch.autograd.grad(loss, parameters, allow_unused=True), metrics

    pending: list[dict[str, Tensor]] = []
    saved, saved_at, logged_at = begin, time.monotonic(), time.monotonic()
    batches = prefetch(lambda step: sample(step * world + rank), range(begin, config.steps))
    with (
        closing(batches),
        log.progress(name, config.steps) as bar,
        stop_requests() as stop,
    ):
        bar.skip(begin)
        for step, batch in zip(range(begin, config.steps), batches, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            parts = split(to_device(batch, device), shares) if shares > 1 else [to_device(batch, device)]
            seeds = [step_seed(seed, step, rank, place) for place in range(len(parts))]
            generators = [torch.Generator(device).manual_seed(number) for number in seeds]
            sizes = [rows_of(part) for part in parts] if shares > 1 else [1]
            weights = [size / sum(sizes) for size in sizes]
            told = accumulate_gradients(parameters, gradients, weights, parts, generators)
            metrics = {key: weighted_sum(weights, [found[key] for found in told]) for key in told[0]}
            stopping = average_gradients(parameters, stop.is_set()) if world > 1 else stop.is_set()
            norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip)
            optimizer.step()
            if average:
                _move_average(average, module, config.ema, step)
            pending.append({**metrics, "grad_norm": norm})

            last = step + 1 == config.steps
            due = last or stopping or time.monotonic() - saved_at > checkpoint_seconds
            if due or (step + 1) % LOG_EVERY == 0:
                means = _check(pending, step, name, place, saved)
                if rank == 0:
                    speed = config.batch_size * world * len(pending) / (time.monotonic() - logged_at)
                    means |= {"lr": learning_rate(config, step), "samples_per_second": speed}
                    log.scalars(step + 1, {f"{name}/{key}": value for key, value in means.items()})
                bar.update(len(pending), f"loss {means['loss']:.4g}")
                pending, logged_at = [], time.monotonic()
            if due and not last:
                save(step + 1)
                saved, saved_at = step + 1, time.monotonic()
            if stopping and not last:
                raise KeyboardInterrupt(f"{name}: stopped after step {step + 1}; the same command continues there.")

    if average:
        module.load_state_dict(average)
    if rank == 0:
        save_tensors(place / WEIGHTS, module.state_dict(), _settings(config, seed))
        (place / CHECKPOINT).unlink(missing_ok=True)
    if world > 1:
        dist.barrier()  # nobody looks for the result before it is there
    return module.eval()


def is_done(folder: Path, name: str) -> bool:
    """True when `fit` has finished under this name; a second call then only loads the weights."""
    return (Path(folder) / name / WEIGHTS).exists()


def learning_rate(config: FitConfig, step: int) -> float:
    """Linear warm-up to `config.lr`, then a cosine down to a tenth of it at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    return config.lr * (0.55 + 0.45 * math.cos(math.pi * min(1.0, progress)))


def step_seed(*numbers: int) -> int:
    """A 32-bit seed from several numbers, without the correlations of seeds that lie close together."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move every tensor in nested tuples, lists, mappings and dataclasses; other values stay."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(value, device) for value in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: to_device(getattr(batch, f.name), device) for f in fields(batch)})
    return batch


def average_gradients(parameters: list[nn.Parameter], stopping: bool = False) -> bool:
    """Average gradients over processes, in one message; True if any process was asked to stop."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads] + [grads[0].new_tensor([float(stopping)])])
    dist.all_reduce(flat)
    offset = 0
    for grad in grads:
        grad.copy_(flat[offset : offset + grad.numel()].view_as(grad) / dist.get_world_size())
        offset += grad.numel()
    return bool(flat[-1] > 0)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that work in hand can be finished; a second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return

    def handle(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _optimizer(
    module: Trainable, config: FitConfig, betas: tuple[float, float], device: torch.device
) -> torch.optim.AdamW:
    """Decays matrices and kernels, but neither biases nor norms."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    kind = Muon if config.optimizer == "muon" else torch.optim.AdamW
    matrices = [parameter for parameter in trained if kind is Muon and is_matrix(parameter)]
    taken = set(matrices)
    rest = [parameter for parameter in trained if parameter not in taken]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay, "matrix": True},
        {"params": [parameter for parameter in rest if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in rest if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda")  # on a CPU the unfused one can cost more than the backward pass
    return kind([group for group in groups if group["params"]], lr=config.lr, betas=betas, fused=fused)


def _copy(module: Trainable) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _move_average(average: dict[str, Tensor], module: Trainable, decay: float, step: int) -> None:
    # early on a short memory, else the random initial weights would weigh for 1 / (1 - decay) steps
    decay = min(decay, (1 + step) / (10 + step))
    own = module.state_dict()
    moving = [name for name, tensor in average.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in moving], [own[name] for name in moving], 1 - decay)
    for name, tensor in average.items():
        if not tensor.is_floating_point():
            tensor.copy_(own[name])


def _check(pending: list[dict[str, Tensor]], step: int, name: str, place: Path, saved: int) -> dict[str, float]:
    """Means of the metrics since the last look, which is also when non-finite losses are noticed."""
    losses = torch.stack([values["loss"] + values["grad_norm"] for values in pending]).float().cpu()
    if not losses.isfinite().all():
        bad = step - len(pending) + 1 + int((~losses.isfinite()).nonzero()[0])
        kept = f"the last checkpoint, of step {saved}, is in {place}" if saved else "there is no checkpoint yet"
        advice = "lower the learning rate or look for bad values in the data"
        raise UserError(f"{name}: the loss or its gradient is not finite at step {bad}; {kept}; {advice}.")
    keys = pending[0].keys()
    return {key: float(torch.stack([values[key].float() for values in pending]).mean()) for key in keys}


def _restore(
    path: Path,
    module: Trainable,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    config: FitConfig,
    seed: int,
) -> int:
    """Continue from a checkpoint; the number of steps it has taken."""
    tensors, facts = load_tensors(path)
    _same_settings(facts, config, seed, path)
    load_weights(module, without_prefix("module", tensors), path)
    for name, tensor in without_prefix("average", tensors).items():
        average[name].copy_(tensor)
    load_optimizer(optimizer, without_prefix("optimizer", tensors), path)
    return int(facts["step"])


def _settings(config: FitConfig, seed: int) -> dict[str, Any]:
    return {"seed": seed, "config": to_plain(config)}


def _same_settings(facts: Mapping[str, Any], config: FitConfig, seed: int, place: Path) -> None:
    """Weights trained under other settings must not pass for these."""
    old = {**facts.get("config", {}), "seed": facts.get("seed")}
    for key, value in {**to_plain(config), "seed": seed}.items():
        if old.get(key) != value:
            change = f"{key} = {old.get(key)}, not {value}"
            raise UserError(f"{place} was trained with {change}; use another folder, or delete this one.")
