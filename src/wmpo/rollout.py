"""The one loop in which a policy meets an environment: to collect, to imagine and to evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from wmpo.protocols import CountsEvents, Env, LimitsActions, Policy
from wmpo.types import Decision, Episode, Observation, Outcome


@dataclass
class Rollout:
    """N episodes of at most M chunks: what was seen at each decision, what was decided, how it ended.

    Rows of a finished episode hold zeros; `mask` says which actions count.
    """

    initial_states: list[int]
    images: dict[str, Tensor]  # camera -> (N, M, C, H, W) uint8, frames at the decisions
    state: Tensor  # (N, M, S)
    instruction: tuple[str, ...]
    trace: Tensor  # (N, M, ...) of the policy's decisions
    log_prob: Tensor  # (N, M, K, U)
    mask: Tensor  # (N, M, K) bool, actions up to the first success
    success: Tensor  # (N,) bool
    finish_step: Tensor  # (N,) frame of the first success; the number of actions where there was none
    length: Tensor  # (N,) actions taken
    episodes: list[Episode]  # whole episodes, where they were recorded

    def __len__(self) -> int:
        return len(self.initial_states)

    def decisions(self, rows: Tensor) -> tuple[Observation, Tensor, Tensor]:
        """All decisions that count in the given episodes: (observation, trace, index (n, 2) of episode and chunk)."""
        index = self.mask[rows].any(-1).nonzero()  # (n, 2)
        episode, chunk = rows[index[:, 0]], index[:, 1]
        images = {name: image[episode, chunk] for name, image in self.images.items()}
        sentences = tuple(self.instruction[i] for i in episode.tolist())
        return Observation(images, self.state[episode, chunk], sentences), self.trace[episode, chunk], index

    @staticmethod
    def cat(parts: Sequence[Rollout]) -> Rollout:
        first = parts[0]
        return Rollout(
            initial_states=[initial_state for part in parts for initial_state in part.initial_states],
            images={name: torch.cat([part.images[name] for part in parts]) for name in first.images},
            instruction=tuple(sentence for part in parts for sentence in part.instruction),
            episodes=[episode for part in parts for episode in part.episodes],
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS},
        )

    def select(self, rows: Tensor) -> Rollout:
        """The rollout of some of the episodes."""
        keep = rows.tolist()
        return replace(
            self,
            initial_states=[self.initial_states[i] for i in keep],
            images={name: image[rows] for name, image in self.images.items()},
            instruction=tuple(self.instruction[i] for i in keep),
            episodes=[self.episodes[i] for i in keep] if self.episodes else [],
            **{name: getattr(self, name)[rows] for name in TENSORS},
        )


TENSORS = ("state", "trace", "log_prob", "mask", "success", "finish_step", "length")


def rollout(
    env: Env,
    policy: Policy,
    initial_states: Sequence[int],
    *,
    temperature: float,
    generator: torch.Generator,
    record: str | None = None,
    task: Callable[[int], str] = lambda initial_state: "",
    on_episode: Callable[[Episode], None] | None = None,
    horizon: int | None = None,
) -> Rollout:
    """Play one episode from each initial_state until all are done or the horizon is reached, by default that of `env`.

    `record` keeps whole episodes and names who acted, and `task` names the task of each initial-state number for them;
    `on_episode` is called with each as soon as it has ended. What the environment counts, if it does, is their meta.
    Episodes that are done cost nothing more.
    """
    observation = env.reset(initial_states)
    instruction = observation.instruction
    tape = _Tape(initial_states, observation, task, record) if record is not None else None
    N, K = len(initial_states), policy.chunk
    horizon = horizon or env.spec.horizon
    chunks = -(-horizon // K)
    active = list(range(N))
    result: Rollout | None = None
    for m in range(chunks):
        decision = policy.act(observation, temperature=temperature, generator=generator)
        outcome = env.step(active, decision.chunk).first(horizon - m * K)  # a chunk may end after the horizon
        if result is None:
            result = _empty(initial_states, chunks, observation, decision)
        _write(result, m, active, observation, decision, outcome)
        keep = (~outcome.done).nonzero().squeeze(1).tolist()
        if tape is not None:
            tape.add(active, env.executed if isinstance(env, LimitsActions) else decision.chunk, outcome)
            going_on = set(keep) if m < chunks - 1 else set()
            ended = [row for place, row in enumerate(active) if place not in going_on]
            for row in ended:
                episode = tape.episode(row, env.events[row] if isinstance(env, CountsEvents) else {})
                result.episodes.append(episode)
                if on_episode is not None:
                    on_episode(episode)
        if not keep:
            break
        sentences = tuple(instruction[row] for row in active)
        active = [active[i] for i in keep]
        observation = outcome.last(sentences)[keep]
    assert result is not None
    if tape is not None:
        result.episodes = tape.in_order(result.episodes)
    return result


def _empty(initial_states: Sequence[int], chunks: int, observation: Observation, decision: Decision) -> Rollout:
    N = len(initial_states)

    def blank(like: Tensor) -> Tensor:
        return like.new_zeros((N, chunks, *like.shape[1:]))

    return Rollout(
        initial_states=list(initial_states),
        images={name: blank(image) for name, image in observation.images.items()},
        state=blank(observation.state),
        instruction=observation.instruction,
        trace=blank(decision.trace),
        log_prob=blank(decision.log_prob),
        mask=torch.zeros(N, chunks, decision.log_prob.shape[1], dtype=torch.bool),
        success=torch.zeros(N, dtype=torch.bool),
        finish_step=torch.zeros(N, dtype=torch.long),
        length=torch.zeros(N, dtype=torch.long),
        episodes=[],
    )


def _write(
    result: Rollout, m: int, active: list[int], observation: Observation, decision: Decision, outcome: Outcome
) -> None:
    rows = torch.tensor(active)
    for name, image in observation.images.items():
        result.images[name][rows, m] = image
    result.state[rows, m] = observation.state
    result.trace[rows, m] = decision.trace
    result.log_prob[rows, m] = decision.log_prob
    hit = outcome.success.cpu()  # (A, K), or fewer where the horizon is reached
    K = hit.shape[1]
    before = result.success[rows]
    # The action that leads to the first successful frame still counts; what comes after doesn't.
    earlier = (hit.cumsum(1) - hit.long()) > 0
    mask = ~(earlier | before[:, None])
    result.mask[rows, m, :K] = mask
    result.success[rows] = before | hit.any(1)
    result.finish_step[rows] += mask.sum(1)
    result.length[rows] += K


class _Tape:
    """Whole episodes, as they unfold."""

    def __init__(
        self, initial_states: Sequence[int], first: Observation, task: Callable[[int], str], source: str
    ) -> None:
        self.initial_states, self.instruction = list(initial_states), first.instruction
        self.task, self.source = task, source
        self.frames = [
            {name: [image[i : i + 1].cpu().numpy()] for name, image in first.images.items()} for i in range(len(first))
        ]
        self.state = [[first.state[i : i + 1].cpu().numpy()] for i in range(len(first))]
        self.actions: list[list[np.ndarray]] = [[] for _ in range(len(first))]
        self.success: list[list[np.ndarray]] = [[np.zeros(1, bool)] for _ in range(len(first))]
        self.ended: list[int] = []

    def add(self, active: list[int], chunk_AKD: Tensor, outcome: Outcome) -> None:
        chunk = chunk_AKD.cpu().numpy()
        for i, row in enumerate(active):
            for name, image in outcome.images.items():
                self.frames[row][name].append(image[i].cpu().numpy())
            self.state[row].append(outcome.state[i].cpu().numpy())
            self.actions[row].append(chunk[i, : outcome.success.shape[1]])
            self.success[row].append(outcome.success[i].cpu().numpy())

    def episode(self, row: int, events: Mapping[str, int]) -> Episode:
        """The episode of a row that has ended; the tape forgets its frames."""
        self.ended.append(row)
        frames, self.frames[row] = self.frames[row], {}
        return Episode(
            images={
                name: np.ascontiguousarray(np.concatenate(parts).transpose(0, 2, 3, 1))
                for name, parts in frames.items()
            },
            state=np.concatenate(self.state[row]),
            actions=np.concatenate(self.actions[row]).astype(np.float32),
            success=np.concatenate(self.success[row]),
            instruction=self.instruction[row],
            initial_state=self.initial_states[row],
            task=self.task(self.initial_states[row]),
            source=self.source,
            meta={name: str(count) for name, count in events.items()},
        )

    def in_order(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Episodes in the order of their rows, from that in which they ended."""
        return [episode for _, episode in sorted(zip(self.ended, episodes, strict=True), key=lambda pair: pair[0])]
