"""The success classifier: trained on real video and on imagined, its threshold chosen where it will be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
import torch

from wmpo.batches import cat
from wmpo.config import RewardConfig
from wmpo.data.cache import FrameCache
from wmpo.data.clips import MARGIN, RewardBatch, RewardClips
from wmpo.data.records import initial_states_of
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.families import MODEL_CONFIG
from wmpo.imagination import ImaginedEnv, first_frames_of, replay
from wmpo.io.plain import numbers_of
from wmpo.losses.verdicts import best_f1_threshold, calibrated_threshold, matching_threshold, precision_recall_f1
from wmpo.protocols import Policy, RewardModel, WorldModel
from wmpo.report.measure import score_video
from wmpo.rewards import build_reward_model, load_reward_model
from wmpo.rollout import rollout
from wmpo.run import Purpose, Run, once
from wmpo.training.checkpoint import digest_of, digest_of_values
from wmpo.types import Episode

DREAMS_PER_INITIAL_STATE = 2  # when imagined and real success are compared
REPLAYED_AT_ONCE = 128  # episodes that are held in memory while they are imagined again, however many there are
FEW = 10  # episodes on which a threshold rests, below which it says little
SHORT = 0.25  # seconds of a clip, below which hardly anything happens in it
FOLDS = 2  # each episode is judged by a classifier that has not seen it, trained on the other folds


@dataclass(frozen=True)
class SuccessData:
    """Which stored episodes a success classifier is made from."""

    seen: Sequence[int]
    """Trained on, as real video."""
    replayed: Sequence[int]
    """Trained on, imagined again from their first frames and actions."""
    judged: Sequence[int]
    """To choose the threshold on."""
    tried: Sequence[int]
    """Rollouts of the policy, whose rate of success the threshold is to meet in imagination."""


def labelled(run: Run, data: SuccessData) -> SuccessData:
    """Without the episodes of which nobody has said whether they succeed. Raises UserError where none is left; says
    what makes a classifier, or what is measured of it, poor."""
    records, cfg = run.store.records(), run.recipe.reward
    known = SuccessData(**{name: [i for i in some if not records[i].unlabelled] for name, some in vars(data).items()})
    if not known.seen:
        raise UserError(
            f"Nobody has said which of the {len(data.seen)} episodes of {run.store.root} succeed, so success can't be "
            "learned: say it by `wmpo data label`."
        )
    if left := len(data.seen) - len(known.seen):
        run.log.info(f"reward model: {left} episodes without a label are left out; see `wmpo data label`")
    if by_model := sum(records[i].by == "model" for i in known.seen):
        others = [i for i in known.judged if records[i].by != "model"]
        if len({records[i].succeeded for i in others}) == 2:  # a model is no judge of another
            known = replace(known, judged=others)
        run.log.info(
            f"reward model: {by_model} of the {len(known.seen)} labels are a model's; its threshold and F1 follow from "
            f"{len(known.judged)} episodes"
        )
    failures = sum(not records[i].succeeded for i in known.seen)
    if not failures:
        run.log.info(
            f"reward model: WARNING: all {len(known.seen)} episodes succeed. Failures are only what comes before a "
            "success, so it may take any end for one, however well it seems to do: add failures of a policy"
        )
    elif len(known.judged) < FEW:
        run.log.info(
            f"reward model: WARNING: its threshold and F1 follow from {len(known.judged)} episodes, which say little"
        )
    if (seconds := cfg.clip_length / run.env.spec.fps) < SHORT:
        run.log.info(
            f"reward model: WARNING: clips of {cfg.clip_length} frames at {run.env.spec.fps} Hz last {seconds:.2f} s, "
            "in which little is seen to happen: import the data with a lower --fps, or raise reward.clip_length"
        )
    return known


def chosen_by_rate(cfg: RewardConfig) -> bool:
    """Whether the threshold is to meet a rate of success, which needs the policy, not to tell episodes apart."""
    return cfg.threshold in ("rate", "half")


def to_judge(run: Run, tried: Sequence[int], others: Sequence[int]) -> list[int]:
    """Episodes to choose a threshold on: the policy's rollouts, and others too where none of those succeeds."""
    records = run.store.records()
    return [*tried] if any(records[i].succeeded for i in tried) else [*dict.fromkeys([*tried, *others])]


