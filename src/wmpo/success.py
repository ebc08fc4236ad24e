"""The success classifier: trained on real video and on imagined, its threshold chosen where it will be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from wmpo.batches import cat
from wmpo.data.cache import FrameCache
from wmpo.data.clips import RewardBatch, RewardClips
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.families import MODEL_CONFIG, save_model
from wmpo.imagination import ImaginedEnv, first_frames_of, replay
from wmpo.io.plain import to_plain
from wmpo.losses.verdicts import best_f1_threshold, matching_threshold
from wmpo.protocols import Policy, RewardModel, WorldModel
from wmpo.report.measure import real_scores
from wmpo.rewards import build_reward_model, load_reward_model
from wmpo.rollout import rollout
from wmpo.run import Purpose, Run
from wmpo.training.checkpoint import digest_of, digest_of_values

DREAMS_PER_INITIAL_STATE = 2  # when imagined and real success are compared


@dataclass(frozen=True)
class SuccessData:
    """Which stored episodes a success classifier is made from."""

    seen: Sequence[int]
    """Trained on, as real video."""
    replayed: Sequence[int]
    """Trained on, imagined again from their first frames and actions."""
    held_out: Sequence[int]
    """To choose the threshold on, by F1."""
    tried: Sequence[int]
    """Rollouts of the policy, whose rate of success the threshold is to meet in imagination."""


def learn_success(
    run: Run, data: SuccessData, world_model: WorldModel | None, policy: Policy | None, turn: int = 1
) -> RewardModel:
    """A success classifier in the folder reward_model-TURN of the run.

    Without a world model it is trained and its threshold is chosen on real video alone; rates of success can't be met
    then. Raises UserError where the settings ask for what isn't there.
    """
    cfg = run.recipe.reward
    if cfg.imagined_fraction and world_model is None:
        raise UserError("reward.imagined_fraction is above 0, which needs a world model: give one, or set it to 0.")
    if cfg.threshold != "f1" and (world_model is None or policy is None):
        raise UserError(
            f"reward.threshold is {cfg.threshold}, which needs a world model and the policy: give both, or choose f1."
        )
    cache, folder = FrameCache(run.store), run.folder / f"reward_model-{turn}"
    inputs: dict[str, object] = {"settings": to_plain(cfg), "seed": run.recipe.seed}
    inputs |= {f"episodes {name}": cache.digest(episodes) for name, episodes in vars(data).items()}
    inputs |= {"world model": digest_of(world_model) if world_model else None}
    inputs |= {"policy": digest_of(policy) if policy else None}
    run.same_inputs(f"reward_model-{turn}", inputs)
    if (folder / MODEL_CONFIG).exists():
        return load_reward_model(folder).to(run.device)
    with run.log.stage("reward model"):
        torch.manual_seed(run.seed(Purpose.REWARD, turn))
        model = build_reward_model(cfg, run.env.spec)
        n = round(cfg.fit.batch_size * cfg.imagined_fraction)
        parts = [(RewardClips(cache, data.seen, cfg.clip_length), cfg.fit.batch_size - n)]
        if n and world_model is not None:
            dreams = FrameCache(imagined_again(run, world_model, model, data.replayed, turn))
            parts.append((RewardClips(dreams, range(len(dreams)), cfg.clip_length), n))

        def clips(step: int) -> RewardBatch:
            seeds = [run.seed(Purpose.REWARD, turn, place) for place in range(len(parts))]
            sized = [(part, size, seed) for (part, size), seed in zip(parts, seeds, strict=True) if size]
            return cat([part.sample(size, seed, step) for part, size, seed in sized])

        seed = run.seed(Purpose.REWARD, turn)
        run.fit(model, clips, cfg.fit, f"reward_model_fit-{turn}", seed, {"inputs": digest_of_values(inputs)})
        if cfg.threshold == "f1" or world_model is None or policy is None:
            threshold = threshold_by_f1(run, world_model, model, data.held_out)
        else:
            threshold = threshold_by_rate(run, policy, world_model, model, data.tried, turn)
        run.log.info(f"reward model: threshold {threshold:.3f} (a logit)")
        model = model.with_threshold(threshold)
        save_model(cfg.family, model, folder)
    return model


def threshold_by_rate(
    run: Run, policy: Policy, world_model: WorldModel, model: RewardModel, episodes: Sequence[int], turn: int
) -> float:
    """With it the policy succeeds in the dream as often as it did for real, from the same first frames."""
    tried = run.store.episodes(episodes)
    spec, stride = run.env.spec, run.recipe.reward.stride
    first = first_frames_of(tried, spec).to(run.device)
    generator = torch.Generator(device=run.device).manual_seed(run.seed(Purpose.THRESHOLD, turn))
    numbers = range(len(tried))
    dream = ImaginedEnv(world_model, model, spec, first, numbers, generator=generator, stride=stride, stop=False)
    again = [*numbers] * DREAMS_PER_INITIAL_STATE
    rollout(dream, policy, again, temperature=run.recipe.collect.temperature, generator=generator)
    rate = sum(episode.succeeded for episode in tried) / len(tried)
    return matching_threshold(dream.best_scores(), 0.5 if run.recipe.reward.threshold == "half" else rate)


def threshold_by_f1(run: Run, world_model: WorldModel | None, model: RewardModel, episodes: Sequence[int]) -> float:
    """With it the verdicts on held-out real episodes are best: imagined again, or as they are without a world model."""
    held = run.store.episodes(episodes)
    if world_model is None:
        best = real_scores(model, held)
    else:
        best = replay(
            world_model, model, run.env.spec, held, chunk=world_model.chunk, device=run.device,
            stride=run.recipe.reward.stride,
        ).best_scores()  # fmt: skip
    threshold, f1 = best_f1_threshold(best, torch.tensor([episode.succeeded for episode in held]))
    run.log.info(f"reward model: F1 {f1:.2f} on {len(held)} held-out episodes")
    return threshold


def imagined_again(
    run: Run, world_model: WorldModel, model: RewardModel, episodes: Sequence[int], turn: int
) -> EpisodeStore:
    """Imagined replays of real episodes, first camera only; labels stay the real ones."""
    spec = run.env.spec
    camera = next(iter(spec.cameras))  # the one that the reward model watches
    store = EpisodeStore.open_or_create(
        run.folder / f"dreams-{turn}", replace(spec, cameras={camera: spec.cameras[camera]})
    )
    if not len(store):
        real = run.store.episodes(episodes)
        chunk = world_model.chunk
        dreamt = replay(
            world_model, model, spec, real, chunk=chunk, device=run.device, stride=chunk, seed=run.seed(Purpose.REPLAY)
        )
        store.append([replace(episode, images={camera: episode.images[camera]}) for episode in dreamt.episodes])
    return store
