"""World-Model-based Policy Optimization, top to bottom (arXiv 2511.09515).

A policy imitates demonstrations, tries itself on a few real episodes, learns a video model and a success classifier
from them, practises in imagination only, and is then measured in the real environment on states it has never met.

Every stage leaves its result in the run's folder and is skipped when that is there, so that a run that was stopped,
or killed, goes on where it was and ends where it would have ended.

Departures from the paper (settings name the rest, see `wmpo.config`):
1. Initial states for demonstrating, collecting, practising and evaluating are disjoint.
2. The reward threshold is chosen in imagination, since that is where it is used: with it the policy succeeds there as
   often as it did for real.
3. Alignment mixes demonstrations in, so that the world model does not forget what the policy does not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from wmpo.config import GRPOConfig
from wmpo.data.cache import FrameCache
from wmpo.data.clips import ImitationFrames, RewardBatch, RewardClips, VideoBatch, VideoClips
from wmpo.data.normalizer import Normalizer
from wmpo.data.records import EpisodeRecord
from wmpo.data.store import EpisodeStore
from wmpo.envs import demonstrator, task_names
from wmpo.errors import UserError
from wmpo.evaluate import BATCH, evaluate
from wmpo.families import save_model
from wmpo.grpo import frozen_copy, practise
from wmpo.imagination import ImaginedEnv, first_frames_of, replay
from wmpo.losses.verdicts import best_f1_threshold, matching_threshold
from wmpo.policies import build_policy, check_actions
from wmpo.protocols import Env, Policy, RewardModel, WorldModel
from wmpo.report.measure import measure_run
from wmpo.report.results import RunResult
from wmpo.rewards import build_reward_model
from wmpo.rollout import rollout
from wmpo.run import Purpose, Run, is_demonstration, is_held_out, is_rollout, round_of
from wmpo.types import Observation
from wmpo.world_models import build_world_model

DREAMS_PER_INITIAL_STATE = 2  # when imagined and real success are compared


def optimise(run: Run) -> RunResult:
    """The whole of WMPO."""
    recipe = run.recipe
    demonstrations(run)  # scripted experts, or the user's own data
    policy = imitate(run)  # SFT: the base policy
    evaluate_policy(run, policy, "base")
    for turn in range(1, recipe.rounds + 1):  # lifelong learning = more rounds
        collect(run, policy, turn)  # P real rollouts of the current policy
        world_model = model_the_world(run, turn)  # failures included: behaviour alignment
        reward_model = model_success(run, policy, world_model, turn)
        base = frozen_copy(policy)
        policy = practise_in_dream(
            run, policy, world_model, reward_model, turn, f"practice-{turn}", recipe.grpo, f"wmpo-{turn}"
        )
        evaluate_policy(run, policy, f"wmpo-{turn}")
        if recipe.control and turn == 1:  # rewards shuffled inside each group must teach nothing
            shuffled = replace(recipe.grpo, shuffle_rewards=True)
            control = practise_in_dream(run, base, world_model, reward_model, turn, "control", shuffled, "control")
            evaluate_policy(run, control, "control")
    return measure_run(run, policy, world_model, reward_model)


def demonstrations(run: Run) -> None:
    """Collect scripted demonstrations until enough have succeeded. Failed attempts are kept: the dream needs them."""
    cfg = run.recipe.demonstrations
    with run.log.stage("demonstrations"), run.log.progress("demonstrations", cfg.episodes) as bar:
        while (done := len(run.episodes(is_demonstration))) < cfg.episodes:
            bar.skip(done)
            tried = len(run.episodes(lambda record: record.source == "expert"))
            numbers = run.initial_states("demonstrate", tried + min(BATCH, cfg.episodes - done))[tried:]
            expert = demonstrator(run.env, run.recipe.env.family)
            seed = run.seed(Purpose.DEMONSTRATE, tried)
            run.store.append(list(expert.demonstrate(numbers, cfg.noise, seed, cfg.min_pace)))


def imitate(run: Run) -> Policy:
    cfg = run.recipe.policy
    with run.log.stage("imitate"):
        cache = FrameCache(run.store)
        torch.manual_seed(run.seed(Purpose.IMITATE))
        policy = build_policy(cfg, run.env.spec)
        shown = run.episodes(is_demonstration)
        if not shown:
            raise UserError(f"{run.store.root} holds no successful demonstrations to imitate: see wmpo demonstrate.")
        if cfg.pretrained:  # it keeps the statistics that it was trained with
            check_actions(policy, cache.labels_of(shown), cfg.pretrained, run.store.root)
        else:
            policy.set_normalizer(Normalizer.from_cache(cache, shown))
        frames = ImitationFrames(cache, shown, cfg.chunk, shift=cfg.shift)
        run.fit(
            policy,
            lambda step: frames.sample(cfg.fit.batch_size, run.seed(Purpose.IMITATE), step),
            cfg.fit,
            "imitation",
            run.seed(Purpose.IMITATE),
        )
        save_policy(run, policy, "base")
    return policy


def save_policy(run: Run, policy: Policy, name: str) -> None:
    save_model(run.recipe.policy.family, policy, run.folder / "policies" / name)


def collect(run: Run, policy: Policy, turn: int) -> None:
    cfg = run.recipe.collect
    with run.log.stage("collect"):
        name = f"round-{turn}"
        if run.episodes(lambda record: record.source == name):
            return
        generator = torch.Generator().manual_seed(run.seed(Purpose.COLLECT, turn))
        states = run.initial_states("collect", cfg.episodes // cfg.rollouts_per_state, turn)
        numbers = [state for state in states for _ in range(cfg.rollouts_per_state)]
        episodes = []
        for begin in range(0, len(numbers), BATCH):
            some = numbers[begin : begin + BATCH]
            played = rollout(
                run.env, policy, some, temperature=cfg.temperature, generator=generator, record=name,
                task=task_names(run.env),
            )  # fmt: skip
            episodes += played.episodes
        run.store.append(episodes)  # all at once: a kill leaves either none or all of them


def model_the_world(run: Run, turn: int) -> WorldModel:
    """Pretrain on demonstrations once; then, each round, align on the policy's own rollouts, failures included."""
    cache = FrameCache(run.store)
    with run.log.stage("world model"):
        model = build_world(run, run.recipe.policy.chunk)
        general = video_clips(cache, run.episodes(lambda record: record.source == "expert"), model)
        pretrain_world_model(run, model, general)
        for past in range(1, turn + 1):  # what earlier rounds have learned is only loaded

            def tried(record: EpisodeRecord, past: int = past) -> bool:
                return is_rollout(record) and round_of(record) <= past and not is_held_out(run, record)

            align_world_model(run, model, general, video_clips(cache, run.episodes(tried), model), past)
        save_model(run.recipe.world_model.family, model, run.folder / f"world_model-{turn}")
    return model


