"""How much memory and arithmetic each stage of a recipe will take, before anything is run.

The very networks and steps of the run are gone through with tensors that have shapes but no numbers; what would be
alive is added up, and what would be computed. An allocator's cutting loss and the workspaces of libraries come on top
of memory: `MARGIN`. Arithmetic is that of matrix products, convolutions and attention, which is nearly all of it in
large networks; optimisers, the real environment, the autoencoder's own training and measuring are not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, UntypedStorage, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from wmpo.batches import split
from wmpo.config import FitConfig, GRPOConfig, Recipe
from wmpo.data.clips import ImitationBatch, RewardBatch, VideoBatch
from wmpo.errors import UserError
from wmpo.grpo import trained_parameters
from wmpo.policies import build_policy
from wmpo.protocols import Policy, RewardModel, Trainable, WorldModel
from wmpo.rewards import build_reward_model
from wmpo.success import FOLDS, chosen_by_rate
from wmpo.types import EnvSpec, Observation
from wmpo.world_models import build_world_model

META = torch.device("meta")
MARGIN = 1.15


class Network(Protocol):
    """What is asked of every network here."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Need:
    """What a stage takes: memory at once, in bytes, and arithmetic in all."""

    stage: str
    parameters: int
    """How many numbers the networks of the stage have."""
    weights: int
    """Weights, and their moving average where one is kept."""
    training: int
    """Gradients and the optimiser's state."""
    activations: int
    """What one step holds beside these at its fullest, batch included."""
    change: str
    """What to lower where it doesn't fit."""
    flop: int
    """Floating-point operations of one step, a product and its sum counted as two."""
    steps: float
    """How many such steps the run takes, where all imagined episodes last to the horizon and none is played again."""

    @property
    def total(self) -> int:
        return round(MARGIN * (self.weights + self.training + self.activations))

    def hours(self, tflops: float) -> float:
        """At a speed in TFLOP/s (10^12 operations per second) that is held throughout."""
        return self.steps * self.flop / tflops / 1e12 / 3600


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


def plan(recipe: Recipe, spec: EnvSpec, policy: Policy | None = None) -> list[Need]:
    """The needs of all stages that train or imagine, in their order; of the recipe's policy where none is given.

    Raises UserError where a family can't go through its steps without numbers.
    """
    chunk, start, rewards = recipe.policy.chunk, recipe.policy.pretrained, recipe.reward
    size = "policy.width" if policy is None and not start else "what is trained (lora_rank)"
    with can_be_planned("policy"):
        if policy is None:
            # What is read from a folder has numbers at first; and once transformers has loaded a network,
            # torch.linspace may overlook the device that was asked for.
            with torch.device("cpu" if start else META):
                policy = build_policy(recipe.policy, spec)
        policy = policy.to(META)
        batch = imitation_batch(spec, recipe.policy.fit.batch_size, chunk)
        steps = recipe.policy.fit.steps + recipe.rounds * recipe.self_imitation.steps
        imitate = training("imitate", policy, batch, recipe.policy.fit, f"policy.fit.batch_size, {size}", steps)
    with can_be_planned("world model"):
        with torch.device(META):
            world_model = build_world_model(recipe.world_model, spec, chunk).to(META)
        worlds = world_model_training(recipe, world_model, spec)
    with can_be_planned("reward model"):
        with torch.device(META):
            reward_model = build_reward_model(rewards, spec).to(META)
        n = rewards.fit.batch_size
        clips = images(next(iter(spec.cameras.values())), n, rewards.clip_length)
        fits = 1 if chosen_by_rate(rewards) else 1 + FOLDS  # one more for each part of the episodes that it hasn't seen
        judge = training(
            "reward model", reward_model, RewardBatch(clips, blank(n), ("",) * n), rewards.fit,
            "reward.fit.batch_size, reward.width", recipe.rounds * fits * rewards.fit.steps,
        )  # fmt: skip
    networks = (policy, world_model, reward_model)
    practices = recipe.rounds + int(recipe.control)
    with can_be_planned("dream"):
        imagine = imagining(recipe, policy, world_model, reward_model, spec, practices)
        update = updating(recipe.grpo, networks, spec, f"grpo.micro_batch, {size}", practices)
    return [imitate, *worlds, judge, imagine, update]


