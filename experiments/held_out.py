"""What a dream makes of real episodes from which nothing has learned, episode by episode."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmpo.batches import map_leaves
from wmpo.config import Recipe
from wmpo.data.clips import VideoBatch
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.imagination import replay
from wmpo.losses.verdicts import precision_recall_f1
from wmpo.protocols import RewardModel
from wmpo.report.results import BASE
from wmpo.rewards import load_reward_model
from wmpo.types import EnvSpec, Episode
from wmpo.world_models.memory import Memory
from wmpo.world_models.metrics import psnr, sharpness
from wmpo.world_models.video_diffusion import VideoDiffusionModel

Plain = dict[str, Any]
Videos = dict[str, Tensor]  # camera -> (..., C, H, W) uint8
MOMENTS = 2  # of each episode, after which a chunk is imagined


@dataclass(frozen=True)
class HeldOut:
    episodes: list[Episode]
    stride: int
    spec: EnvSpec
    reward_model: RewardModel
    moments: VideoBatch
    taught: Videos  # what the teacher imagines after these

    @classmethod
    def of(cls, folder: Path, recipe: Recipe, teacher: VideoDiffusionModel, count: int) -> HeldOut:
        """Those of the evaluation of a run's base policy, by initial state, up to the horizon."""
        store = EpisodeStore.open(folder / "evaluation")
        records = store.records()
        numbers = sorted(store.select(source=BASE), key=lambda i: records[i].initial_state)[:count]
        if len(numbers) < 2:
            raise UserError(f"{store.root} holds {len(numbers)} episodes of the base policy: evaluate more.")
        episodes = [episode.first(store.spec.horizon) for episode in store.episodes(numbers)]
        moments = moments_of(episodes, teacher.context, teacher.chunk)
        reward_model = load_reward_model(folder / "reward_model-1")
        return cls(episodes, recipe.reward.stride, store.spec, reward_model, moments, after(teacher, moments))

    def measured(self, model: VideoDiffusionModel) -> Plain:
        """PSNR in dB per episode: of a chunk after real frames beside what followed and beside the teacher's from the
        same noise; of whole episodes, and of their last frames, after the first frame alone."""
        began = time.process_time()
        chunks = after(model, self.moments)
        took, began = time.process_time() - began, time.process_time()
        dreams = replay(
            model, self.reward_model, self.spec, self.episodes, chunk=model.chunk, stride=self.stride
        )  # fmt: skip
        seconds = time.process_time() - began
        whole, last, error, change = [], [], 0.0, 0.0
        ends: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.spec.cameras}
        for dream, episode in zip(dreams.episodes, self.episodes, strict=True):
            found, real = shown(dream), shown(episode)
            each = quality(found, real)
            whole.append(float(each[1:].mean()))
            last.append(float(each[-1]))
            for name, video in real.items():
                true = video.float()
                error += float((found[name] - true).square().sum())
                change += float((true[:1] - true).square().sum())
                ends[name].append((found[name][-1], video[-1]))
        verdicts = precision_recall_f1(
            dreams.best_scores() > self.reward_model.threshold,
            torch.tensor([episode.succeeded for episode in self.episodes]),
        )
        sharp = [sharpness(*(torch.stack(side) for side in zip(*pairs, strict=True))) for pairs in ends.values()]
        return {
            "chunk_psnr": per_episode(quality(chunks, self.moments.future)),
            "like_teacher_psnr": per_episode(quality(chunks, self.taught)),
            "replay_psnr": rounded(whole),
            "end_psnr": rounded(last),
            "motion_explained": round(1 - error / change, 4),
            "end_sharpness": round(sum(sharp) / len(sharp), 4),
            "f1": round(verdicts.f1, 4),
            "accuracy": round(verdicts.accuracy, 4),
            "successes": sum(episode.succeeded for episode in self.episodes),
            "chunk_seconds": round(took, 2),
            "replay_seconds": round(seconds, 2),
        }


def quality(found: Videos, real: Videos) -> Tensor:
    """PSNR of each frame, mean over cameras."""
    return torch.stack([psnr(found[name], video) for name, video in real.items()]).mean(0)


def per_episode(values: Tensor) -> list[float]:
    """(episodes * MOMENTS, K) -> means."""
    return rounded(values.view(-1, MOMENTS * values.shape[1]).mean(1).tolist())


def rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 2) for value in values]


def shown(episode: Episode) -> Videos:
    return {name: torch.from_numpy(video).permute(0, 3, 1, 2) for name, video in episode.images.items()}


def moments_of(episodes: Sequence[Episode], context: int, chunk: int) -> VideoBatch:
    """`MOMENTS` of each episode, drawn once for all, from which a whole chunk follows."""
    generator = np.random.default_rng(0)
    batches = []
    for episode in episodes:
        if episode.length < chunk:
            raise UserError(f"An episode of {episode.length} actions has no chunk of {chunk}: evaluate others.")
        video = shown(episode)
        for now in generator.integers(0, episode.length - chunk + 1, MOMENTS).tolist():
            past = [max(0, frame) for frame in range(now + 1 - context, now + 1)]
            batches.append(
                VideoBatch(
                    {name: frames[past] for name, frames in video.items()},
                    {name: frames[0] for name, frames in video.items()},
                    {name: frames[now + 1 : now + 1 + chunk] for name, frames in video.items()},
                    torch.from_numpy(episode.actions[now : now + chunk]),
                    torch.from_numpy(episode.state[now : now + chunk + 1]),
                    torch.from_numpy(episode.state[0]),
                    torch.from_numpy(episode.actions[:now].sum(0, dtype=np.float64).astype(np.float32)),
                )
            )
    return map_leaves(lambda *leaves: torch.stack(leaves), *batches)


@torch.no_grad()
def after(model: VideoDiffusionModel, moments: VideoBatch) -> Videos:
    """(B, K, C, H, W) of each camera: the chunk imagined after each of these, always from the same noise."""
    first_pose, pose = model.kinematics.poses(moments)
    memory = Memory(model.encode(moments.context), model.encode(moments.anchor), pose[:, 0], first_pose)
    _, imagined = model.imagine(memory, moments.action, torch.Generator().manual_seed(0))
    return model.decode(imagined)[0]
