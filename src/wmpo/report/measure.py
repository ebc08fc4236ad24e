"""What a finished run is worth: fidelity, agreement and honesty of the dream, and pictures of it all.

Everything here looks at the real evaluation episodes, which no stage has learned from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from wmpo.evaluate import Evaluation, time_limit
from wmpo.imagination import ImaginedEnv, Replay, first_frames_of, replay
from wmpo.io.files import atomic_write
from wmpo.losses.verdicts import auroc, expected_calibration_error, precision_recall_f1
from wmpo.policies import load_policy
from wmpo.protocols import Policy, RewardModel, WorldModel
from wmpo.report.media import Clip, Media, Pair, ScoreCurve, panorama
from wmpo.report.page import write_report
from wmpo.report.results import (
    Agreement,
    Fidelity,
    Gap,
    Interactions,
    PolicyResult,
    RewardQuality,
    RunResult,
    StateFidelity,
)
from wmpo.report.video import encode_png, filmstrip
from wmpo.rollout import Rollout, rollout
from wmpo.run import DONE, Purpose, Run, is_rollout, once
from wmpo.training.log import read_metrics
from wmpo.types import EnvSpec, Episode
from wmpo.world_models.metrics import psnr, random_feature_frechet, sharpness, ssim

HORIZONS = (4, 8, 32)  # frames; the first chunk alone tells what isn't drift. The longest length comes on top
SHOWN = 6  # videos of each kind in a report
STRIPS = 3  # pairs of film strips in dream.png
PICTURES = 8  # of a film strip, all cameras together
SMALLEST_SPREAD = 1e-3  # of a state dimension, as where networks scale it: errors are divided by this at least


def score_video(reward_model: RewardModel, frames: np.ndarray, instruction: str) -> np.ndarray:
    """(T+1,) logits of the clips that end at each frame of a real video (T+1, H, W, 3); NaN for the first frame."""
    L = reward_model.clip_length
    padded = np.concatenate([np.repeat(frames[:1], L - 1, axis=0), frames])
    clips = np.lib.stride_tricks.sliding_window_view(padded, L, axis=0)[1:]  # (T, H, W, 3, L)
    tensor = torch.from_numpy(np.ascontiguousarray(clips.transpose(0, 4, 3, 1, 2)))
    scores = reward_model.score(tensor, (instruction,) * len(tensor)).cpu().numpy()
    return np.concatenate([[np.nan], scores])


def probability(logit: float) -> float:
    """Of success; NaN stays NaN."""
    return float(torch.tensor(logit, dtype=torch.float64).sigmoid())


def real_scores(reward_model: RewardModel, episodes: Sequence[Episode]) -> Tensor:
    """(N,) the highest score of a clip of each real video."""
    camera = next(iter(episodes[0].images))
    return torch.tensor([
        float(np.nanmax(score_video(reward_model, episode.images[camera], episode.instruction)))
        for episode in episodes
    ])  # fmt: skip


def reward_quality(reward_model: RewardModel, episodes: Sequence[Episode]) -> RewardQuality:
    """The reward model on real videos: one verdict per episode, as imagination would give it."""
    best = real_scores(reward_model, episodes)
    label = torch.tensor([episode.succeeded for episode in episodes])
    quality = precision_recall_f1(best > reward_model.threshold, label)
    return RewardQuality(
        **quality._asdict(),
        threshold=probability(reward_model.threshold),
        calibration_error=expected_calibration_error(best.sigmoid(), label),
        auroc=auroc(best, label),
        episodes=len(episodes),
        successes=int(label.sum()),
    )


def agreement(replayed: Replay, reward_model: RewardModel, episodes: Sequence[Episode]) -> Agreement:
    """Imagined verdicts on the actions of real episodes, against what those actions really led to."""
    label = torch.tensor([episode.succeeded for episode in episodes])
    quality = precision_recall_f1(replayed.best_scores() > reward_model.threshold, label)
    return Agreement(**quality._asdict(), episodes=len(episodes), successes=int(label.sum()))


def horizons(episodes: Sequence[Episode]) -> Iterator[tuple[int, list[int]]]:
    """Frames into the dream at which to look, and the episodes that last so long, at least two."""
    longest = max(episode.length for episode in episodes)
    for horizon in sorted({*(h for h in HORIZONS if h < longest), longest}):
        rows = [i for i, episode in enumerate(episodes) if episode.length >= horizon]
        if len(rows) >= 2:
            yield horizon, rows


def fidelity(replayed: Replay, episodes: Sequence[Episode]) -> list[Fidelity]:
    """Imagined against real frames of the same actions, of each camera, beside a still of the first frame.

    Each camera is judged by itself; whether all show one and the same scene is not measured. What they have in common
    cannot be read off simply: on real frames of `place` a linear map finds the hand's x and y in the front picture, its
    opening in the wrist's, and nothing well in both.
    """
    result = []
    for camera in episodes[0].images:
        for horizon, rows in horizons(episodes):

            def at(source: Sequence[Episode], frame: int, camera: str = camera, rows: Sequence[int] = rows) -> Tensor:
                frames = np.stack([source[i].images[camera][frame] for i in rows])
                return torch.from_numpy(frames).permute(0, 3, 1, 2)

            real, dreamt, still = at(episodes, horizon), at(replayed.episodes, horizon), at(episodes, 0)
            result.append(
                Fidelity(
                    frames=horizon,
                    psnr=float(psnr(dreamt, real).mean()),
                    ssim=float(ssim(dreamt, real).mean()),
                    frechet=random_feature_frechet(dreamt, real),
                    still_psnr=float(psnr(still, real).mean()),
                    still_ssim=float(ssim(still, real).mean()),
                    still_frechet=random_feature_frechet(still, real),
                    episodes=len(rows),
                    camera=camera,
                    sharpness=sharpness(dreamt, real),
                )
            )
    return result


def state_fidelity(replayed: Replay, episodes: Sequence[Episode]) -> list[StateFidelity]:
    """Imagined against real states after the same actions, beside the first state. Empty without a state.

    A standard deviation is that of a dimension over all real frames of `episodes`, at least `SMALLEST_SPREAD`.
    """
    if episodes[0].state.shape[1] == 0:
        return []
    spread_S = np.concatenate([episode.state for episode in episodes]).std(0, dtype=np.float64).clip(SMALLEST_SPREAD)
    result = []
    for horizon, rows in horizons(episodes):
        real, dreamt, still = (
            np.stack([source[i].state[frame] for i in rows]).astype(np.float64)
            for source, frame in ((episodes, horizon), (replayed.episodes, horizon), (episodes, 0))
        )
        result.append(
            StateFidelity(
                frames=horizon,
                error=np.abs(dreamt - real).mean(0).tolist(),
                still_error=np.abs(still - real).mean(0).tolist(),
                rms=float(np.sqrt(np.square((dreamt - real) / spread_S).mean())),
                still_rms=float(np.sqrt(np.square((still - real) / spread_S).mean())),
                episodes=len(rows),
            )
        )
    return result


def imagined_success(
    world_model: WorldModel,
    reward_model: RewardModel,
    spec: EnvSpec,
    policy: Policy,
    episodes: Sequence[Episode],
    *,
    temperature: float,
    stride: int,
    device: torch.device,
    seed: int,
) -> list[bool]:
    """One imagined verdict per real episode: the policy dreams from the same first frame."""
    return imagined_rollout(
        world_model, reward_model, spec, policy, episodes,
        temperature=temperature, stride=stride, device=device, seed=seed,
    ).success.tolist()  # fmt: skip


def imagined_rollout(
    world_model: WorldModel,
    reward_model: RewardModel,
    spec: EnvSpec,
    policy: Policy,
    episodes: Sequence[Episode],
    *,
    temperature: float,
    stride: int,
    device: torch.device,
    seed: int,
    record: str | None = None,
) -> Rollout:
    """A dream of the policy from the first frame of each real episode; with `record` its episodes are kept."""
    generator = torch.Generator(device=device).manual_seed(seed)
    numbers = range(len(episodes))
    dream = ImaginedEnv(
        world_model, reward_model, spec, first_frames_of(episodes, spec).to(device), numbers,
        generator=generator, stride=stride,
    )  # fmt: skip
    return rollout(dream, policy, numbers, temperature=temperature, generator=generator, record=record)


def gap(imagined: Sequence[bool], episodes: Sequence[Episode]) -> Gap:
    return Gap(
        imagined=sum(imagined) / len(imagined),
        imagined_episodes=len(imagined),
        real=sum(episode.succeeded for episode in episodes) / len(episodes),
        real_episodes=len(episodes),
    )


def dream_pictures(reward_model: RewardModel, episodes: Sequence[Episode], replayed: Replay, fps: int) -> Media:
    """Videos of real episodes beside their dreams, and curves of their scores."""
    camera = next(iter(episodes[0].images))
    result = Media(fps=fps)
    for i in _mixture([episode.succeeded for episode in episodes]):
        episode = episodes[i]
        scores = replayed.scores[i]
        hits = np.flatnonzero(scores > reward_model.threshold)  # NaN compares False
        verdict = "success" if len(hits) else "failure"
        result.dreams.append(
            Pair(
                Clip.of(episode),
                Clip(panorama(replayed.episodes[i].images), int(hits[0]) if len(hits) else None),
                "real",
                "imagined",
                f"Really a {'success' if episode.succeeded else 'failure'}, imagined as a {verdict}.",
            )
        )
        result.scores.append(
            ScoreCurve(
                [probability(x) for x in score_video(reward_model, episode.images[camera], episode.instruction)],
                episode.finish_step if episode.succeeded else None,
                f"initial state {episode.initial_state}" if episode.initial_state >= 0 else "",
            )
        )
    return result


def pictures_of(
    reward_model: RewardModel, base: Sequence[Episode], final: Sequence[Episode], replayed: Replay, fps: int
) -> Media:
    """Videos and score curves for the report. `replayed` are the dreams of `base`; episodes pair up by place."""
    result = dream_pictures(reward_model, base, replayed, fps)
    order = {(False, True): 0, (True, False): 1, (True, True): 2, (False, False): 3}
    kinds: dict[int, list[int]] = {}
    for i, (before, after) in enumerate(zip(base, final, strict=True)):
        kinds.setdefault(order[before.succeeded, after.succeeded], []).append(i)
    picked = [i for kind, many in ((0, 3), (1, 1), (2, 1), (3, 1)) for i in kinds.get(kind, [])[:many]]
    for i in picked:
        outcome = [("success" if episode.succeeded else "failure") for episode in (base[i], final[i])]
        result.policies.append(
            Pair(
                Clip.of(base[i]),
                Clip.of(final[i]),
                "before",
                "after practice",
                f"Same initial state: {outcome[0]} before, {outcome[1]} after.",
            )
        )
    return result


def _mixture(success: Sequence[bool]) -> list[int]:
    """Some successes and some failures, in turn; the first ones, not the nicest."""
    sides = [[i for i, hit in enumerate(success) if hit is want][: SHOWN // 2] for want in (True, False)]
    return sorted(sides[0] + sides[1])


def outcome_of(run: Run, name: str) -> PolicyResult:
    """How one policy did for real, by initial state; its pictures aren't looked at."""
    cfg, horizon = run.recipe.evaluate, run.env.spec.horizon
    found = Evaluation(horizon, time_limit(horizon, cfg.time_factor))
    episodes = run.evaluation.without_pictures(run.evaluation.select(source=name))
    for episode in sorted(episodes, key=lambda episode: episode.initial_state):
        found.add(episode)
    return PolicyResult.of(found, cfg.temperature)


