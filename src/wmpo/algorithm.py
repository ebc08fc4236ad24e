"""World-Model-based Policy Optimization, top to bottom (arXiv 2511.09515).

A policy imitates demonstrations, tries itself on a few real episodes, learns a video model and a success classifier
from them, practises in imagination only, and is then measured in the real environment on states it has never met.

Every stage leaves its result in the run's folder, with digests of all that it follows from, and is skipped when that
is there: a run that was stopped, or killed, goes on where it was and ends where it would have ended.

Departures from the paper (settings name the rest, see `wmpo.config`):
1. Initial states for demonstrating, collecting, practising and evaluating are disjoint.
2. The reward threshold is chosen in imagination, since that is where it is used: on imagined replays of the rollouts,
   each judged by a classifier that was trained on the others, so that none is lost to training.
3. Alignment mixes demonstrations in, so that the world model does not forget what the policy does not show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from wmpo.batches import cat
from wmpo.config import GRPOConfig
from wmpo.data.cache import FrameCache
from wmpo.data.clips import ImitationFrames, VideoBatch, VideoClips
from wmpo.data.normalizer import Normalizer
from wmpo.data.store import EpisodeStore
from wmpo.envs import demonstrator, task_names
from wmpo.errors import UserError
from wmpo.evaluate import evaluate, time_limit
from wmpo.families import check_free, family_of
from wmpo.first_frames import fresh_first_frames, keyframes, stored_first_frames
from wmpo.grpo import frozen_copy, practise
from wmpo.imagination import ImaginedEnv
from wmpo.own_demonstrations import take_demonstrations
from wmpo.policies import build_policy, match_actions
from wmpo.protocols import Policy, RewardModel, TrainingStage, WorldModel
from wmpo.report.measure import measure_run, outcome_of
from wmpo.report.results import BASE, IMITATED, RunResult
from wmpo.rollout import rollout
from wmpo.rounds import begin_round, better_of_two, ends
from wmpo.run import Purpose, Run, check_horizon, is_demonstration, is_shown, once, tried_until
from wmpo.success import SuccessData, learn_success, to_judge
from wmpo.training.checkpoint import digest_of
from wmpo.types import Episode, Observation
from wmpo.world_models import build_world_model

HOPELESS = 500  # failures of an expert in a row, after which it is given up
BATCH = 128  # scripted demonstrations asked for at once


def optimise(run: Run) -> RunResult:
    """The whole of WMPO."""
    recipe = run.recipe
    demonstrations(run)  # scripted experts, or the user's own data
    policy = imitate(run)  # SFT: the base policy
    evaluate_policy(run, policy, "base")
    for turn in range(1, recipe.rounds + 1):  # lifelong learning = more rounds
        collect(run, policy, turn)  # P real rollouts of the current policy, which measure it too
        if turn > 1 and ends(run, turn):  # practice has done harm, or no more good
            policy = better_of_two(run, policy, turn)
            save_policy(run, policy, f"wmpo-{turn}")
            evaluate_policy(run, policy, f"wmpo-{turn}")
            break
        world_model = model_the_world(run, turn)  # failures included: behaviour alignment
        reward_model = model_success(run, policy, world_model, turn)
        policy = begin_round(run, policy, turn)
        policy = imitate_successes(run, policy, turn)  # what it has done right itself, it imitates too
        begin = frozen_copy(policy)
        if recipe.control and turn == 1:
            evaluate_policy(run, policy, IMITATED)
        policy = practise_in_dream(
            run, policy, world_model, reward_model, turn, f"practice-{turn}", recipe.grpo, f"wmpo-{turn}"
        )
        evaluate_policy(run, policy, f"wmpo-{turn}")
        if recipe.control and turn == 1:  # rewards shuffled inside each group must teach nothing
            shuffled = replace(recipe.grpo, shuffle_rewards=True)
            control = practise_in_dream(run, begin, world_model, reward_model, turn, "control", shuffled, "control")
            evaluate_policy(run, control, "control")
    return measure_run(run, policy, world_model, reward_model)


@once
def demonstrations(run: Run) -> None:
    """Collect scripted demonstrations until enough have succeeded, or take those in `data`. Failed attempts are kept,
    since they were paid for; who learns from them, `demonstrations.failures` says."""
    cfg = run.recipe.demonstrations
    run.same_env()
    if cfg.data:
        return take_demonstrations(run)
    run.same_inputs("demonstrations", {"noise": cfg.noise, "min_pace": cfg.min_pace, "seed": run.recipe.seed})
    succeeded = [is_demonstration(record) for record in run.store.records() if record.source == "expert"]
    with run.log.stage("demonstrations"), run.log.progress("demonstrations", cfg.episodes) as bar:
        bar.skip(min(sum(succeeded), cfg.episodes))
        begin = failed = 0
        while (missing := cfg.episodes - sum(succeeded[:begin])) > 0:
            numbers = run.initial_states("demonstrate", begin + min(BATCH, missing))
            expert, seed = demonstrator(run.env, run.recipe.env.family), run.seed(Purpose.DEMONSTRATE, begin)
            for episode in expert.demonstrate(numbers[max(begin, len(succeeded)) :], cfg.noise, seed, cfg.min_pace):
                run.store.append([episode])  # each is safe on disk when it ends
                succeeded.append(episode.succeeded)
                bar.update(int(episode.succeeded))
                failed = 0 if episode.succeeded else failed + 1
                if failed == HOPELESS:
                    raise UserError(
                        f"The expert of {run.recipe.env.family} has failed {failed} times in a row, and of "
                        f"{cfg.episodes} demonstrations there are {sum(succeeded)}: mend it, or set "
                        "demonstrations.noise lower."
                    )
            begin = len(numbers)


def imitate(run: Run) -> Policy:
    cfg = run.recipe.policy
    check_free("policy", family_of(cfg), run.folder / "policies" / BASE)
    check_horizon(cfg.chunk, run.env.spec)
    with run.log.stage("imitate"):
        cache = FrameCache(run.store)
        torch.manual_seed(seed := run.seed(Purpose.IMITATE))
        policy = build_policy(cfg, run.env.spec)
        if not (shown := run.episodes(is_demonstration)):
            raise UserError(f"{run.store.root} holds no successful demonstrations to imitate: see wmpo demonstrate.")
        if cfg.pretrained:  # it keeps the statistics that it was trained with
            match_actions(policy, cache.labels_of(shown), cfg.pretrained, run.store.root)
        else:
            policy.set_normalizer(Normalizer.from_cache(cache, shown))
        frames = ImitationFrames(cache, shown, policy.chunk, shift=cfg.shift)
        depends = {"demonstrations": cache.digest(shown), "shift": cfg.shift}
        run.fit(policy, lambda step: frames.sample(cfg.fit.batch_size, seed, step), cfg.fit, "imitation", seed, depends)
        save_policy(run, policy, "base")
    return policy


def imitate_successes(run: Run, policy: Policy, turn: int) -> Policy:
    """Go on imitating, demonstrations and the successful rollouts so far: those hold second attempts, which no expert
    shows. Practice may then be held to them, see `grpo.imitation_coef`."""
    own, cfg = run.recipe.self_imitation, run.recipe.policy
    if not own.steps:
        return policy
    with run.log.stage("imitate successes"):
        cache, liked = FrameCache(run.store), successes(run, turn)
        frames = ImitationFrames(cache, liked, policy.chunk, shift=cfg.shift)
        fit = replace(cfg.fit, steps=own.steps, lr=own.lr_factor * cfg.fit.lr)
        seed, name = run.seed(Purpose.SELF_IMITATION, turn), f"self_imitation-{turn}"
        depends = {"episodes": cache.digest(liked), "shift": cfg.shift}
        return run.fit(policy, lambda step: frames.sample(fit.batch_size, seed, step), fit, name, seed, depends)


def successes(run: Run, turn: int) -> list[int]:
    """The demonstrations, and the rollouts up to this round that succeeded."""
    own = tried_until(turn)
    return run.episodes(lambda record: is_demonstration(record) or (own(record) and record.succeeded))


def save_policy(run: Run, policy: Policy, name: str) -> None:
    run.save("policy", family_of(run.recipe.policy), policy, run.folder / "policies" / name)


@once
def collect(run: Run, policy: Policy, turn: int) -> None:
    """P real rollouts of the current policy."""
    cfg = run.recipe.collect
    inputs = {"temperature": cfg.temperature, "task": cfg.task, "seed": run.recipe.seed}
    run.same_env()
    run.same_inputs(f"collect-{turn}", {"policy": digest_of(policy), **inputs})
    with run.log.stage("collect"):
        states = run.initial_states("collect", cfg.episodes // cfg.rollouts_per_state, turn)
        numbers = [state for state in states for _ in range(cfg.rollouts_per_state)]
        seeds = partial(run.seed, Purpose.COLLECT, turn)
        play(run, run.store, policy, numbers, f"round-{turn}", cfg.temperature, lambda i: seeds(i) if i else seeds())


def play(
    run: Run,
    store: EpisodeStore,
    policy: Policy,
    numbers: Sequence[int],
    source: str,
    temperature: float,
    seed: Callable[[int], int],
    horizon: int | None = None,
) -> None:
    """One real episode for each of `numbers` that `store` lacks of `source`; each is safe on disk when it ends.

    `seed(i)` is that of the batch which begins with the i-th number. What a stop has left of a batch is played with all
    of it, so that the rest ends as it would have; a robot, which plays one at a time, repeats nothing.
    """
    stored = Counter(record.initial_state for record in store.records() if record.source == source)

    def keep(episode: Episode) -> None:
        stored[episode.initial_state] -= 1
        if stored[episode.initial_state] < 0:
            store.append([episode])
            bar.update(1)

    size = run.env.spec.max_batch
    with run.log.progress(source, len(numbers)) as bar:
        bar.skip(stored.total())
        for begin in range(0, len(numbers), size):
            some = numbers[begin : begin + size]
            if Counter(some) <= stored:
                stored.subtract(some)
            else:
                generator = torch.Generator().manual_seed(seed(begin))
                rollout(
                    run.env, policy, some, temperature=temperature, generator=generator,
                    record=source, task=task_names(run.env), on_episode=keep, horizon=horizon,
                )  # fmt: skip


def model_the_world(run: Run, turn: int) -> WorldModel:
    """Pretrain on demonstrations once; then, each round, align on the policy's own rollouts, failures included."""
    cache = FrameCache(run.store)
    with run.log.stage("world model"):
        model = build_world(run, run.recipe.policy.chunk)
        general = video_clips(run, cache, run.episodes(lambda record: is_shown(run, record)), model)
        pretrain_world_model(run, model, general)
        for past in range(1, turn + 1):  # what earlier rounds have learned is only loaded
            if own := run.episodes(tried_until(past)):
                align_world_model(run, model, general, video_clips(run, cache, own, model), past)
        run.save("world_model", run.recipe.world_model.family, model, run.folder / f"world_model-{turn}")
    return model


