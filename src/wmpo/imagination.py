"""Imagination is just another environment: a world model plays the simulator, a reward model the referee."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wmpo.protocols import RewardModel, WorldModel
from wmpo.types import EnvSpec, Observation, Outcome


class ImaginedEnv:
    """Fulfils `wmpo.protocols.Env`. Each episode begins with a real frame; everything after it is imagined.

    Latents stay on the device between chunks. Only frames that somebody looks at are scored: clips end at every
    `stride`-th frame, and an episode is done as soon as one clip scores above the threshold.

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
        starts: Sequence[int],
        *,
        seed: int,
        stride: int = 1,
        judge: bool = True,
    ) -> None:
        """`first_frames[i]` is the real first frame of start number `starts[i]`.

        `judge=False` never stops an episode early nor scores it, to replay actions for a look.
        """
        self.spec = spec
        self.world_model = world_model
        self.reward_model = reward_model
        self.first_frames = first_frames
        self.row_of_start = {start: row for row, start in enumerate(starts)}
        self.stride = stride
        self.judge = judge
        self.generator = torch.Generator(device=first_frames.state.device).manual_seed(seed)
        self.camera = next(iter(spec.cameras))  # the reward model watches the first camera

    def reset(self, starts: Sequence[int]) -> Observation:
        first = self.first_frames[[self.row_of_start[start] for start in starts]]
        self.instruction = first.instruction
        self.memory: Any = self.world_model.begin(first)
        self.memory_rows = list(range(len(starts)))  # which episode each row of the memory belongs to
        self.steps = torch.zeros(len(starts), dtype=torch.long)
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
        images, state = self.world_model.decode(latents)
        index = torch.as_tensor(rows)
        self.steps[index] += chunk_AKD.shape[1]
        success = self._judge(index, images[self.camera])
        done = success.any(1) | (self.steps[index].to(success.device) >= self.spec.horizon)
        return Outcome(images, state, success, done)

    def _judge(self, index: Tensor, frames_AKCHW: Tensor) -> Tensor:
        """(A, K) bool: the clip that ends at this frame shows success, or an earlier one of the chunk did."""
        A, K = frames_AKCHW.shape[:2]
        L = self.reward_model.clip_length
        video = torch.cat([self.recent[index], frames_AKCHW], dim=1)  # (A, L-1+K, C, H, W)
        self.recent[index] = video[:, K:]
        scores = torch.full((len(self.recent), K), float("nan"))
        if self.judge:
            sentences = tuple(self.instruction[i] for i in index.tolist())
            for end in range(self.stride - 1, K, self.stride):
                scores[index, end] = self.reward_model.score(video[:, end : end + L], sentences).cpu()
        self.scores.append(scores)
        hit = scores[index] > self.reward_model.threshold  # NaN compares False
        return (hit.cumsum(1) > 0).to(frames_AKCHW.device)

    def close(self) -> None:
        """Nothing to close; the models belong to the caller."""
