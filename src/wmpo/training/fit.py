"""The one supervised loop. Every network's `forward(batch, generator)` returns (loss, metrics): this trains them all.

A step is a pure function of (weights, optimiser state, step number): batches come from `sample(step)` and random
numbers are seeded per step. That is why a resumed run equals an uninterrupted one, bit for bit.

Small networks gain nothing from a second thread inside an operation, but nearly twice the speed from a second thread
that works on the other half of the batch (`FitConfig.cpu_shards`). Parts of a batch are also what ranks share out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from wmpo.batches import Batch, rows_of, split, to_device
from wmpo.config import FitConfig
from wmpo.errors import UserError
from wmpo.io.plain import numbers_of
from wmpo.nn.precision import computing_in
from wmpo.protocols import Trainable
from wmpo.training import fsdp, ranks
from wmpo.training.checkpoint import (
    digest_of,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    with_prefix,
    without_prefix,
)
from wmpo.training.log import RunLog
from wmpo.training.optimiser import QUANTITIES, learning_rate, make_optimizer, move_average
from wmpo.training.parallel import accumulate_gradients
from wmpo.training.prefetch import prefetch
from wmpo.training.resume import Checkpoints
from wmpo.training.signals import stop_requests

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

LOG_EVERY = 20
Network = TypeVar("Network", bound=Trainable)


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
    depends: Mapping[str, object] | None = None,
    checkpoint_seconds: float = 20.0,
) -> Network:
    """Train `module` in place and return it, in eval mode, with averaged weights where `config.ema` > 0.

    `module(batch, generator)` returns (scalar loss, {metric: scalar tensor}), means over the batch, and draws its
    random numbers from `generator`; `sample(step)` must depend on `step` alone and not draw from torch's global
    generator. Files go to `folder/name`, see `Checkpoints`; once it is done a second call only loads the result.
    `depends` names what else the result follows from, such as a digest of the data: settings, seed and the weights
    that `module` begins with are among it anyway. Raises UserError where the files were made from something else.

    Ranks share the parts of each batch, and take the steps that one process would take.

    On Ctrl-C or SIGTERM the step in hand is finished and saved, then KeyboardInterrupt is raised.
    """
    device = torch.device(device)
    shares = config.fsdp and ranks.world() > 1
    module.to(torch.device("cpu") if shares else device)
    ranks.same(module.state_dict().values())
    inputs = {**numbers_of(config), "seed": seed, "weights": digest_of(module), **(depends or {})}
    files = Checkpoints(Path(folder) / name, inputs)
    if files.load_result(module):
        return module.to(device).eval()
    learner = Learner(module, config, device, seed, shares)
    tensors, saved = files.load(learner.rows())
    if saved:
        learner.restore(tensors, files.checkpoint)
    window = Window(name, tensors, device)
    batches = prefetch(sample, range(saved, config.steps))
    learner.module.train()
    if (parts := learner.parts) < ranks.world():
        log.info(f"{name}: a batch has {parts} parts, so that no more of the processes have work: see fit.accumulate")
    with closing(batches), log.progress(name, config.steps) as bar, stop_requests() as stop:
        bar.skip(saved)
        for step, batch in zip(range(saved, config.steps), batches, strict=True):
            window.add(learner.step(batch, step))
            stopping, waited = ranks.agree(stop.is_set(), files.is_due(checkpoint_seconds))
            last = step + 1 == config.steps
            due = not last and (stopping or waited)
            if due or last or len(window) == LOG_EVERY:
                window.check(step, saved, files.folder)
            if last or len(window) == LOG_EVERY:
                means = window.close(config.batch_size) | {"lr": learning_rate(config, step)}
                log.scalars(step + 1, {f"{name}/{key}": value for key, value in means.items()})
                bar.text = f"loss {means['loss']:.4g}"
            bar.update(1)
            if due:
                files.save(step + 1, learner.tensors() | window.tensors())
                saved = step + 1
                if stopping:
                    raise KeyboardInterrupt(f"{name}: stopped after step {saved}; the same command continues there.")
    learner.finish(files)
    return module.to(device).eval()


class Learner:
    """All that a step of training changes: weights, their running mean, the optimiser's state; or this rank's shares of
    them, until `finish`."""

    def __init__(
        self, module: Trainable, config: FitConfig, device: torch.device, seed: int, shares: bool = False
    ) -> None:
        self.whole, self.config, self.device, self.seed, self.shares = module, config, device, seed, shares
        self.module = module = fsdp.shared(module, device) if shares else module
        self.parts = config.accumulate * (config.cpu_shards if device.type == "cpu" else 1)
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        own = module.state_dict() if config.ema > 0 else {}
        self.average = {name: tensor.detach().clone() for name, tensor in own.items()}
        self.optimizer = make_optimizer(module, config, device)

    @ranks.listening(computing=True)
    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One optimiser step; its metrics."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        metrics = self._find_gradients(batch, step)
        norm = fsdp.full(nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip))
        self.optimizer.step()
        self.optimizer.zero_grad()  # else they lie beside the next ones
        if self.average:
            move_average(self.average, self.module, self.config.ema, step)
        return {**metrics, "grad_norm": norm}

    def _find_gradients(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Give every parameter its gradient; what is computed depends on the parts, not on cores and ranks."""

        def forward(part: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            with computing_in(self.config.precision, self.device):  # here, since it holds in this thread only
                loss, metrics = self.module(to_device(part, self.device), generator)
            return loss, {key: value.detach() for key, value in {**metrics, "loss": loss}.items()}

        def gradients(part: Batch, generator: torch.Generator) -> tuple[tuple[Tensor | None, ...], dict[str, Tensor]]:
            loss, metrics = forward(part, generator)
            return torch.autograd.grad(loss, self.parameters, allow_unused=True), metrics

        parts = split(batch, self.parts) if self.parts > 1 else [batch]
        seeds = [step_seed(self.seed, step, 0, place) for place in range(len(parts))]
        generators = [torch.Generator(self.device).manual_seed(number) for number in seeds]
        sizes = [rows_of(part) for part in parts] if self.parts > 1 else [1]
        weights = [size / sum(sizes) for size in sizes]
        if self.shares:
            return fsdp.share_gradients(forward, weights, parts, generators)
        return accumulate_gradients(self.parameters, gradients, weights, parts, generators)

    def tensors(self) -> dict[str, Tensor]:
        return {
            **with_prefix("module", self.module.state_dict()),
            **with_prefix("average", self.average),
            **with_prefix("optimizer", optimizer_tensors(self.optimizer)),
        }

    def rows(self) -> dict[str, range]:
        """Of which of `tensors` this rank has some rows only."""
        return {name: fsdp.rows_of(tensor) for name, tensor in self._shared().items()} if self.shares else {}

    def _shared(self) -> dict[str, DTensor]:
        """By their names in `tensors`, and of their shapes."""
        weights = fsdp.shares(self.module.state_dict())
        learned = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state = {f"{i}.{key}": parameter for i, parameter in enumerate(learned) for key in QUANTITIES}
        return {
            **with_prefix("module", weights),
            **with_prefix("average", weights),
            **with_prefix("optimizer", fsdp.shares(state)),
        }

    def restore(self, tensors: Mapping[str, Tensor], where: Path) -> None:
        """Put back what `tensors` gave, of which `rows` may be missing."""
        tensors = fsdp.with_shares(tensors, self._shared()) if self.shares else tensors
        load_weights(self.module, without_prefix("module", tensors), where)
        for name, tensor in without_prefix("average", tensors).items():
            self.average[name].copy_(tensor)
        load_optimizer(self.optimizer, without_prefix("optimizer", tensors), where)

    def finish(self, files: Checkpoints) -> None:
        if self.average:
            self.module.load_state_dict(self.average)
        if self.shares:
            fsdp.gather_weights(self.module, self.whole)
        files.finish(self.whole, self.config.steps)


class Window:
    """Metrics of the steps since the last line of the log.

    What is logged must not depend on when a run was stopped: the checkpoint keeps a window that is not full.
    """

    def __init__(self, name: str, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self.name = name
        kept = {key: values.to(device) for key, values in without_prefix("window", tensors).items()}
        steps = len(kept["loss"]) if kept else 0
        self.steps = [{key: values[i] for key, values in kept.items()} for i in range(steps)]
        self.fresh, self.since = 0, time.monotonic()

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, metrics: dict[str, Tensor]) -> None:
        self.steps.append(metrics)
        self.fresh += 1

    def check(self, step: int, saved: int, folder: Path) -> None:
        """Raises UserError where a loss or gradient was not finite; the checkpoint in `folder` is of step `saved`."""
        sums = torch.stack([row["loss"] + row["grad_norm"] for row in self.steps]).float().cpu()
        if not sums.isfinite().all():
            bad = step - len(self) + 1 + int((~sums.isfinite()).nonzero()[0])
            kept = f"the last checkpoint, of step {saved}, is in {folder}" if saved else "there is no checkpoint yet"
            advice = "lower the learning rate or look for bad values in the data"
            raise UserError(f"{self.name}: the loss or its gradient is not finite at step {bad}; {kept}; {advice}.")

    def close(self, batch_size: int) -> dict[str, float]:
        """Means over the window, and how fast it was; a new one begins."""
        means = {key: float(self._column(key).mean()) for key in self.steps[0]}
        means["samples_per_second"] = batch_size * self.fresh / (time.monotonic() - self.since)
        self.steps, self.fresh, self.since = [], 0, time.monotonic()
        return means

    def tensors(self) -> dict[str, Tensor]:
        return with_prefix("window", {key: self._column(key) for key in self.steps[0]}) if self.steps else {}

    def _column(self, key: str) -> Tensor:
        return torch.stack([row[key].float() for row in self.steps])


def step_seed(*numbers: int) -> int:
    """A 32-bit seed from several numbers, without the correlations of seeds that lie close together."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
