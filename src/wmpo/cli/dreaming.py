"""The stages that make a dream and practise in it, one by one: for your own data or policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wmpo.config import CollectConfig, GRPOConfig, Recipe, RewardConfig, WorldModelConfig
from wmpo.errors import UserError

if TYPE_CHECKING:
    from wmpo.data.cache import FrameCache
    from wmpo.types import Observation


@dataclass(frozen=True)
class WorldModelCommand:
    """A video model from the episodes of a store, whoever acted in them; then aligned on the rollouts of a policy."""

    data: Path
    """Folder of an episode store to learn from."""
    out: Path
    """Folder for the training and for the model, in OUT/model. The same command continues it."""
    align_data: Path | None = None
    """Folder of an episode store with rollouts of the policy that will practise; without it there is no alignment."""
    chunk: int = 4
    """K: actions, and frames, imagined at once; as many as the policy decides."""
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    held_out: float = CollectConfig.held_out
    """Share of the initial states whose episodes are kept out of training."""
    seed: int = 0
    """Of weights and batches."""
    device: str = "auto"
    """auto: a GPU where there is one."""

    def execute(self) -> None:
        from wmpo.algorithm import align_world_model, build_world, pretrain_world_model, video_clips
        from wmpo.cli.opening import open_stage
        from wmpo.data.cache import FrameCache
        from wmpo.data.clips import VideoClips
        from wmpo.data.compatibility import comparable
        from wmpo.data.store import EpisodeStore
        from wmpo.families import save_model

        recipe = Recipe(seed=self.seed, world_model=self.world_model, device=self.device)

        with open_stage(recipe, self.out, self.data) as run:
            model = build_world(run, self.chunk)

            def clips(store: EpisodeStore) -> VideoClips:
                cache = FrameCache(store)
                return video_clips(cache, split(cache, self.held_out)[0], model)

            general = clips(run.store)
            with run.log.stage("world model"):
                pretrain_world_model(run, model, general)
                if self.align_data is not None:
                    store = EpisodeStore.open(self.align_data)
                    align_world_model(run, model, general, clips(comparable(store, run.store)))
            save_model(self.world_model.family, model, self.out / "model")
            run.log.info(f"World model: {self.out / 'model'}")


@dataclass(frozen=True)
class RewardModelCommand:
    """A success classifier from the episodes of a store; its threshold from those that are kept out of training."""

    data: Path
    """Folder of an episode store with successes and failures."""
    out: Path
    """Folder for the training and for the model, in OUT/model. The same command continues it."""
    world_model: Path | None = None
    """Folder of a world model: the threshold is then chosen where it will be used, on imagined replays."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    held_out: float = CollectConfig.held_out
    """Share of the initial states whose episodes are kept out of training, to choose the threshold on."""
    seed: int = 0
    """Of weights and batches."""
    device: str = "auto"
    """auto: a GPU where there is one."""

    def execute(self) -> None:
        import numpy as np
        import torch

        from wmpo.cli.models import load_world_model
        from wmpo.cli.opening import open_stage
        from wmpo.data.cache import FrameCache
        from wmpo.data.clips import RewardClips
        from wmpo.imagination import replay
        from wmpo.losses.verdicts import best_f1_threshold
        from wmpo.report.measure import score_video
        from wmpo.rewards import build_reward_model
        from wmpo.run import Purpose

        cfg = self.reward
        recipe = Recipe(seed=self.seed, reward=cfg, device=self.device)
        with open_stage(recipe, self.out, self.data) as run, run.log.stage("reward model"):
            spec = run.env.spec
            cache = FrameCache(run.store)
            seen, kept = split(cache, self.held_out)
            if not kept:
                raise UserError(f"No episode of {self.data} is left to choose the threshold on: raise --held-out.")
            clips = RewardClips(cache, seen, cfg.clip_length)
            torch.manual_seed(run.seed(Purpose.REWARD))
            model = build_reward_model(cfg, spec)
            seed = run.seed(Purpose.REWARD)
            run.fit(model, lambda step: clips.sample(cfg.fit.batch_size, seed, step), cfg.fit, "reward_model", seed)
            episodes = run.store.episodes(kept)
            camera = next(iter(spec.cameras))
            if self.world_model is None:
                videos = [score_video(model, episode.images[camera], episode.instruction) for episode in episodes]
                best = torch.tensor([float(np.nanmax(scores)) for scores in videos])
            else:
                dream = load_world_model(self.world_model, spec, run.device)
                best = replay(dream, model, spec, episodes, chunk=dream.chunk, device=run.device,
                              stride=cfg.stride).best_scores()  # fmt: skip
            label = torch.tensor([episode.succeeded for episode in episodes])
            threshold, f1 = best_f1_threshold(best, label)
            model.with_threshold(threshold).save_pretrained(self.out / "model")
            run.log.info(f"Threshold {threshold:.3f} (a logit), F1 {f1:.2f} on {len(kept)} held-out episodes")
            run.log.info(f"Reward model: {self.out / 'model'}")