def build_world(run: Run, chunk: int) -> WorldModel:
    torch.manual_seed(run.seed(Purpose.WORLD_MODEL))
    return build_world_model(run.recipe.world_model, run.env.spec, chunk)


def video_clips(run: Run, cache: FrameCache, episodes: Sequence[int], model: WorldModel) -> VideoClips:
    clips = VideoClips(cache, episodes, model.context, model.chunk, run.recipe.world_model.shift)
    clips.lasting(max(stage.chunks for stage in model.training_stages(align=False)))  # or too short is told late
    return clips


def pretrain_world_model(run: Run, model: WorldModel, general: VideoClips) -> None:
    """Train what the model names, stage by stage, on clips of `general`."""
    records = general.cache.store.records()
    shown = [i for i in general.episodes if records[i].succeeded] or general.episodes  # those that policies imitate
    model.set_normalizer(Normalizer.from_cache(general.cache, shown))
    for place, stage in enumerate(model.training_stages(align=False)):
        seed = run.seed(Purpose.WORLD_MODEL, 0, place)
        fit_stage(run, stage, [(general, stage.fit.batch_size, seed)], "", seed)


def align_world_model(run: Run, model: WorldModel, general: VideoClips, own: VideoClips, turn: int = 1) -> None:
    """Policy behaviour alignment: a part of each batch shows what the policy itself does, failures included."""
    for place, stage in enumerate(model.training_stages(align=True)):
        n = round(stage.fit.batch_size * run.recipe.world_model.align_fraction)
        sources = ((own, n), (general, stage.fit.batch_size - n))
        seed = partial(run.seed, Purpose.ALIGN, turn, place)
        parts = [(clips, size, seed(i)) for i, (clips, size) in enumerate(sources) if size]
        fit_stage(run, stage, parts, f"_align-{turn}", seed())


