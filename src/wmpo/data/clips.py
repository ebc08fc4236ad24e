"""Batches of clips from decoded episodes.

Samplers have no state: the batch of a step depends on (seed, step) alone, so training that stops and resumes sees
the same batches as training that doesn't. Everything is one vectorised gather per tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wmpo.data.cache import FrameCache
from wmpo.errors import UserError
from wmpo.types import Observation

MARGIN = 3  # frames before the first success that are neither


@dataclass(frozen=True)
class VideoBatch:
    """B moments of video: what came before, the K actions then taken, and what followed."""

    context: dict[str, Tensor]  # camera -> (B, c, C, H, W) uint8, or latents (`VideoClips.encoded`), up to this frame
    anchor: dict[str, Tensor]  # camera -> (B, C, H, W) uint8, the episode's first frame
    future: dict[str, Tensor]  # camera -> (B, K, C, H, W) uint8, the frames after each action
    action: Tensor  # (B, K, D) float32
    state: Tensor  # (B, 1+K, S) float32, now and at the future frames
    first_state: Tensor  # (B, S) float32
    travel: Tensor  # (B, D) float32, the sum of all actions up to now


@dataclass(frozen=True)
class RewardBatch:
    """B clips of the first camera: half end in success, half don't."""

    clips: Tensor  # (B, L, C, H, W) uint8
    label: Tensor  # (B,) float32, 1 where the last frame shows the accomplished task
    instruction: tuple[str, ...]


@dataclass(frozen=True)
class ImitationBatch:
    """B frames with what should be done next."""

    observation: Observation
    action: Tensor  # (B, K, D) float32: the labels, the last one repeated beyond the end
    mask: Tensor  # (B, K) bool, False beyond the end of the episode


