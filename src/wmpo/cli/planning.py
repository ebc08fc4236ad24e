"""How much memory and arithmetic each stage of a recipe will take, before anything is run.

The very networks and steps of the run are gone through with tensors that have shapes but no numbers; what would be
alive is added up, and what would be computed. An allocator's cutting loss and the workspaces of libraries come on top
of memory: `MARGIN`. Arithmetic is that of matrix products, convolutions and attention, which is nearly all of it in
large networks; optimisers, the real environment, the autoencoder's own training and measuring are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wmpo.batches import split
from wmpo.cli.counting import META, Alive, Network, go_through
from wmpo.config import FitConfig, GRPOConfig, Recipe
from wmpo.data.clips import ImitationBatch, RewardBatch, VideoBatch
from wmpo.data.latents import AT_ONCE, Encoder
from wmpo.errors import UserError
from wmpo.grpo import trained_parameters
from wmpo.imagination import ImaginedEnv
from wmpo.nn.precision import computing_in
from wmpo.policies import build_policy
from wmpo.policies.sizes import is_sketched, sketch
from wmpo.protocols import HasUnits, Policy, RewardModel, Trainable, WorldModel
from wmpo.rewards import build_reward_model
from wmpo.success import FOLDS, REPLAYED_AT_ONCE, chosen_by_rate
from wmpo.types import EnvSpec, Observation
from wmpo.world_models import build_world_model
from wmpo.world_models.settings import VideoDiffusionSettings

MARGIN = 1.15


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
    parts: int = 1
    """Steps, one after another, that several processes can share out between them."""
    sent: int = 0
    """Bytes of gradients that they then add up, once for all such parts."""
    shared: int = 0
    """Bytes of weights, gradients and the optimiser's state of which each process can keep a share (`fsdp`)."""
    gathered: int = 0
    """Bytes that it then holds of others' shares at its fullest."""
    fsdp: bool = False
    """Whether they are to share these."""

    @property
    def total(self) -> int:
        return round(MARGIN * (self.weights + self.training + self.activations))

    def total_of(self, processes: int) -> int:
        """What each of so many takes that share what they can."""
        if processes < 2 or not self.shared:
            return self.total
        return round(MARGIN * (self.shared / processes + self.gathered + self.activations))

    def hours(self, tflops: float, processes: int = 1, gigabytes: float = 25.0) -> float:
        """At a speed in TFLOP/s (10^12 operations per second) that is held throughout, by so many processes, between
        which so many GB (10^9 bytes) go in a second."""
        busiest = -(-self.parts // processes)  # parts of the process that has most of them
        computing = self.steps * busiest / self.parts * self.flop / tflops / 1e12
        # A ring: each process sends, and gets, all of it twice but for its own share.
        sending = self.steps / self.parts * 2 * self.sent * (1 - 1 / processes) / gigabytes / 1e9
        return (computing + sending) / 3600


def plan(recipe: Recipe, spec: EnvSpec, policy: Policy | None = None) -> list[Need]:
    """The needs of all stages that train or imagine, in their order; of the recipe's policy where none is given.

    Raises UserError where a family can't go through its steps without numbers.
    """
    chunk, start, rewards = recipe.policy.chunk, recipe.policy.pretrained, recipe.reward
    own = policy is None and not start and not is_sketched(recipe.policy)
    size = "policy.width" if own else "what is trained (lora_rank)"
    with can_be_planned("policy"):
        if policy is None:
            # What is read from a folder has numbers at first; and once transformers has loaded a network,
            # torch.linspace may overlook the device that was asked for.
            if is_sketched(recipe.policy):
                with META:
                    policy = sketch(recipe.policy, spec)
            else:
                with torch.device("cpu" if start else META):
                    policy = build_policy(recipe.policy, spec)
        policy = policy.to(META)
        acting = deciding(recipe, policy, spec)
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
        again = replaying(recipe, world_model, reward_model, spec)
        imagine = imagining(recipe, policy, world_model, reward_model, spec, practices)
        update = updating(recipe.grpo, networks, spec, f"grpo.micro_batch, {size}", practices)
    return [imitate, acting, *worlds, again, judge, imagine, update]


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
        shapes = {name: (3, *size) for name, size in spec.cameras.items()}
        if stage.encoder is not None:
            needs.append(encoding(recipe, stage.encoder, spec))
            shapes = {name: stage.encoder.latent_shape(name) for name in spec.cameras}
        batch = video_batch(spec, fit.batch_size, world_model.context, stage.chunks * world_model.chunk, shapes)
        name = next((name for name, value in vars(settings).items() if value is fit), "fit")
        change = f"world_model.{name}.batch_size, the world model's sizes"
        needs.append(training(f"world: {stage.name}", stage.module, batch, fit, change, steps))
    return needs


def training(
    stage: str, module: Trainable, batch: object, config: FitConfig, change: str, steps: float | None = None
) -> Need:
    """One step of `training.fit`, or the part of it that is computed at once: forward and backward, then an optimiser
    with its state. `steps`: optimiser steps, if not those of `config`."""
    cut = split(batch, config.accumulate)  # into as many parts as it has rows at most
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    used: set[nn.Parameter] = set()

    def step() -> None:
        with computing_in(config.precision, META):
            loss, _ = module(cut[-1], torch.default_generator)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        used.update(parameter for parameter, grad in zip(parameters, gradients, strict=True) if grad is not None)

    taken = go_through(torch.enable_grad(), step, [module])
    trained = size_of(used)
    moments = 1 if config.optimizer == "muon" else 2
    activations = max(taken.peak - trained, 0)  # gradients are counted beside the optimiser's state
    weights = held(module) * (2 if config.ema > 0 else 1)
    steps, parts = (config.steps if steps is None else steps) * len(cut), len(cut)
    held_gradients = 1 + (parts > 1)  # those of a part, and the sum of those before
    kept, shared = trained * (held_gradients + moments), weights + trained * (1 + moments)
    return Need(
        stage, count(module), weights, kept, activations, change, taken.flop, steps, parts, trained, shared,
        gathered(module, used), config.fsdp,
    )  # fmt: skip


def gathered(module: Trainable, trained: AbstractSet[nn.Parameter]) -> int:
    """What `training.fsdp` holds whole: weights and gradients of two units, this one and the next, and of what is in no
    unit. Those of a unit that was gone through twice would come late."""
    units = [set(unit.parameters()) for unit in module.units()] if isinstance(module, HasUnits) else []
    rest = set(module.parameters()).difference(*units)
    held_of, *of_units = (size_of(some) + size_of(some & trained) for some in (rest, *units))
    return held_of + sum(sorted(of_units)[-2:])


def deciding(recipe: Recipe, policy: Policy, spec: EnvSpec) -> Need:
    """One decision of all episodes that are under way at once in the real environment, to collect or to evaluate."""
    cfg, chunks = recipe.evaluate, -(-spec.horizon // policy.chunk)
    rows = min(spec.max_batch, max(recipe.collect.episodes, cfg.episodes))
    seen = observation(spec, rows)
    taken = go_through(
        torch.no_grad(),
        lambda: policy.act(seen, temperature=1.0, generator=torch.default_generator),
        [policy],
    )
    evaluated = (1 + recipe.rounds + int(recipe.control)) * cfg.episodes * cfg.time_factor
    steps = chunks * -(-(recipe.rounds * recipe.collect.episodes + evaluated) // rows)
    change = "how many episodes are under way at once (max_batch of the environment)"
    return Need("collect, evaluate", count(policy), held(policy), 0, taken.peak, change, taken.flop, steps)


def encoding(recipe: Recipe, encoder: Encoder, spec: EnvSpec) -> Need:
    """A few frames, of those that are encoded once."""

    def encode() -> None:
        for name, size in spec.cameras.items():
            encoder.encode_camera(name, images(size, AT_ONCE))

    taken = go_through(torch.no_grad(), encode, [encoder] if isinstance(encoder, nn.Module) else [])
    episodes = recipe.demonstrations.episodes + recipe.rounds * recipe.collect.episodes
    weights = held(encoder) if isinstance(encoder, nn.Module) else 0
    parameters = count(encoder) if isinstance(encoder, nn.Module) else 0
    steps = episodes * (spec.horizon + 1) / AT_ONCE
    return Need("world: latents", parameters, weights, 0, taken.peak, "world_model.codec_rows", taken.flop, steps)


def replaying(recipe: Recipe, world_model: WorldModel, reward_model: RewardModel, spec: EnvSpec) -> Need:
    """One chunk of all episodes that are imagined again at once."""
    tried = recipe.rounds * recipe.collect.episodes
    episodes = tried + min(tried or recipe.demonstrations.episodes, recipe.demonstrations.episodes)
    rows = min(REPLAYED_AT_ONCE, episodes)
    models: tuple[Network, ...] = (world_model, reward_model)
    chunk = world_model.chunk
    taken = dreaming(recipe, None, world_model, reward_model, spec, rows, chunk)
    steps = -(-spec.horizon // chunk) * episodes / rows
    change = "world_model.imagined_rows, world_model.codec_rows"
    return Need("replay", sum(map(count, models)), sum(map(held, models)), 0, taken.peak, change, taken.flop, steps)


def imagining(
    recipe: Recipe, policy: Policy, world_model: WorldModel, reward_model: RewardModel, spec: EnvSpec, practices: int
) -> Need:
    """One chunk of all episodes that `practise` imagines at once."""
    cfg, chunks = recipe.grpo, -(-spec.horizon // recipe.policy.chunk)
    shards = min(cfg.shards, cfg.groups)
    rows, stride = -(-cfg.groups // shards) * cfg.group_size, recipe.reward.stride
    networks: tuple[Network, ...] = (policy, world_model, reward_model)
    taken = dreaming(recipe, policy, world_model, reward_model, spec, rows, stride)
    weights = sum(map(held, networks))
    change, steps = "grpo.groups, grpo.group_size", practices * cfg.iterations * chunks * shards
    parameters = sum(map(count, networks))
    return Need("practise: imagine", parameters, weights, 0, taken.peak, change, taken.flop, steps, shards)


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
    kept, parts = 3 * trained + sums, -(-step_episodes // episodes)
    return Need(
        "practise: update", count(policy), weights, kept, activations, change, taken.flop, steps, parts, trained
    )


def dreaming(
    recipe: Recipe, policy: Policy | None, world_model: WorldModel, reward_model: RewardModel, spec: EnvSpec, rows: int,
    stride: int,
) -> Alive:  # fmt: skip
    """What `imagine` takes. No more than two denoising steps are gone through, since the others hold as much as the
    second; what one of them computes is counted on one video, and multiplied."""
    settings, steps = recipe.world_model, 1
    if isinstance(settings, VideoDiffusionSettings):
        steps = settings.student_steps or settings.sampling_steps

    def taken(few: int, videos: int, policy: Policy | None) -> Alive:
        model = world_model
        if isinstance(settings, VideoDiffusionSettings) and few < steps:
            fewer = replace(settings, sampling_steps=few, student_steps=few if settings.student_steps else 0)
            with torch.device(META):
                model = build_world_model(fewer, spec, world_model.chunk).to(META)
        networks: list[Network] = [model, reward_model, *([] if policy is None else [policy])]
        return go_through(torch.no_grad(), lambda: imagine(policy, model, reward_model, spec, videos, stride), networks)

    found = taken(min(steps, 2), rows, policy)
    if steps > 2:
        found.flop += (steps - 2) * rows * (taken(2, 1, None).flop - taken(1, 1, None).flop)
    return found


def imagine(
    policy: Policy | None, world_model: WorldModel, reward_model: RewardModel, spec: EnvSpec, rows: int, stride: int
) -> None:
    """The second chunk of a dream, when all is in memory; a clip in every `stride` frames is scored. Without a policy
    actions are given, and all frames are looked at."""
    first, chunk = observation(spec, rows), blank(rows, world_model.chunk, spec.action_dim)
    if policy is not None:
        chunk = policy.act(first, temperature=1.0, generator=torch.default_generator).chunk
    dream = ImaginedEnv(
        world_model, reward_model, spec, first, range(rows), generator=torch.default_generator, whole=policy is None
    )
    memory = world_model.begin(first)
    memory, imagined = world_model.imagine(memory, chunk, torch.default_generator)
    frames, _ = dream.decode(imagined)
    clips = images(next(iter(spec.cameras.values())), rows, reward_model.clip_length)
    for _ in range(0, chunk.shape[1], stride):
        reward_model.score(clips, first.instruction)
    del frames


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


def video_batch(
    spec: EnvSpec, rows: int, context: int, chunk: int, shapes: Mapping[str, tuple[int, int, int]]
) -> VideoBatch:
    """Of pictures, or of latents, whose `shapes` have other channels than three."""

    def shots(*frames: int) -> dict[str, Tensor]:
        return {
            name: blank(rows, *frames, *shape, dtype=torch.uint8 if shape[0] == 3 else torch.float16)
            for name, shape in shapes.items()
        }

    action, state = blank(rows, chunk, spec.action_dim), blank(rows, 1 + chunk, spec.state_dim)
    first_state, travel = blank(rows, spec.state_dim), blank(rows, spec.action_dim)
    return VideoBatch(shots(context), shots(), shots(chunk), action, state, first_state, travel)


def fitting(need: Need, gpu_bytes: float, processes: int = 1) -> str:
    """What to do about a stage that doesn't fit each of so many GPUs."""
    total = need.total_of(processes) if need.fsdp else need.total
    if total <= gpu_bytes:
        return "fits"
    if need.total_of(processes) <= gpu_bytes:
        return "set its fit.fsdp"
    fraction = max(0.0, (gpu_bytes - total) / MARGIN + need.activations) / max(need.activations, 1)
    if fraction < 0.02:
        return "the networks alone are too large: lower " + need.change.rpartition(", ")[2]
    return f"lower {need.change.partition(', ')[0]} to {fraction:.0%} of it"