def build_world(run: Run, chunk: int) -> WorldModel:
    torch.manual_seed(run.seed(Purpose.WORLD_MODEL))
    return build_world_model(run.recipe.world_model, run.env.spec, chunk)


def video_clips(cache: FrameCache, episodes: Sequence[int], model: WorldModel) -> VideoClips:
    return VideoClips(cache, episodes, model.context, model.chunk)


def pretrain_world_model(run: Run, model: WorldModel, general: VideoClips) -> None:
    """Train what the model names, stage by stage, on clips of `general`."""
    records = general.cache.store.records()
    shown = [i for i in general.episodes if records[i].succeeded] or general.episodes  # those that policies imitate
    model.set_normalizer(Normalizer.from_cache(general.cache, shown))
    for place, stage in enumerate(model.training_stages(align=False)):
        seed = run.seed(Purpose.WORLD_MODEL, 0, place)

        def clips(step: int, n: int = stage.fit.batch_size, seed: int = seed) -> VideoBatch:
            return general.sample(n, seed, step)

        run.fit(stage.module, clips, stage.fit, f"world_model_{stage.name}", seed)


def align_world_model(run: Run, model: WorldModel, general: VideoClips, own: VideoClips, turn: int = 1) -> None:
    """Policy behaviour alignment: a part of each batch shows what the policy itself does, failures included."""
    for place, stage in enumerate(model.training_stages(align=True)):
        n = round(stage.fit.batch_size * run.recipe.world_model.align_fraction)
        sources = (own, n), (general, stage.fit.batch_size - n)
        parts = [
            (clips, size, run.seed(Purpose.ALIGN, turn, place, i)) for i, (clips, size) in enumerate(sources) if size
        ]

        def mixed(step: int, parts: list[tuple[VideoClips, int, int]] = parts) -> VideoBatch:
            return VideoBatch.cat([clips.sample(size, seed, step) for clips, size, seed in parts])

        name = f"world_model_{stage.name}_align-{turn}"
        run.fit(stage.module, mixed, stage.fit, name, run.seed(Purpose.ALIGN, turn, place))