@contextmanager
def can_be_planned(what: str) -> Iterator[None]:
    """Say in a sentence what torch thinks of networks without numbers, or of sizes beyond all machines."""
    try:
        yield
    except (RuntimeError, OverflowError, UserError) as error:
        numbers = "meta tensors" in str(error)
        if isinstance(error, UserError) and not numbers:
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        why = "its networks look at numbers, and plans have none" if numbers else reason
        raise UserError(f"The {what} can't be planned: {why}.") from error


def world_model_training(recipe: Recipe, world_model: WorldModel, spec: EnvSpec) -> list[Need]:
    """Each stage that the world model names; aligning takes as much as further steps of the stage of the same name."""
    settings, needs = recipe.world_model, []
    align = {stage.name: stage.fit for stage in world_model.training_stages(align=True)}
    for stage in world_model.training_stages(align=False):
        fit, again = stage.fit, align.get(stage.name)
        steps = fit.steps + (recipe.rounds * again.steps * again.batch_size / fit.batch_size if again else 0)
        batch = video_batch(spec, fit.batch_size, world_model.context, world_model.chunk)
        name = next((name for name, value in vars(settings).items() if value is fit), "fit")
        change = f"world_model.{name}.batch_size, the world model's sizes"
        needs.append(training(f"world: {stage.name}", stage.module, batch, fit, change, steps))
    return needs


def training(
    stage: str, module: Trainable, batch: object, config: FitConfig, change: str, steps: float | None = None
) -> Need:
    """One step of `training.fit`, or the part of it that is computed at once: forward and backward, then an optimiser
    with its state. `steps`: optimiser steps, if not those of `config`."""
    batch = split(batch, config.accumulate)[-1] if config.accumulate > 1 else batch
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    used: set[nn.Parameter] = set()

    def step() -> None:
        loss, _ = module(batch, torch.default_generator)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        used.update(parameter for parameter, grad in zip(parameters, gradients, strict=True) if grad is not None)

    taken = go_through(torch.enable_grad(), step, [module])
    trained = size_of(used)
    moments = 1 if config.optimizer == "muon" else 2
    activations = max(taken.peak - trained, 0)  # gradients are counted beside the optimiser's state
    weights = held(module) * (2 if config.ema > 0 else 1)
    steps = (config.steps if steps is None else steps) * config.accumulate
    held_gradients = 1 + (config.accumulate > 1)  # those of a part, and the sum of those before
    kept = trained * (held_gradients + moments)
    return Need(stage, count(module), weights, kept, activations, change, taken.flop, steps)


