"""Does it act, imagine and judge as promised?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from math import isfinite
from typing import ParamSpec

import torch
from torch import Tensor

from wmpo.data.info import check_spec
from wmpo.errors import UserError, reason
from wmpo.protocols import Env, Latents, Memory, Policy, RewardModel, WorldModel
from wmpo.types import Decision, EnvSpec, Observation, Outcome

P = ParamSpec("P")
TOLERANCE = 1e-4  # of log-probabilities: the same numbers, up to the order of floating-point sums
CHUNK = 3  # actions per chunk while an environment is tried out


def complains(check: Callable[P, list[str]]) -> Callable[P, list[str]]:
    """An exception of the implementation is a complaint, and the end of the check."""

    @wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> list[str]:
        try:
            return check(*args, **kwargs)
        except UserError as error:
            return [str(error)]
        except (Exception, SystemExit) as error:
            return [f"It raised {reason(error)}."]

    return checked


@complains
def check_env(env: Env, initial_states: Sequence[int] = (0, 1, 2), seed: int = 0) -> list[str]:
    """Complaints about an environment, tried from three or more different initial-state numbers."""
    if len(set(initial_states)) != len(initial_states) or len(initial_states) < 3:
        return ["The check needs at least three different initial-state numbers."]
    spec = env.spec
    complaints = _spec(spec)
    if complaints:
        return complaints
    if spec.max_batch < len(initial_states):
        return _one_at_a_time(env, initial_states[0], seed)
    first = env.reset(initial_states)
    complaints = _observation(first, spec, len(initial_states), "reset")
    if complaints:
        return complaints
    if not equal(first, env.reset(initial_states)):
        complaints.append(
            "Two resets from the same initial-state numbers show different first frames; equal numbers must be equal."
        )
    if not equal(first[[1]], env.reset([initial_states[1], initial_states[0]])[[0]]):
        complaints.append(
            "The first frame of an initial-state number depends on what else is in the batch or on its place there."
        )
    generator = torch.Generator().manual_seed(seed)
    actions = some_actions(spec, len(initial_states), 2 * CHUNK, generator)
    env.reset(initial_states)
    begun = env.step(range(len(initial_states)), actions[:, :CHUNK])
    complaints += _outcome(begun, spec, len(initial_states), CHUNK)
    if complaints:
        return complaints
    # Two of the rows go on; then all of it again.
    rows = [0, 2]
    ended = env.step(rows, actions[rows, CHUNK:])
    complaints += _outcome(ended, spec, len(rows), CHUNK)
    if complaints:
        return complaints
    env.reset(initial_states)
    if not equal(begun, env.step(range(len(initial_states)), actions[:, :CHUNK])):
        complaints.append(
            "The same actions from the same initial-state numbers lead to different frames, states or successes."
        )
    elif not equal(ended, env.step(rows, actions[rows, CHUNK:])):
        complaints.append("After a step with some of the rows, the same actions lead to different outcomes.")
    env.reset(initial_states)
    low, high = _bounds(spec)
    apart = torch.cat([actions[:1, :CHUNK], low + high - actions[1:, :CHUNK]])
    if not equal(row_of(begun, 0), row_of(env.step(range(len(initial_states)), apart), 0)):
        complaints.append("What one row does changes the outcome of another row.")
    return complaints + _lasts(env, initial_states, generator)


def some_actions(spec: EnvSpec, A: int, K: int, generator: torch.Generator) -> Tensor:
    """(A, K, D) anywhere between the bounds."""
    low, high = _bounds(spec)
    return (low + (high - low) * torch.rand(A, K, spec.action_dim, generator=generator)).clamp(low, high)


def _bounds(spec: EnvSpec) -> tuple[Tensor, Tensor]:
    """The least and the greatest action to try, (D,) each; finite ones where the environment takes any."""
    low, high = spec.action_bounds()
    low = torch.where(low.isfinite(), low, (high - 2).clamp(max=-1))
    return low, torch.where(high.isfinite(), high, (low + 2).clamp(min=1))


def _one_at_a_time(env: Env, initial_state: int, seed: int) -> list[str]:
    """What can be asked of a robot, which shows no two equal frames: shapes, types, and an end."""
    complaints = _observation(env.reset([initial_state]), env.spec, 1, "reset")
    generator = torch.Generator().manual_seed(seed)
    low, high = _bounds(env.spec)
    chunk = ((low + high) / 2).expand(1, CHUNK, -1)
    return complaints or _outcome(env.step([0], chunk), env.spec, 1, CHUNK) or _lasts(env, [initial_state], generator)


def _lasts(env: Env, initial_states: Sequence[int], generator: torch.Generator) -> list[str]:
    """Can whole episodes be played, to the horizon?"""
    env.reset(initial_states)
    rows = list(range(len(initial_states)))
    for _ in range(-(-env.spec.horizon // CHUNK)):
        chunk = some_actions(env.spec, len(rows), CHUNK, generator)
        outcome = env.step(rows, chunk)
        complaints = _outcome(outcome, env.spec, len(rows), CHUNK)
        rows = [row for row, done in zip(rows, outcome.done.tolist(), strict=True) if not done]
        if complaints or not rows:
            return complaints
    return []


@complains
def check_policy(policy: Policy, observation: Observation, action_dim: int, seed: int = 0) -> list[str]:
    """Complaints about a policy, tried on an observation of at least two episodes."""
    if len(observation) < 2:
        return ["The check needs an observation of at least two episodes."]
    B, K = len(observation), policy.chunk
    if not isinstance(K, int) or K < 1:
        return [f"chunk must be a whole number of at least 1, not {K!r}."]
    complaints: list[str] = []
    for temperature in (0.0, 1.0, 1.6):
        decision = policy.act(observation, temperature=temperature, generator=_generator(observation, seed))
        complaints += [f"At temperature {temperature:g}: {text}" for text in _decision(decision, B, K, action_dim)]
        if complaints:
            return complaints
        again = policy.act(observation, temperature=temperature, generator=_generator(observation, seed))
        if not torch.equal(decision.chunk, again.chunk):
            way = "the greedy choice differs" if temperature == 0 else "equal generators give different choices"
            complaints.append(f"At temperature {temperature:g}: {way} from one call to the next.")
        if temperature:
            complaints += _log_prob(policy, observation, decision, temperature)
    return complaints


def _decision(decision: Decision, B: int, K: int, D: int) -> list[str]:
    complaints = _tensor("chunk", decision.chunk, (B, K, D), torch.float32)
    if decision.log_prob.ndim != 3 or decision.log_prob.shape[:2] != (B, K):
        complaints.append(f"log_prob has the shape {tuple(decision.log_prob.shape)}; it must be ({B}, {K}, U).")
    elif not torch.isfinite(decision.log_prob).all():
        complaints.append("log_prob holds NaN or infinity.")
    elif decision.log_prob.max() > TOLERANCE:
        complaints.append(
            "log_prob is above 0: more likely than certain. Continuous densities must be in units of bins."
        )
    if len(decision.trace) != B:
        complaints.append(f"trace has {len(decision.trace)} rows for {B} observations.")
    if decision.chunk.requires_grad or decision.log_prob.requires_grad:
        complaints.append("act keeps gradients; decide under torch.no_grad().")
    return complaints


def _log_prob(policy: Policy, observation: Observation, decision: Decision, temperature: float) -> list[str]:
    complaints = []
    asked = policy.log_prob(observation, decision.trace, temperature=temperature)
    if asked.shape != decision.log_prob.shape:
        return [f"log_prob answers in the shape {tuple(asked.shape)}, act in {tuple(decision.log_prob.shape)}."]
    error = float((asked.detach() - decision.log_prob).abs().max())
    if not error <= TOLERANCE:
        complaints.append(
            f"At temperature {temperature:g}: log_prob differs by up to {error:.2g} from that at sampling; "
            "look for dropout, for another temperature, or for batch statistics."
        )
    if not asked.requires_grad:
        complaints.append("log_prob has no gradient, so that nothing can be learned.")
    elif len(observation) > 1:
        one = policy.log_prob(observation[[1]], decision.trace[1:2], temperature=temperature)
        if not float((one.detach() - asked.detach()[1:2]).abs().max()) <= TOLERANCE:
            complaints.append("The log-probability of one decision depends on what else is in the batch.")
    return complaints


@complains
def check_world_model(
    world_model: WorldModel, first: Observation, chunk_BKD: Tensor, spec: EnvSpec, seed: int = 0
) -> list[str]:
    """Complaints about a world model, tried on the first frames and one chunk of actions of at least three episodes."""
    B, K, _ = chunk_BKD.shape
    if B < 3 or len(first) != B:
        return ["The check needs first frames and actions of at least three episodes."]
    rows = list(range(B))

    def dream(start: Memory, chunk: Tensor, number: int) -> tuple[Memory, Latents]:
        return world_model.imagine(start, chunk, _generator(first, seed + number))

    memory = world_model.begin(first)
    memory_1, latents_1 = dream(memory, chunk_BKD, 0)
    frames_1 = world_model.decode(latents_1)
    complaints = _frames(frames_1, spec, B, K)
    if complaints:
        return complaints
    if not _same(frames_1, world_model.decode(dream(world_model.begin(first), chunk_BKD, 0)[1])):
        complaints.append("Equal generators give different videos: draw all random numbers from the given generator.")
        return complaints
    if not _same(frames_1, world_model.decode(dream(memory, chunk_BKD, 0)[1])):
        complaints.append("imagine changes the memory that it is given; it must return a new one.")
        return complaints
    memory_2, _ = dream(memory_1, chunk_BKD, 1)
    going_on = world_model.decode(dream(memory_2, chunk_BKD, 2)[1])
    whole = world_model.decode(dream(world_model.select(memory_2, rows), chunk_BKD, 2)[1])
    if not _same(going_on, whole):
        complaints.append("select with all rows changes the memory.")
    # The first row keeps its place, and with it its noise; the others don't.
    swapped = world_model.decode(dream(world_model.select(memory_2, [0, *rows[:0:-1]]), chunk_BKD, 2)[1])
    if not _same(_first_row(going_on), _first_row(swapped), TOLERANCE_PIXELS):
        complaints.append("select of rows in another order changes a row that kept its place.")
    alone = world_model.select(memory_2, [B - 1])
    twice = world_model.select(world_model.select(memory_2, rows[1:]), [B - 2])
    once_on, twice_on = (world_model.decode(dream(kept, chunk_BKD[-1:], 2)[1]) for kept in (alone, twice))
    if len(next(iter(once_on[0].values()))) != 1:
        complaints.append("select of one row leaves more than one video.")
    elif not _same(once_on, twice_on):
        complaints.append(
            "select twice is not the same as select once: row numbers count within the memory that is given."
        )
    return complaints


TOLERANCE_PIXELS = 2  # sums in another order may round a pixel to its neighbour


def _frames(frames: tuple[dict[str, Tensor], Tensor], spec: EnvSpec, B: int, K: int) -> list[str]:
    images, state = frames
    complaints = _images(images, spec, (B, K), "decode")
    if state.shape[:2] != (B, K):
        complaints.append(f"decode gives states of the shape {tuple(state.shape)}; it must be ({B}, {K}, S).")
    return complaints


@complains
def check_reward_model(reward_model: RewardModel, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> list[str]:
    """Complaints about a reward model, tried on at least two clips of its length."""
    B, L = clips_BLCHW.shape[:2]
    if not isinstance(reward_model.clip_length, int) or reward_model.clip_length < 1:
        return [f"clip_length must be a whole number of at least 1, not {reward_model.clip_length!r}."]
    if B < 2 or len(instruction) != B or reward_model.clip_length != L or clips_BLCHW.dtype != torch.uint8:
        return [f"The check needs two or more uint8 clips of {reward_model.clip_length} frames, a sentence for each."]
    complaints = []
    if not isfinite(reward_model.threshold):
        complaints.append(
            f"threshold is {reward_model.threshold}; it must be a finite number, a logit as the scores are."
        )
    before = clips_BLCHW.clone()
    score = reward_model.score(clips_BLCHW, instruction)
    complaints += _tensor("score", score, (B,), torch.float32)
    if complaints:
        return complaints
    if not torch.equal(before, clips_BLCHW):
        complaints.append("score changes the clips that it is given.")
    if score.requires_grad:
        complaints.append("score keeps gradients; judge under torch.no_grad().")
    if not torch.equal(score, reward_model.score(before, instruction)):
        complaints.append("The same clips get different scores from one call to the next; look for dropout.")
    alone = torch.cat([reward_model.score(before[i : i + 1], instruction[i : i + 1]) for i in range(B)])
    if not float((alone - score).abs().max()) <= TOLERANCE:
        complaints.append("The score of a clip depends on what else is in the batch.")
    return complaints


def _spec(spec: EnvSpec) -> list[str]:
    try:
        check_spec(spec, "spec")  # as a store of its episodes would
    except UserError as error:
        return [str(error)]
    return []


def _observation(seen: Observation, spec: EnvSpec, B: int, who: str) -> list[str]:
    complaints = _images(seen.images, spec, (B,), who)
    complaints += _tensor(f"the state from {who}", seen.state, (B, spec.state_dim), torch.float32)
    if len(seen.instruction) != B:
        complaints.append(f"{who} gives {len(seen.instruction)} instructions for {B} episodes.")
    return complaints


def _outcome(outcome: Outcome, spec: EnvSpec, A: int, K: int) -> list[str]:
    complaints = _images(outcome.images, spec, (A, K), "step")
    complaints += _tensor("the state from step", outcome.state, (A, K, spec.state_dim), torch.float32)
    complaints += _tensor("success", outcome.success, (A, K), torch.bool)
    return complaints + _tensor("done", outcome.done, (A,), torch.bool)


def _images(images: Mapping[str, Tensor], spec: EnvSpec, leading: tuple[int, ...], who: str) -> list[str]:
    if set(images) != set(spec.cameras):
        return [f"{who} gives the cameras {sorted(images)}, but spec names {sorted(spec.cameras)}."]
    complaints = []
    for name, (height, width) in spec.cameras.items():
        complaints += _tensor(f"camera {name!r} from {who}", images[name], (*leading, 3, height, width), torch.uint8)
    return complaints


def _tensor(name: str, value: object, shape: tuple[int, ...], dtype: torch.dtype) -> list[str]:
    if not isinstance(value, Tensor):
        return [f"{name} is a {type(value).__name__}; it must be a tensor."]
    if tuple(value.shape) != shape:
        return [f"{name} has the shape {tuple(value.shape)}; it must be {shape}."]
    if value.dtype != dtype:
        return [f"{name} has the type {value.dtype}; it must be {dtype}."]
    if dtype.is_floating_point and not torch.isfinite(value).all():
        return [f"{name} holds NaN or infinity."]
    return []


def _parts(value: Observation | Outcome) -> list[object]:
    """All tensors and sentences of an observation or outcome, in one order."""
    named = dict(vars(value))
    images = named.pop("images")
    return [images[name] for name in sorted(images)] + [named[name] for name in sorted(named)]


def equal(one: Observation | Outcome, other: Observation | Outcome) -> bool:
    pairs = zip(_parts(one), _parts(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b for a, b in pairs)


def row_of(outcome: Outcome, row: int) -> Outcome:
    images = {name: image[row : row + 1] for name, image in outcome.images.items()}
    rows = slice(row, row + 1)
    return Outcome(images, outcome.state[rows], outcome.success[rows], outcome.done[rows])


def _same(one: tuple[dict[str, Tensor], Tensor], other: tuple[dict[str, Tensor], Tensor], pixels: int = 0) -> bool:
    if any(one[0][name].shape != other[0][name].shape for name in one[0]):
        return False
    return all(int((one[0][name].int() - other[0][name].int()).abs().max()) <= pixels for name in one[0])


def _first_row(frames: tuple[dict[str, Tensor], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    return {name: image[:1] for name, image in frames[0].items()}, frames[1][:1]


def _generator(observation: Observation, seed: int) -> torch.Generator:
    """On the device of the pictures, where models draw their noise."""
    device = next(iter(observation.images.values())).device
    return torch.Generator(device=device).manual_seed(seed)