def outcomes(run: Run) -> tuple[RunResult, dict[str, list[Episode]]]:
    """How each policy did for real and what it cost; and the evaluation's episodes by policy, up to the horizon."""
    result = RunResult.begin(run.recipe)
    names = dict.fromkeys(record.source for record in run.evaluation.records())
    played = {  # they were kept in the order in which they ended; by initial state, policies can be compared
        name: sorted(run.evaluation.episodes(run.evaluation.select(source=name)), key=lambda e: e.initial_state)
        for name in names
    }
    result.policies = {name: outcome_of(run, name) for name in names}
    horizon = run.env.spec.horizon
    shown = [record for record in run.store.records() if record.source == "expert"]
    tried = [record for record in run.store.records() if is_rollout(record)]
    evaluated = [episode for episodes in played.values() for episode in episodes]
    looks = [points for name, points in read_metrics(run.folder).items() if name.endswith("/real_success")]
    result.interactions = {
        "demonstrations": Interactions(len(shown), sum(record.length for record in shown)),
        "rollouts": Interactions(len(tried), sum(record.length for record in tried)),
        "evaluation": Interactions(len(evaluated), sum(episode.length for episode in evaluated)),
        "watching_practice": Interactions(sum(map(len, looks)) * run.recipe.evaluate.practice_eval_episodes, 0),
    }
    return result, {name: [episode.first(horizon) for episode in episodes] for name, episodes in played.items()}