def imagining(
    recipe: Recipe, policy: Policy, world_model: WorldModel, reward_model: RewardModel, spec: EnvSpec, practices: int
) -> Need:
    """One chunk of all episodes that `practise` imagines at once."""
    cfg, chunks = recipe.grpo, -(-spec.horizon // recipe.policy.chunk)
    shards = min(cfg.shards, cfg.groups)
    rows, stride = -(-cfg.groups // shards) * cfg.group_size, recipe.reward.stride
    networks: tuple[Network, ...] = (policy, world_model, reward_model)
    taken = go_through(
        torch.no_grad(), lambda: imagine(policy, world_model, reward_model, spec, rows, stride), networks
    )
    weights = sum(map(held, networks))
    change, steps = "grpo.groups, grpo.group_size", practices * cfg.iterations * chunks * shards
    return Need("practise: imagine", sum(map(count, networks)), weights, 0, taken.peak, change, taken.flop, steps)


def updating(
    cfg: GRPOConfig, networks: tuple[Policy, *tuple[Network, ...]], spec: EnvSpec, change: str, practices: int = 1
) -> Need:
    """One step of `grpo.update`, on a micro-batch of episodes that all last to the horizon."""
    policy = networks[0]
    played = cfg.groups * cfg.group_size
    step_episodes = -(-played // cfg.minibatches)
    episodes = min(cfg.micro_batch, step_episodes)
    seen = observation(spec, episodes * -(-spec.horizon // policy.chunk))
    trace = policy.act(seen, temperature=cfg.temperature, generator=torch.default_generator).trace
    parameters = trained_parameters(policy, cfg.freeze)
    trained = size_of(parameters)
    sums = trained if episodes < step_episodes else 0  # where those of several micro-batches are added up

    def work() -> None:
        log_prob = policy.log_prob(seen, trace, temperature=cfg.temperature)
        torch.autograd.grad(log_prob.sum(), parameters, allow_unused=True)

    taken = go_through(torch.enable_grad(), work, networks)
    activations = max(taken.peak - trained, 0)  # gradients are counted beside the optimiser's two moments
    # The moving average, and the weights that practice began with, for the KL divergence from them.
    kept = trained * (bool(cfg.ema) + bool(cfg.target_kl or cfg.kl_coef))
    weights, steps = sum(map(held, networks)) + kept, practices * cfg.iterations * cfg.epochs * played / episodes
    return Need("practise: update", count(policy), weights, 3 * trained + sums, activations, change, taken.flop, steps)


def imagine(
    policy: Policy, world_model: WorldModel, reward_model: RewardModel, spec: EnvSpec, rows: int, stride: int
) -> None:
    """The second chunk of a dream, when all is in memory; a clip in every `stride` frames is scored."""
    first = observation(spec, rows)
    decision = policy.act(first, temperature=1.0, generator=torch.default_generator)
    memory = world_model.begin(first)
    memory, imagined = world_model.imagine(memory, decision.chunk, torch.default_generator)
    frames, _ = world_model.decode(imagined)
    clips = images(next(iter(spec.cameras.values())), rows, reward_model.clip_length)
    for _ in range(0, policy.chunk, stride):
        reward_model.score(clips, first.instruction)
    del decision, frames


def go_through(
    mode: AbstractContextManager[object], work: Callable[[], object], networks: Iterable[Network] = ()
) -> Alive:
    """Bytes that `work` has alive at its fullest, beside those of the networks, and what it computes."""
    with Alive(networks) as alive, mode:
        work()
    return alive


def count(module: Network) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def held(module: Network) -> int:
    """Bytes of parameters and buffers."""
    return size_of(module.state_dict().values())


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# Batches without numbers


def blank(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def images(size: tuple[int, int], *shape: int) -> Tensor:
    return blank(*shape, 3, *size, dtype=torch.uint8)


def observation(spec: EnvSpec, rows: int) -> Observation:
    pictures = {name: images(size, rows) for name, size in spec.cameras.items()}
    return Observation(pictures, blank(rows, spec.state_dim), ("",) * rows)


def imitation_batch(spec: EnvSpec, rows: int, chunk: int) -> ImitationBatch:
    mask = blank(rows, chunk, dtype=torch.bool)
    return ImitationBatch(observation(spec, rows), blank(rows, chunk, spec.action_dim), mask)


def video_batch(spec: EnvSpec, rows: int, context: int, chunk: int) -> VideoBatch:
    def shots(*frames: int) -> dict[str, Tensor]:
        return {name: images(size, rows, *frames) for name, size in spec.cameras.items()}

    return VideoBatch(
        shots(context),
        shots(),
        shots(chunk),
        blank(rows, chunk, spec.action_dim),
        blank(rows, 1 + chunk, spec.state_dim),
        blank(rows, spec.state_dim),
        blank(rows, spec.action_dim),
    )


def fitting(need: Need, gpu_bytes: float) -> str:
    """What to do about a stage that doesn't fit."""
    if need.total <= gpu_bytes:
        return "fits"
    fraction = max(0.0, gpu_bytes / MARGIN - need.weights - need.training) / max(need.activations, 1)
    if fraction < 0.02:
        return "the networks alone are too large: lower " + need.change.rpartition(", ")[2]
    return f"lower {need.change.partition(', ')[0]} to {fraction:.0%} of it"