def model_success(run: Run, policy: Policy, world_model: WorldModel, turn: int) -> RewardModel:
    """Train the classifier on real clips, then choose its threshold where it will be used: in imagination."""
    cfg = run.recipe.reward
    with run.log.stage("reward model"):
        cache = FrameCache(run.store)
        seen = run.episodes(lambda record: not is_held_out(run, record))
        torch.manual_seed(run.seed(Purpose.REWARD, turn))
        model = build_reward_model(cfg, run.env.spec)
        n = round(cfg.fit.batch_size * cfg.imagined_fraction)
        parts = [(RewardClips(cache, seen, cfg.clip_length), cfg.fit.batch_size - n)]
        if n:
            dreams = FrameCache(dream_again(run, world_model, model, turn))
            parts.append((RewardClips(dreams, range(len(dreams)), cfg.clip_length), n))

        def clips(step: int) -> RewardBatch:
            draws = [
                (part, size, run.seed(Purpose.REWARD, turn, place)) for place, (part, size) in enumerate(parts) if size
            ]
            return RewardBatch.cat([part.sample(size, seed, step) for part, size, seed in draws])

        run.fit(model, clips, cfg.fit, f"reward_model_fit-{turn}", run.seed(Purpose.REWARD, turn))
        choose = threshold_by_f1 if cfg.threshold == "f1" else threshold_by_rate
        threshold = choose(run, policy, world_model, model, turn)
        run.log.info(f"reward model: threshold {threshold:.3f} (a logit)")
        model = model.with_threshold(threshold)
        save_model(cfg.family, model, run.folder / f"reward_model-{turn}")
    return model


def threshold_by_rate(run: Run, policy: Policy, world_model: WorldModel, model: RewardModel, turn: int) -> float:
    """With it the policy succeeds in the dream as often as it did for real, from the same first frames."""
    tried = run.store.episodes(run.episodes(lambda record: record.source == f"round-{turn}"))
    spec, stride = run.env.spec, run.recipe.reward.stride
    first = first_frames_of(tried, spec).to(run.device)
    generator = torch.Generator(device=run.device).manual_seed(run.seed(Purpose.THRESHOLD, turn))
    numbers = range(len(tried))
    dream = ImaginedEnv(world_model, model, spec, first, numbers, generator=generator, stride=stride, stop=False)
    again = [*numbers] * DREAMS_PER_INITIAL_STATE
    rollout(dream, policy, again, temperature=run.recipe.collect.temperature, generator=generator)
    rate = sum(episode.succeeded for episode in tried) / len(tried)
    return matching_threshold(dream.best_scores(), 0.5 if run.recipe.reward.threshold == "half" else rate)


def threshold_by_f1(run: Run, policy: Policy, world_model: WorldModel, model: RewardModel, turn: int) -> float:
    """With it the verdicts on imagined replays of held-out real episodes are best."""
    held = run.store.episodes(run.episodes(lambda record: is_held_out(run, record)))
    chunk, stride = run.recipe.policy.chunk, run.recipe.reward.stride
    dreamt = replay(world_model, model, run.env.spec, held, chunk=chunk, device=run.device, stride=stride)
    return best_f1_threshold(dreamt.best_scores(), torch.tensor([episode.succeeded for episode in held]))[0]