def fit_stage(
    run: Run, stage: TrainingStage, parts: Sequence[tuple[VideoClips, int, int]], suffix: str, seed: int
) -> None:
    """One training of a world model. `parts` of a batch: clips, how many, and their seed."""
    name = f"world_model_{stage.name}{suffix}"
    stage.begin()
    parts = [(run.shown_to(stage, clips, name), size, seed) for clips, size, seed in parts]

    def clips(step: int) -> VideoBatch:
        return cat([clips.sample(size, seed, step) for clips, size, seed in parts])

    depends = {f"clips {i}": f"{size} of {clips.digest()}" for i, (clips, size, _) in enumerate(parts)}
    run.fit(stage.module, clips, stage.fit, name, seed, depends)


def model_success(run: Run, policy: Policy, world_model: WorldModel, turn: int) -> RewardModel:
    """Train the classifier on real clips and on imagined ones, then choose its threshold."""
    shown, tried = run.episodes(lambda record: is_shown(run, record)), run.episodes(tried_until(turn))
    data = SuccessData(
        seen=shown + tried,
        replayed=tried + (shown[: len(tried)] if tried else shown),
        judged=to_judge(run, tried, shown),
        tried=run.episodes(lambda record: record.source == f"round-{turn}"),
    )
    return learn_success(run, data, world_model, policy, turn)


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
    """On-policy GRPO. No real interaction in here: the dream gets first frames, of episodes so far and of some resets,
    and the policy sees only the dream."""
    with run.log.stage(name):
        cache, chosen = FrameCache(run.store), run.recipe.collect.task.split("+")
        paid = run.episodes(
            lambda record: (
                (tried_until(turn)(record) or is_demonstration(record)) and (chosen == [""] or record.task in chosen)
            )
        )
        numbers, first = stored_first_frames(cache, paid)
        if cfg.n_initial_states:
            fresh, shown = fresh_first_frames(run, cfg.n_initial_states, turn)
            numbers, first = [*fresh, *numbers], cat([shown, first])
        tried = run.episodes(lambda record: record.source == f"round-{turn}") or run.episodes(is_demonstration)
        practise_from(
            run, policy, world_model, reward_model, numbers, first, tried, cfg, name, turn,
            callback=lambda iteration, policy: evaluate_in_practice(run, policy, name, iteration),
        )  # fmt: skip
        save_policy(run, policy, save_as)
    return policy