def learn_success(
    run: Run, data: SuccessData, world_model: WorldModel | None, policy: Policy | None, turn: int = 1
) -> RewardModel:
    """A success classifier in the folder reward_model-TURN of the run.

    Without a world model it is trained and its threshold is chosen on real video alone; rates of success can't be met
    then. Raises UserError where the settings ask for what isn't there.
    """
    cfg = run.recipe.reward
    by_rate = chosen_by_rate(cfg)
    if cfg.imagined_fraction and world_model is None:
        raise UserError("reward.imagined_fraction is above 0, which needs a world model: give one, or set it to 0.")
    if by_rate and (world_model is None or policy is None):
        raise UserError(
            f"reward.threshold is {cfg.threshold}, which needs a world model and the policy: give both, or choose "
            "another."
        )
    data = labelled(run, data)
    cache, folder = FrameCache(run.store), run.folder / f"reward_model-{turn}"
    inputs: dict[str, object] = {"settings": numbers_of(cfg), "seed": run.recipe.seed}
    inputs |= {f"episodes {name}": cache.digest(episodes) for name, episodes in vars(data).items()}
    inputs |= {"world model": digest_of(world_model) if world_model else None}
    inputs |= {"policy": digest_of(policy) if policy else None}
    run.same_inputs(f"reward_model-{turn}", inputs)
    if (folder / MODEL_CONFIG).exists():
        return load_reward_model(folder).to(run.device)
    with run.log.stage("reward model"):
        again = list(dict.fromkeys([*data.judged, *data.replayed]))
        dreams = None if world_model is None else imagined_again(run, world_model, again, turn)
        n = round(cfg.fit.batch_size * cfg.imagined_fraction)
        seed, depends = run.seed(Purpose.REWARD, turn), {"inputs": digest_of_values(inputs)}

        def train(name: str, without: AbstractSet[int] = frozenset()) -> RewardModel:
            """A classifier that has seen all episodes but some."""
            torch.manual_seed(seed)
            model = build_reward_model(cfg, run.env.spec)
            seen = [episode for episode in data.seen if episode not in without]
            parts = [(RewardClips(cache, seen, cfg.clip_length, shift=cfg.shift), cfg.fit.batch_size - n)]
            if n and dreams is not None:
                places = [place for place, i in enumerate(again) if i in data.replayed and i not in without]
                parts.append((RewardClips(FrameCache(dreams), places, cfg.clip_length, shift=cfg.shift), n))

            def clips(step: int) -> RewardBatch:
                seeds = [run.seed(Purpose.REWARD, turn, place) for place in range(len(parts))]
                sized = [(part, size, seed) for (part, size), seed in zip(parts, seeds, strict=True) if size]
                return cat([part.sample(size, seed, step) for part, size, seed in sized])

            run.fit(model, clips, cfg.fit, name, seed, depends)
            return model

        model = train(f"reward_model_fit-{turn}")
        if by_rate and world_model is not None and policy is not None:
            threshold = threshold_by_rate(run, policy, world_model, model, data.tried, turn)
        else:

            def judge(fold: int, kept: Sequence[int]) -> Iterator[tuple[float, bool]]:
                other = train(f"reward_model_fit-{turn}-fold-{fold}", frozenset(kept))
                store, places = (run.store, kept) if dreams is None else (dreams, [again.index(i) for i in kept])
                for episode in store.each(places):
                    yield from verdicts(other, episode, world_model.chunk if world_model else 1, cfg.stride)

            threshold = cross_fitted_threshold(run, data.judged, judge)
        run.log.info(f"reward model: threshold {threshold:.3f} (a logit)")
        model = model.with_threshold(threshold)
        run.save("reward", cfg.family, model, folder)
    return model