def dream_again(run: Run, world_model: WorldModel, referee: RewardModel, turn: int) -> EpisodeStore:
    """Imagined replays of the rollouts to learn from, and of as many demonstrations; labels stay the real ones."""
    spec = run.env.spec
    camera = next(iter(spec.cameras))  # the one that the reward model watches
    store = EpisodeStore.open_or_create(
        run.folder / f"dreams-{turn}", replace(spec, cameras={camera: spec.cameras[camera]})
    )
    if not len(store):
        tried = run.episodes(lambda record: is_rollout(record) and not is_held_out(run, record))
        shown = run.episodes(lambda record: record.source == "expert")[: len(tried)]
        real = run.store.episodes(tried + shown)
        chunk = run.recipe.policy.chunk
        dreamt = replay(
            world_model,
            referee,
            spec,
            real,
            chunk=chunk,
            device=run.device,
            stride=chunk,
            seed=run.seed(Purpose.REPLAY),
        )
        store.append([replace(episode, images={camera: episode.images[camera]}) for episode in dreamt.episodes])
    return store


def practise_in_dream(
    run: Run,
    policy: Policy,
    world_model: WorldModel,
    reward_model: RewardModel,
    turn: int,
    name: str,
    cfg: GRPOConfig,
    save_as: str,
) -> Policy:
    """On-policy GRPO. No real interaction in here: the dream gets first frames, and the policy sees only the dream."""
    with run.log.stage(name):
        numbers = run.initial_states("practise", cfg.n_initial_states, turn)
        first = first_frames(run.env, numbers)
        if cfg.keyframes:
            first = Observation.cat([first, keyframes(run, cfg.keyframes, turn)])
            numbers = [*numbers, *range(-cfg.keyframes, 0)]  # initial-state numbers of no initial state
        first = first.to(run.device)
        generator = torch.Generator(device=run.device)
        dream = ImaginedEnv(
            world_model,
            reward_model,
            run.env.spec,
            first,
            numbers,
            generator=generator,
            stride=run.recipe.reward.stride,
        )
        practise(
            dream,
            policy,
            numbers,
            cfg,
            seed=run.seed(Purpose.PRACTISE, turn),
            generator=generator,
            folder=run.folder,
            name=name,
            log=run.log,
            callback=lambda iteration, policy: evaluate_in_practice(run, policy, name, iteration),
        )
        save_policy(run, policy, save_as)
    return policy


def first_frames(env: Env, numbers: list[int]) -> Observation:
    """What the real environment shows from each initial state; nothing is done there."""
    return Observation.cat([env.reset(numbers[begin : begin + BATCH]) for begin in range(0, len(numbers), BATCH)])


def keyframes(run: Run, n: int, turn: int) -> Observation:
    """Real frames from the middle of this round's rollouts, before any success; those held out stay out."""
    cache = FrameCache(run.store)
    chosen = run.episodes(lambda record: record.source == f"round-{turn}" and not is_held_out(run, record))
    dice = np.random.default_rng(run.seed(Purpose.KEYFRAMES, turn))
    rows = []
    for episode in dice.choice(chosen, n):
        frames = cache.first[episode] + np.arange(1, cache.length[episode])
        rows.append(dice.choice(frames[~cache.success[frames]]))
    owners = np.searchsorted(cache.first, rows, side="right") - 1
    images = {name: torch.from_numpy(np.take(frames, rows, axis=0)) for name, frames in cache.images.items()}
    return Observation(images, torch.from_numpy(cache.state[rows]), tuple(cache.instruction[owners]))


def evaluate_in_practice(run: Run, policy: Policy, name: str, iteration: int) -> None:
    """Now and then, how the practising policy does for real. Shown in the report; nothing decides by it."""
    cfg = run.recipe.evaluate
    if cfg.practice_eval_freq and iteration % cfg.practice_eval_freq == 0:
        numbers = run.initial_states("watch", cfg.practice_eval_episodes)
        result = evaluate(
            run.env, policy, numbers, temperature=cfg.temperature, seed=run.seed(Purpose.EVALUATE_IN_PRACTICE)
        )
        run.log.scalars(iteration, {f"{name}/real_success": result.rate})


def evaluate_policy(run: Run, policy: Policy, name: str) -> None:
    cfg = run.recipe.evaluate
    with run.log.stage("evaluate"):
        if run.evaluation.select(source=name):
            return
        numbers = run.initial_states("evaluate", cfg.episodes)
        result = evaluate(
            run.env, policy, numbers, temperature=cfg.temperature, seed=run.seed(Purpose.EVALUATE), record=name,
            task=task_names(run.env),
        )  # fmt: skip
        run.evaluation.append(result.episodes)
        run.log.info(f"{name}: real success {result.rate:.1%} of {len(numbers)}")
