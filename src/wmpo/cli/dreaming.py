"""The stages that make a dream and practise in it, one by one: for your own data or policy."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from wmpo.config import CollectConfig, CurvesKind, GRPOConfig, Recipe, RewardConfig, WorldModelConfig
from wmpo.errors import UserError, require_between


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
    seed: int = 0
    """Of weights and batches."""
    device: str = "auto"
    """auto: a GPU where there is one."""
    curves: CurvesKind = "tensorboard"
    """Where the numbers of the training are shown: tensorboard, wandb or trackio; they stand in OUT/metrics.jsonl
    anyway."""

    def execute(self) -> None:
        from wmpo.algorithm import align_world_model, build_world, pretrain_world_model, video_clips
        from wmpo.data.cache import FrameCache
        from wmpo.data.clips import VideoClips
        from wmpo.data.compatibility import comparable
        from wmpo.data.store import EpisodeStore
        from wmpo.families import check_free
        from wmpo.opening import open_stage, tell_size

        require_between("--chunk", self.chunk, 1, 1024)
        check_free("world_model", self.world_model.family, self.out / "model")
        if self.align_data is None:
            refuse_unused(self.world_model, "align", "without --align-data there is no alignment")
        recipe = Recipe(seed=self.seed, world_model=self.world_model, device=self.device, curves=self.curves)
        own = None if self.align_data is None else EpisodeStore.open(self.align_data)
        with open_stage(recipe, self.out, self.data) as run:
            if own is not None:
                own = comparable(own, run.store)
                tell_size(run.log, own)
            model = build_world(run, self.chunk)

            def clips(store: EpisodeStore) -> VideoClips:
                cache = FrameCache(store)
                return video_clips(run, cache, range(len(cache)), model)

            general = clips(run.store)
            tried = None if own is None else clips(own)
            with run.log.stage("world model"):
                pretrain_world_model(run, model, general)
                if tried is not None:
                    align_world_model(run, model, general, tried)
            run.save("world_model", self.world_model.family, model, self.out / "model")
            run.log.info(f"World model: {self.out / 'model'}")


@dataclass(frozen=True)
class RewardModelCommand:
    """A success classifier from the episodes of a store, and its threshold."""

    data: Path
    """Folder of an episode store with successes and failures."""
    out: Path
    """Folder for the training and for the model, in OUT/model. The same command continues it."""
    world_model: Path | None = None
    """Folder of a world model, for imagined clips (reward.imagined_fraction) and for a threshold that is chosen in
    imagination. Without it set --reward.imagined-fraction 0; the threshold is then chosen on real video."""
    policy: Path | None = None
    """Folder of the policy whose rollouts the store holds; reward.threshold rate and half need it."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    temperature: float = CollectConfig.temperature
    """Sampling temperature at which the policy collected its rollouts."""
    seed: int = 0
    """Of weights and batches."""
    device: str = "auto"
    """auto: a GPU where there is one."""
    curves: CurvesKind = "tensorboard"
    """Where the numbers of the training are shown: tensorboard, wandb or trackio; they stand in OUT/metrics.jsonl
    anyway."""

    def execute(self) -> None:
        from wmpo.cli.models import check_chunk, fitting
        from wmpo.families import check_free
        from wmpo.opening import open_stage
        from wmpo.policies import load_policy
        from wmpo.success import SuccessData, chosen_by_rate, learn_success, to_judge
        from wmpo.world_models import load_world_model

        check_free("reward", self.reward.family, self.out / "model")
        by_rate = chosen_by_rate(self.reward)
        if self.policy is not None and not by_rate:
            raise UserError(f"--policy does nothing here: reward.threshold {self.reward.threshold} needs no policy.")
        if self.policy is None and self.temperature != CollectConfig.temperature:
            raise UserError("--temperature does nothing here: there is no --policy to sample from.")
        collect = CollectConfig(temperature=self.temperature)
        recipe = Recipe(seed=self.seed, reward=self.reward, collect=collect, device=self.device, curves=self.curves)
        with open_stage(recipe, self.out, self.data) as run:
            spec, records = run.env.spec, list(run.store.records())
            everything = range(len(records))
            tried = [record.index for record in records if record.source != "expert"]
            if not tried and by_rate:
                raise UserError(
                    f"{self.data} holds no rollouts of a policy, which reward.threshold {self.reward.threshold} needs: "
                    "choose calibrated."
                )
            data = SuccessData(everything, everything, to_judge(run, tried, everything), tried)
            world_model = self.world_model and fitting(load_world_model, self.world_model, spec, run.device)
            policy = self.policy and fitting(load_policy, self.policy, spec, run.device)
            if world_model and policy:
                check_chunk(world_model, policy)
            model = learn_success(run, data, world_model or None, policy or None)
            run.save("reward", self.reward.family, model, self.out / "model")
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
    """Folder of an episode store: dreams begin with its first frames, and with frames from the middle of its rollouts
    where grpo.keyframes says so. Its actions must fit the policy's statistics."""
    out: Path
    """Folder for the training and for the policy, in OUT/policy. The same command continues it."""
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    stride: int = RewardConfig.stride
    """Frames between the ends of scored clips."""
    seed: int = 0
    """Of all sampling."""
    device: str = "auto"
    """auto: a GPU where there is one."""
    curves: CurvesKind = "tensorboard"
    """Where the numbers of the training are shown: tensorboard, wandb or trackio; they stand in OUT/metrics.jsonl
    anyway."""

    def execute(self) -> None:
        from wmpo.algorithm import practise_from
        from wmpo.cli.models import check_chunk, fitting
        from wmpo.data.cache import FrameCache
        from wmpo.families import check_free, saved_family
        from wmpo.first_frames import stored_first_frames
        from wmpo.opening import open_stage
        from wmpo.policies import load_policy, match_actions
        from wmpo.rewards import load_reward_model
        from wmpo.world_models import load_world_model

        refuse_unused(self.grpo, "n_initial_states", "the data hold the first frames")
        family = saved_family("policy", self.policy, "minivla")
        check_free("policy", family, self.out / "policy")
        recipe = Recipe(
            seed=self.seed,
            grpo=self.grpo,
            reward=RewardConfig(stride=self.stride),
            device=self.device,
            curves=self.curves,
        )
        with open_stage(recipe, self.out, self.data) as run, run.log.stage("practice"):
            spec, device = run.env.spec, run.device
            policy = fitting(load_policy, self.policy, spec, device)
            world_model = fitting(load_world_model, self.world_model, spec, device)
            check_chunk(world_model, policy)
            reward_model = fitting(load_reward_model, self.reward_model, spec, device)
            cache = FrameCache(run.store)  # once all that is given is found to fit, since it may take long
            match_actions(policy, cache.labels_of(range(len(cache))), self.policy, self.data)
            tried = [record.index for record in run.store.records() if record.source != "expert"]
            if self.grpo.keyframes and not tried:
                raise UserError(f"{self.data} holds no rollouts to take grpo.keyframes from: set it to 0.")
            numbers, first = stored_first_frames(cache, range(len(cache)))
            practise_from(run, policy, world_model, reward_model, numbers, first, tried, self.grpo, "practice")
            run.save("policy", family, policy, self.out / "policy")
            run.log.info(f"Policy: {self.out / 'policy'}")


def refuse_unused(settings: object, prefix: str, why: str) -> None:
    """Raise UserError where a setting whose name begins so was changed though it does nothing here."""
    default = type(settings)()
    for one in fields(settings):  # type: ignore[arg-type]
        if one.name.startswith(prefix) and getattr(settings, one.name) != getattr(default, one.name):
            raise UserError(f"The setting {one.name} does nothing here: {why}.")