@once
def measure_run(run: Run, policy: Policy, world_model: WorldModel, reward_model: RewardModel) -> RunResult:
    """Measure the dream, then write what came of it, see `publish`."""
    recipe = run.recipe
    spec = run.env.spec
    with run.log.stage("report"):
        result, played = outcomes(run)
        base, final = played["base"], played[result.final]
        replayed = [
            replay(
                world_model, reward_model, spec, episodes, chunk=recipe.policy.chunk, device=run.device,
                seed=run.seed(Purpose.MEASURE_REPLAY), stride=recipe.reward.stride,
            )
            for episodes in (base, final)
        ]  # fmt: skip
        both = Replay(replayed[0].episodes + replayed[1].episodes, replayed[0].scores + replayed[1].scores)
        result.reward = reward_quality(reward_model, base + final)
        result.agreement = agreement(both, reward_model, base + final)
        result.fidelity = fidelity(replayed[0], base)
        result.state_fidelity = state_fidelity(replayed[0], base)
        before = load_policy(run.folder / "policies" / "base").to(run.device)
        for name, who, episodes in (("base", before, base), (result.final, policy, final)):
            imagined = imagined_success(
                world_model, reward_model, spec, who, episodes, temperature=recipe.evaluate.temperature,
                stride=recipe.reward.stride, device=run.device, seed=run.seed(Purpose.MEASURE_IMAGINED),
            )  # fmt: skip
            result.gaps[name] = gap(imagined, episodes)
        measured = {purpose: result.interactions.pop(purpose) for purpose in ("evaluation", "watching_practice")}
        resets = Interactions(recipe.grpo.n_initial_states * recipe.rounds, 0)
        result.interactions |= {"practice_resets": resets, **measured}  # in the order in which they took place
        pictures = pictures_of(reward_model, base, final, replayed[0], spec.fps)
    publish(run, result, pictures)
    return result


def publish(run: Run, result: RunResult, pictures: Media) -> None:
    """Write result.json, report.html and, last, dream.png: real film strips above imagined ones."""
    result.read_logs(run.folder)
    result.save(run.folder / "result.json")
    write_report(result, pictures, run.folder / "report.html")
    strips = [clip.frames for pair in pictures.dreams[:STRIPS] for clip in (pair.left, pair.right)]
    atomic_write(run.folder / DONE, encode_png(filmstrip(strips, max(2, PICTURES // len(run.env.spec.cameras)))))