class Spans:
    """A uniform choice among the frames of many spans, each a run of frames inside one episode."""

    def __init__(self, episode: np.ndarray, begin: np.ndarray, count: np.ndarray) -> None:
        """For each span its episode, its first frame counted in the store, and how many frames (0 or less: none)."""
        kept = count > 0
        self.episode, self.begin = episode[kept], begin[kept]
        self.ends = np.cumsum(count[kept])
        self.total = int(self.ends[-1]) if len(self.ends) else 0

    def draw(self, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """n draws: (episodes, frames)."""
        ticket = generator.integers(self.total, size=n)
        span = np.searchsorted(self.ends, ticket, side="right")
        before = np.concatenate([[0], self.ends[:-1]])[span]
        return self.episode[span], self.begin[span] + ticket - before


class VideoClips:
    """Moments from which K actions follow, uniformly over all such moments of the given episodes.

    All pictures of a moment are moved by up to `shift` pixels, at random: places are then not learned by heart.
    """

    def __init__(
        self, cache: FrameCache, episodes: Sequence[int], context: int, chunk: int, shift: int = 0, chunks: int = 1
    ) -> None:
        chunk, what = chunk * chunks, "one chunk" if chunks == 1 else f"{chunks} chunks"
        self.cache, self.images, self.context, self.chunk = cache, cache.images, context, chunk
        self.shift, self.key = shift, ""
        self.episodes = episodes
        chosen = _chosen(cache, episodes)
        self.spans = Spans(chosen, cache.first[chosen], cache.length[chosen] - chunk + 1)
        self.sums = np.cumsum(cache.action, axis=0, dtype=np.float64) - cache.action  # of all actions before a frame
        if not self.spans.total:
            raise UserError(
                f"None of the {len(chosen)} episodes has the {chunk} actions of {what}: choose a shorter chunk, "
                "or collect longer episodes."
            )

    def lasting(self, chunks: int) -> VideoClips:
        """The moments from which so many chunks follow."""
        if chunks == 1:
            return self
        return VideoClips(self.cache, self.episodes, self.context, self.chunk, self.shift, chunks)

    def encoded(self, latents: Mapping[str, np.ndarray], key: str) -> VideoClips:
        """The same moments, of which batches show latents, camera -> (frames, c, h, w) float16, in place of pictures;
        `key` tells the encoder. Pictures that are moved have other latents: raises ValueError."""
        if self.shift:
            raise ValueError("pictures that are moved can't be encoded beforehand")
        clips = copy.copy(self)
        clips.images, clips.key = dict(latents), key
        return clips

    def digest(self) -> str:
        """See `FrameCache.digest`."""
        shown = f", moved by {self.shift}" if self.shift else f", encoded by {self.key}" if self.key else ""
        return f"{self.cache.digest(self.episodes)}{shown}"

    def sample(self, batch_size: int, seed: int, step: int) -> VideoBatch:
        cache = self.cache
        generator = _generator(seed, step)
        episode, now = self.spans.draw(batch_size, generator)
        first = cache.first[episode]
        # Before frame 0 there is only frame 0, as at the beginning of imagination.
        context = np.maximum(now[:, None] + np.arange(1 - self.context, 1), first[:, None])
        steps = now[:, None] + np.arange(self.chunk)
        rows = np.concatenate([context, first[:, None], steps + 1], axis=1)
        images = {
            name: torch.from_numpy(moved(np.take(frames, rows, axis=0), self.shift, generator))
            for name, frames in self.images.items()
        }
        c = self.context
        return VideoBatch(
            {name: video[:, :c] for name, video in images.items()},
            {name: video[:, c] for name, video in images.items()},
            {name: video[:, c + 1 :] for name, video in images.items()},
            _gather(cache.action, steps),
            _gather(cache.state, now[:, None] + np.arange(self.chunk + 1)),
            _gather(cache.state, first),
            torch.from_numpy((self.sums[now] - self.sums[first]).astype(np.float32)),
        )


class RewardClips:
    """Clips of the first camera for the success classifier, as many that end in success as not.

    Positives end on a frame of success, the lingering ones included. Negatives end anywhere in a failure, or at
    least `MARGIN` frames before the first success. `hard_share` of the negatives end in the last third of these frames,
    where they look most like success. All pictures of a clip are moved by up to `shift` pixels, at random.
    """

    def __init__(
        self, cache: FrameCache, episodes: Sequence[int], clip_length: int, hard_share: float = 0.5, shift: int = 0
    ) -> None:
        self.cache, self.clip_length, self.hard_share, self.shift = cache, clip_length, hard_share, shift
        self.frames = next(iter(cache.images.values()))
        chosen = _chosen(cache, episodes)
        frames = cache.frames_of(chosen)
        owner = np.repeat(chosen, cache.length[chosen] + 1)
        hits = cache.success[frames]
        self.positive = Spans(owner[hits], frames[hits], np.ones(int(hits.sum()), np.int64))
        # The number of frames that show no success: all of a failure's, those before the margin of a success.
        quiet = cache.length[chosen] + 1
        first_hit = np.full(len(cache), -1)
        hit_owner, place = np.unique(owner[hits], return_index=True)
        first_hit[hit_owner] = frames[hits][place] - cache.first[hit_owner]
        succeeded = first_hit[chosen] >= 0
        quiet = np.where(succeeded, first_hit[chosen] - MARGIN + 1, quiet)
        self.negative = Spans(chosen, cache.first[chosen], quiet)
        third = -(-np.maximum(quiet, 0) // 3)
        self.hard = Spans(chosen, cache.first[chosen] + quiet - third, third)
        if not self.positive.total:
            raise UserError(
                f"None of the {len(chosen)} episodes to learn from succeeds, so success can't be learned: give more "
                "that do."
            )
        if not self.negative.total:
            raise UserError(
                f"The {len(chosen)} episodes hold no clip without success, so failure can't be learned: collect some "
                "failures."
            )

    def sample(self, batch_size: int, seed: int, step: int) -> RewardBatch:
        """batch_size // 2 negatives come after the positives; of them round(hard_share x negatives) are hard."""
        generator = _generator(seed, step)
        negatives = batch_size // 2
        hard = round(negatives * self.hard_share)
        sizes = [(self.positive, batch_size - negatives), (self.negative, negatives - hard), (self.hard, hard)]
        draws = [spans.draw(n, generator) for spans, n in sizes]
        episode, last = (np.concatenate(values) for values in zip(*draws, strict=True))
        clip = np.maximum(last[:, None] + np.arange(1 - self.clip_length, 1), self.cache.first[episode][:, None])
        label = torch.zeros(batch_size)
        label[: batch_size - negatives] = 1
        clips = torch.from_numpy(moved(np.take(self.frames, clip, axis=0), self.shift, generator))
        return RewardBatch(clips, label, tuple(self.cache.instruction[episode]))


class ImitationFrames:
    """Frames with the chunk that an imitator should choose there, uniformly over all frames with an action.

    Images are moved by up to `shift` pixels each way, at random: actions are relative, so the right ones stay the same,
    and the imitator can't learn pictures by heart.
    """

    def __init__(self, cache: FrameCache, episodes: Sequence[int], chunk: int, shift: int = 0) -> None:
        self.cache, self.images, self.chunk, self.shift = cache, cache.images, chunk, shift
        chosen = _chosen(cache, episodes)
        self.spans = Spans(chosen, cache.first[chosen], cache.length[chosen])

    def sample(self, batch_size: int, seed: int, step: int) -> ImitationBatch:
        cache = self.cache
        generator = _generator(seed, step)
        episode, now = self.spans.draw(batch_size, generator)
        steps = now[:, None] + np.arange(self.chunk)
        end = (cache.first[episode] + cache.length[episode])[:, None]
        images = {
            name: torch.from_numpy(moved(np.take(frames, now, axis=0)[:, None], self.shift, generator)[:, 0])
            for name, frames in self.images.items()
        }
        return ImitationBatch(
            Observation(images, _gather(cache.state, now), tuple(cache.instruction[episode])),
            _gather(cache.label, np.minimum(steps, end - 1)),
            torch.from_numpy(steps < end),
        )


def _generator(seed: int, step: int) -> np.random.Generator:
    return np.random.default_rng([seed, step])


def _gather(values: np.ndarray, index: np.ndarray) -> Tensor:
    """values[index] as a tensor of its own memory."""
    return torch.from_numpy(np.take(values, index, axis=0))


def moved(video_BTCHW: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """Each video moved by up to `most` pixels along both sides; what comes in at the edge repeats it."""
    if not most:
        return video_BTCHW
    B, _, _, H, W = video_BTCHW.shape
    right, down = generator.integers(-most, most + 1, (2, B))
    result = np.empty_like(video_BTCHW)
    for video, target, dx, dy in zip(video_BTCHW, result, right.tolist(), down.tolist(), strict=True):
        rows, columns = (np.arange(H) - dy).clip(0, H - 1), (np.arange(W) - dx).clip(0, W - 1)
        target[:] = video[:, :, rows][..., columns]
    return result


def _chosen(cache: FrameCache, episodes: Sequence[int]) -> np.ndarray:
    chosen = np.unique(np.asarray(episodes, dtype=np.int64))
    if not len(chosen):
        raise UserError(f"No episodes of {cache.store.root} were chosen to train on: collect some, or choose others.")
    if chosen[0] < 0 or chosen[-1] >= len(cache):
        raise UserError(f"There is no episode {chosen[-1]} in {cache.store.root}: it holds {len(cache)}.")
    return chosen