@dataclass(frozen=True)
class PractiseCommand:
    """Improve a policy by GRPO in imagination, from the first frames of the episodes in a store."""

    policy: Path
    """Folder of the policy to begin with; it is left as it is."""
    world_model: Path
    """Folder of the world model."""
    reward_model: Path
    """Folder of the reward model."""
    data: Path
    """Folder of an episode store: dreams begin with its first frames. Nothing else of it is used, but its actions must
    fit the policy's statistics."""
    out: Path
    """Folder for the training and for the policy, in OUT/policy. The same command continues it."""
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    stride: int = RewardConfig.stride
    """Frames between the ends of scored clips."""
    seed: int = 0
    """Of all sampling."""
    device: str = "auto"
    """auto: a GPU where there is one."""

    def execute(self) -> None:
        import torch

        from wmpo.cli.models import check_chunk, load_policy, load_reward_model, load_world_model
        from wmpo.cli.opening import open_stage
        from wmpo.data.cache import FrameCache
        from wmpo.grpo import practise
        from wmpo.imagination import ImaginedEnv
        from wmpo.policies import check_actions
        from wmpo.run import Purpose

        reward = RewardConfig(stride=self.stride)
        recipe = Recipe(seed=self.seed, grpo=self.grpo, reward=reward, device=self.device)
        with open_stage(recipe, self.out, self.data) as run, run.log.stage("practice"):
            spec, device = run.env.spec, run.device
            cache = FrameCache(run.store)
            policy = load_policy(self.policy, spec, device)
            check_actions(policy, cache.labels_of(range(len(cache))), self.policy, self.data)
            dream = load_world_model(self.world_model, spec, device)
            check_chunk(dream, policy)
            judge = load_reward_model(self.reward_model, spec, device)
            numbers, first = first_frames(cache, self.grpo.n_initial_states)
            generator = torch.Generator(device=device)
            env = ImaginedEnv(dream, judge, spec, first.to(device), numbers, generator=generator, stride=self.stride)
            practise(env, policy, numbers, self.grpo, seed=run.seed(Purpose.PRACTISE), generator=generator, folder=self.out,
                     name="practice", log=run.log)  # fmt: skip
            policy.save_pretrained(self.out / "policy")
            run.log.info(f"Policy: {self.out / 'policy'}")


def split(cache: FrameCache, share: float) -> tuple[list[int], list[int]]:
    """Episodes to learn from, and those kept out: never one initial state on both sides."""
    from wmpo.data.initial_states import hold_out
    from wmpo.data.records import initial_states_of

    kept = hold_out(initial_states_of(cache.store.records()), share)
    return [n for n, out in enumerate(kept) if not out], [n for n, out in enumerate(kept) if out]


def first_frames(cache: FrameCache, most: int) -> tuple[list[int], Observation]:
    """(initial-state numbers, first frames) of the store's different initial states, at most so many."""
    import numpy as np
    import torch

    from wmpo.data.records import initial_states_of
    from wmpo.types import Observation

    number_of: dict[int, int] = {}
    for index, number in enumerate(initial_states_of(cache.store.records())):
        number_of.setdefault(number, index)
    numbers = list(number_of)[:most]
    episodes = [number_of[initial_state] for initial_state in numbers]
    frames = cache.first[episodes]
    images = {name: torch.from_numpy(np.take(image, frames, axis=0)) for name, image in cache.images.items()}
    return numbers, Observation(images, torch.from_numpy(cache.state[frames]), tuple(cache.instruction[episodes]))