def cross_fitted_threshold(
    run: Run, episodes: Sequence[int], judge: Callable[[int, Sequence[int]], Iterator[tuple[float, bool]]]
) -> float:
    """Chosen on the scores that episodes get from classifiers which were trained on the others.

    `judge(fold, episodes)` gives (score, whether it is one of success) of some episodes that a fold leaves out.
    """
    records = run.store.records()
    numbers = initial_states_of([records[i] for i in episodes])
    fold_of = {number: place % FOLDS for place, number in enumerate(sorted(set(numbers)))}  # a state's go together
    found: list[tuple[float, bool]] = []
    for fold in range(FOLDS):
        kept = [episode for episode, number in zip(episodes, numbers, strict=True) if fold_of[number] == fold]
        found += judge(fold, kept) if kept else []
    score = torch.tensor([value for value, _ in found])
    label = torch.tensor([hit for _, hit in found])
    threshold = calibrated_threshold(score, label)
    if run.recipe.reward.threshold == "f1":
        threshold, _ = best_f1_threshold(score, label)
    quality = precision_recall_f1(score > threshold, label)
    run.log.info(
        f"reward model: {quality.accuracy:.0%} of the verdicts are right, F1 {quality.f1:.2f}, on {len(episodes)} "
        "episodes that it was not trained on"
    )
    return threshold


def verdicts(model: RewardModel, episode: Episode, chunk: int, stride: int) -> Iterator[tuple[float, bool]]:
    """(highest score, whether it should mean success) of an episode, and of a success without its end.

    Where it would be scored in practice: at every `stride`-th frame, counted back from the end of a chunk.
    """
    scores = score_video(model, next(iter(episode.images.values())), episode.instruction)
    scored = np.array([frame > 0 and (chunk - 1 - (frame - 1) % chunk) % stride == 0 for frame in range(len(scores))])
    scored[-1] |= not scored.any()  # an episode that ends before anything is scored is judged at its end
    yield float(scores[scored].max()), episode.succeeded
    before = max(episode.finish_step - MARGIN, 0)
    if episode.succeeded and scored[:before].any():
        yield float(scores[:before][scored[:before]].max()), False


@once
def threshold_by_rate(
    run: Run, policy: Policy, world_model: WorldModel, model: RewardModel, episodes: Sequence[int], turn: int
) -> float:
    """With it the policy succeeds in the dream as often as it did for real, from the same first frames."""
    spec, stride = run.env.spec, run.recipe.reward.stride
    generator = torch.Generator(device=run.device).manual_seed(run.seed(Purpose.THRESHOLD, turn))
    scores = []
    for begin in range(0, len(episodes), REPLAYED_AT_ONCE):
        tried = run.store.with_first_frames(episodes[begin : begin + REPLAYED_AT_ONCE])
        first, numbers = first_frames_of(tried, spec).to(run.device), range(len(tried))
        dream = ImaginedEnv(
            world_model, model, spec, first, numbers, generator=generator, stride=stride, stop=False, whole=False
        )
        again = [*numbers] * DREAMS_PER_INITIAL_STATE
        rollout(dream, policy, again, temperature=run.recipe.collect.temperature, generator=generator)
        scores.append(dream.best_scores())
    rate = 0.5 if run.recipe.reward.threshold == "half" else success_rate(run, episodes)
    return matching_threshold(torch.cat(scores), rate)


def success_rate(run: Run, episodes: Sequence[int]) -> float:
    """Of stored episodes; 0 without any."""
    records = run.store.records()
    return sum(records[i].succeeded for i in episodes) / max(len(episodes), 1)


@once
def imagined_again(run: Run, world_model: WorldModel, episodes: Sequence[int], turn: int) -> EpisodeStore:
    """Imagined replays of real episodes, first camera only; labels stay the real ones."""
    spec = run.env.spec
    camera = next(iter(spec.cameras))  # the one that the reward model watches
    store = EpisodeStore.open_or_create(
        run.folder / f"dreams-{turn}", replace(spec, cameras={camera: spec.cameras[camera]})
    )
    chunk, untrained = world_model.chunk, build_reward_model(run.recipe.reward, spec).to(run.device)
    for begin in range(len(store), len(episodes), REPLAYED_AT_ONCE):
        real = run.store.with_first_frames(episodes[begin : begin + REPLAYED_AT_ONCE])
        dreamt = replay(
            world_model, untrained, spec, real, chunk=chunk, device=run.device, stride=chunk,
            seed=run.seed(Purpose.REPLAY, begin),
        )  # fmt: skip
        store.append([replace(episode, images={camera: episode.images[camera]}) for episode in dreamt.episodes])
    return store
