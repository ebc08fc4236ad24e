"""Imagination is just another environment: a world model plays the simulator, a reward model the referee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from wmpo.protocols import DecodesSome, Latents, Memory, RewardModel, WorldModel
from wmpo.training.parallel import parallel_map
from wmpo.types import EnvSpec, Episode, Observation, Outcome


class ImaginedEnv:
    """Fulfils `wmpo.protocols.Env`. Each episode begins with a real frame; everything after it is imagined.

    Latents stay on the device between chunks. Only frames that somebody looks at are scored: clips end at every
    `stride`-th frame of a chunk, and an episode is done as soon as one clip scores above the threshold.

    Departures from the reference code: episodes that have succeeded stop (it always rolls to the horizon), and clips
    are scored from the first frame on (it never scores the first ~108 frames), the first frame repeated where a clip
    would begin before it.
    """

    def __init__(
        self,
        world_model: WorldModel,
        reward_model: RewardModel,
        spec: EnvSpec,
        first_frames: Observation,
        initial_states: Sequence[int],
        *,
        generator: torch.Generator,
        stride: int = 1,
        stop: bool = True,
        whole: bool = True,
    ) -> None:
        """`first_frames[i]` is the real first frame of initial-state number `initial_states[i]`.

        `stop=False` goes on to the horizon whatever the score, to look at a whole replay. A dream draws its random
        numbers from `generator`, so that its owner can make them repeatable. `whole=False`: of the cameras that the
        reward model doesn't watch, an outcome shows the last frame of a chunk alone, at which the policy decides; such
        episodes can't be recorded.
        """
        self.spec = spec
        self.world_model = world_model
        self.reward_model = reward_model
        self.first_frames = first_frames
        self.row_of_start = {initial_state: row for row, initial_state in enumerate(initial_states)}
        self.stride = stride
        self.stop = stop
        self.whole = whole
        self.generator = generator
        self.camera = next(iter(spec.cameras))  # the reward model watches the first camera

    def reset(self, initial_states: Sequence[int]) -> Observation:
        first = self.first_frames[[self.row_of_start[initial_state] for initial_state in initial_states]]
        self.instruction = first.instruction
        self.memory: Memory = self.world_model.begin(first)
        self.memory_rows = list(range(len(initial_states)))  # which episode each row of the memory belongs to
        self.steps = torch.zeros(len(initial_states), dtype=torch.long)
        image = first.images[self.camera]
        # The last L-1 frames of every episode, so that clips may reach back across chunks.
        self.recent = image[:, None].expand(-1, self.reward_model.clip_length - 1, -1, -1, -1).clone()
        self.scores: list[Tensor] = []  # one (B, K) tensor per chunk, NaN where nothing was scored
        return first

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        rows = list(rows)
        if rows != self.memory_rows:
            place = {row: i for i, row in enumerate(self.memory_rows)}
            self.memory = self.world_model.select(self.memory, [place[row] for row in rows])
            self.memory_rows = rows
        self.memory, latents = self.world_model.imagine(self.memory, chunk_AKD, self.generator)
        images, state = self.decode(latents)
        index = torch.as_tensor(rows)
        time_AK = self.steps[index][:, None] + torch.arange(1, chunk_AKD.shape[1] + 1)
        success = self._judge(index, images[self.camera], time_AK <= self.spec.horizon)
        self.steps[index] += chunk_AKD.shape[1]
        done = self.steps[index].to(success.device) >= self.spec.horizon
        if self.stop:
            done |= success.any(1)
        return Outcome(images, state, success, done)

    def decode(self, latents: Latents) -> tuple[dict[str, Tensor], Tensor]:
        """Frames that somebody looks at, and states, see `WorldModel.decode`."""
        if self.whole or not isinstance(self.world_model, DecodesSome):
            return self.world_model.decode(latents)
        seen = {name: slice(None) if name == self.camera else slice(-1, None) for name in self.spec.cameras}
        return self.world_model.decode_some(latents, seen)

    def _judge(self, index: Tensor, frames_AKCHW: Tensor, counts_AK: Tensor) -> Tensor:
        """(A, K) bool: the clip that ends at this frame shows success, or an earlier one of the chunk did.

        Frames beyond the horizon don't count: a chunk may end after it.
        """
        K = frames_AKCHW.shape[1]
        L = self.reward_model.clip_length
        video = torch.cat([self.recent[index], frames_AKCHW], dim=1)  # (A, L-1+K, C, H, W)
        self.recent[index] = video[:, K:]
        scores = torch.full((len(self.recent), K), float("nan"))
        sentences = tuple(self.instruction[i] for i in index.tolist())
        ends = list(range(K - 1, -1, -self.stride))  # counted back from the chunk's end, which is always scored
        clips = [video[:, end : end + L] for end in ends]
        found = parallel_map(self.reward_model.score, clips, [sentences] * len(ends), device=video.device)
        for end, score in zip(ends, found, strict=True):
            scores[index, end] = score.cpu().where(counts_AK[:, end], torch.nan)
        self.scores.append(scores)
        hit = scores[index] > self.reward_model.threshold  # both logits; NaN compares False
        return (hit.cumsum(1) > 0).to(frames_AKCHW.device)

    def best_scores(self) -> Tensor:
        """(B,) the highest score, a logit, that each episode has had so far; -inf before its first."""
        scores = torch.cat(self.scores, dim=1)
        return scores.masked_fill(scores.isnan(), -torch.inf).amax(1)

    def close(self) -> None:
        """Nothing to close; the models belong to the caller."""


@dataclass
class Replay:
    """Real actions, imagined anew from the real first frame."""

    episodes: list[Episode]  # pictures of all cameras and states are imagined but for frame 0; the rest is as it was
    scores: list[np.ndarray]  # per episode (T+1,) logits, NaN where nothing was scored

    def select(self, rows: Sequence[int]) -> Replay:
        """Of some of the episodes."""
        return Replay([self.episodes[row] for row in rows], [self.scores[row] for row in rows])

    def best_scores(self) -> Tensor:
        """(N,) highest score of each episode: above the threshold means an imagined success."""
        return torch.tensor([float(np.nanmax(score)) for score in self.scores])


def first_frames_of(episodes: Sequence[Episode], spec: EnvSpec) -> Observation:
    """The real first frames of recorded episodes."""
    images = {
        name: torch.from_numpy(np.stack([episode.images[name][0] for episode in episodes])).permute(0, 3, 1, 2)
        for name in spec.cameras
    }
    state = torch.from_numpy(np.stack([episode.state[0] for episode in episodes]))
    return Observation(images, state, tuple(episode.instruction for episode in episodes))


def replay(
    world_model: WorldModel,
    reward_model: RewardModel,
    spec: EnvSpec,
    episodes: Sequence[Episode],
    *,
    chunk: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
    stride: int = 1,
) -> Replay:
    """Imagine the actions of recorded episodes, open loop, to the length that each had in reality."""
    first = first_frames_of(episodes, spec).to(device)
    generator = torch.Generator(device=device).manual_seed(seed)
    numbers = range(len(episodes))
    dream = ImaginedEnv(world_model, reward_model, spec, first, numbers, generator=generator, stride=stride, stop=False)
    dream.reset(numbers)
    images = [{name: [episode.images[name][:1]] for name in spec.cameras} for episode in episodes]
    state = [[episode.state[:1]] for episode in episodes]
    scores = [[np.full(1, np.nan)] for _ in episodes]
    for begin in range(0, max(episode.length for episode in episodes), chunk):
        rows = [i for i, episode in enumerate(episodes) if episode.length > begin]
        actions = np.stack([_padded(episodes[i].actions[begin : begin + chunk], chunk) for i in rows])
        outcome = dream.step(rows, torch.from_numpy(actions).to(device))
        frames = {name: video.permute(0, 1, 3, 4, 2).cpu().numpy() for name, video in outcome.images.items()}
        states = outcome.state.cpu().numpy()
        for place, i in enumerate(rows):
            left = min(chunk, episodes[i].length - begin)
            for name, parts in images[i].items():
                parts.append(frames[name][place, :left])
            state[i].append(states[place, :left])
            scores[i].append(dream.scores[-1][i, :left].numpy())
    dreamt = [
        replace(
            episode,
            images={name: np.concatenate(parts) for name, parts in videos.items()},
            state=np.concatenate(states),
            source="dream",
        )
        for episode, videos, states in zip(episodes, images, state, strict=True)
    ]
    return Replay(dreamt, [np.concatenate(parts) for parts in scores])


def _padded(actions: np.ndarray, chunk: int) -> np.ndarray:
    """(chunk, D): the last action repeated where the episode ends inside a chunk."""
    return np.concatenate([actions, np.repeat(actions[-1:], chunk - len(actions), axis=0)])