def practise_from(
    run: Run,
    policy: Policy,
    world_model: WorldModel,
    reward_model: RewardModel,
    numbers: Sequence[int],
    first: Observation,
    tried: Sequence[int],
    cfg: GRPOConfig,
    name: str,
    turn: int = 1,
    callback: Callable[[int, Policy], None] | None = None,
) -> None:
    """Practise from real first frames, `first[i]` of initial state `numbers[i]`, and from the middle of the stored
    rollouts `tried`."""
    if cfg.keyframes:
        first = cat([first, keyframes(run, cfg.keyframes, tried, turn)])
        numbers = [*numbers, *range(-cfg.keyframes, 0)]  # numbers of no initial state
    generator, seed = torch.Generator(device=run.device), run.seed(Purpose.PRACTISE, turn)
    shown, digest = None, ""
    if cfg.imitation_coef:
        cache, liked = FrameCache(run.store), successes(run, turn)
        frames = ImitationFrames(cache, liked, policy.chunk, shift=run.recipe.policy.shift)
        shown, digest = partial(frames.sample, cfg.imitation_batch, seed), cache.digest(liked)
    dream = ImaginedEnv(
        world_model, reward_model, run.env.spec, first.to(run.device), numbers,
        generator=generator, stride=run.recipe.reward.stride, whole=False,
    )  # fmt: skip
    practise(
        dream, policy, numbers, cfg, seed=seed, generator=generator, folder=run.folder,
        name=name, log=run.log, callback=callback, shown=shown,
        depends={"world model": digest_of(world_model), "reward model": digest_of(reward_model),
                 "threshold": reward_model.threshold, "stride": run.recipe.reward.stride,
                 "imitated": digest},
    )  # fmt: skip


@once
def evaluate_in_practice(run: Run, policy: Policy, name: str, iteration: int) -> None:
    """Now and then, how the practising policy does for real. Shown in the report; nothing decides by it."""
    cfg = run.recipe.evaluate
    if cfg.practice_eval_freq and iteration % cfg.practice_eval_freq == 0:
        numbers = run.initial_states("watch", cfg.practice_eval_episodes)
        seed = run.seed(Purpose.EVALUATE_IN_PRACTICE)
        result = evaluate(run.env, policy, numbers, temperature=cfg.temperature, seed=seed)
        run.log.scalars(iteration, {f"{name}/real_success": result.rate, f"{name}/real_success_steps": result.steps})


@once
def evaluate_policy(run: Run, policy: Policy, name: str) -> None:
    """Real success from initial states that nothing has learned from; each episode is kept when it ends."""
    cfg = run.recipe.evaluate
    inputs = {"policy": digest_of(policy), "temperature": cfg.temperature, "time_factor": cfg.time_factor}
    run.same_env()
    run.same_inputs(f"evaluate-{name}", {**inputs, "seed": run.recipe.seed})
    with run.log.stage("evaluate"):
        numbers = run.initial_states("evaluate", cfg.episodes)
        seed, limit = run.seed(Purpose.EVALUATE), time_limit(run.env.spec.horizon, cfg.time_factor)
        play(run, run.evaluation, policy, numbers, name, cfg.temperature, lambda begin: seed + begin, limit)
        result = outcome_of(run, name)
        rates = (
            f"{sum(result.within(steps)) / len(numbers):.1%} within {steps:g} actions"
            for steps in dict.fromkeys(min(factor * result.horizon, limit) for factor in (1, 1.5, 2))
        )
        run.log.info(f"{name}: real success {', '.join(rates)}")
