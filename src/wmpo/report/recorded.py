"""What can be said of practice without a single new real episode: all of it on episodes that were held out.

How good the dream and its verdicts are is measured on real video. What the policy does in the dream is imagined, and
says as much only as long as practice stays where the data are: whether it does, two numbers per dream tell, beside the
same two of replays of the held-out episodes. One is how much a second dream of the same actions, with other noise,
differs; the other how far what is seen and done is from all that was recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import KDTree

from wmpo.data.cache import FrameCache
from wmpo.data.store import EpisodeStore
from wmpo.grpo import distance
from wmpo.imagination import Replay, replay
from wmpo.policies import load_policy
from wmpo.protocols import Policy, RewardModel, WorldModel
from wmpo.report.measure import (
    SMALLEST_SPREAD,
    agreement,
    dream_pictures,
    fidelity,
    imagined_rollout,
    publish,
    reward_quality,
    state_fidelity,
)
from wmpo.report.results import BASE, Imagined, Interactions, Recorded, RunResult
from wmpo.rollout import Rollout
from wmpo.run import Purpose, Run, is_rollout, once
from wmpo.types import Episode

LIMIT = 0.95  # share of the replays that keep within the limits
GRID = 4  # blocks of a picture along each side, whose mean colours stand for it where there is no state
REFERENCE = 20_000  # recorded moments that a dream is compared with


@once
def measure_recorded(run: Run, world_model: WorldModel, reward_model: RewardModel) -> RunResult:
    """Measure dream, verdicts and policies on the held-out episodes, then write what came of it, see `publish`."""
    with run.log.stage("report"):
        result, measure = RunResult.begin(run.recipe), Measure(run, world_model, reward_model)
        records, every = run.evaluation.records(), [*run.evaluation]
        # Demonstrations that succeed would flatter the verdicts: rollouts, where there are any.
        tried = [i for i, record in enumerate(records) if is_rollout(record)]
        chosen = tried if len(tried) > 1 else range(len(every))
        twice = [measure.replayed(every, i) for i in range(2)]
        some = [every[i] for i in chosen]
        first = twice[0].select(chosen)
        result.fidelity, result.state_fidelity = fidelity(first, some), state_fidelity(first, some)
        known = [place for place, i in enumerate(chosen) if records[i].by not in ("unknown", "model")]
        if known:
            labelled = [some[place] for place in known]
            result.reward = reward_quality(reward_model, labelled)
            result.agreement = agreement(first.select(known), reward_model, labelled)
        odd = np.stack([disagreement(*(one.episodes for one in twice)), measure.far(twice[0].episodes)])
        limits = np.quantile(odd, LIMIT, axis=1, method="higher")
        result.recorded = Recorded(counts(run.store), counts(run.evaluation), beyond(odd, limits))
        base = load_policy(run.folder / "policies" / BASE).to(run.device)
        for name in (BASE, *(f"wmpo-{turn}" for turn in range(1, run.recipe.rounds + 1))):
            policy = load_policy(run.folder / "policies" / name).to(run.device)
            result.recorded.imagined[name] = measure.imagined(policy, base, every, limits)
        result.interactions = {
            f"recorded_{name}": Interactions(len(store), sum(record.length for record in store.records()))
            for name, store in (("to_learn_from", run.store), ("held_out", run.evaluation))
        }
        pictures = dream_pictures(reward_model, some, first, run.env.spec.fps)
    publish(run, result, pictures)
    return result


class Measure:
    """Dreams that begin with the first frames of held-out episodes."""

    def __init__(self, run: Run, world_model: WorldModel, reward_model: RewardModel) -> None:
        self.run, self.models = run, (world_model, reward_model)
        cache, K = FrameCache(run.store), world_model.chunk
        rows = cache.frames_of(np.flatnonzero(cache.length >= K), actions_only=True)
        last = np.repeat(cache.first + cache.length, cache.length + 1)  # of each frame, the last of its episode
        rows = rows[rows + K <= last[rows]]
        rows = rows[:: -(-len(rows) // REFERENCE)]
        done, some = cache.action[rows[:, None] + np.arange(K)], np.array_split(rows, -(-len(rows) // 256))
        shown = ({name: image[part] for name, image in cache.images.items()} for part in some)  # a few at once
        seen = np.concatenate([look(images, cache.state[part]) for images, part in zip(shown, some, strict=True)])
        self.scales = [1 / (part.std(0, dtype=np.float64).clip(SMALLEST_SPREAD) * np.sqrt(part[0].size))
                       for part in (seen, done)]  # fmt: skip
        self.tree = KDTree(self.moments(seen, done))

    def moments(self, seen: np.ndarray, done: np.ndarray) -> np.ndarray:
        """(n, F) of what is seen (n, P), and done next (n, K, D): both weigh alike, in standard deviations."""
        parts = (part * scale for part, scale in zip((seen, done), self.scales, strict=True))
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)

    def replayed(self, episodes: Sequence[Episode], purpose: int) -> Replay:
        run, chunk = self.run, self.models[0].chunk
        return replay(
            *self.models, run.env.spec, episodes, chunk=chunk, device=run.device,
            seed=run.seed(Purpose.MEASURE_REPLAY, purpose), stride=run.recipe.reward.stride,
        )  # fmt: skip

    def played(self, policy: Policy, episodes: Sequence[Episode], temperature: float) -> Rollout:
        run = self.run
        return imagined_rollout(
            *self.models, run.env.spec, policy, episodes, temperature=temperature, stride=run.recipe.reward.stride,
            device=run.device, seed=run.seed(Purpose.MEASURE_IMAGINED), record="dream",
        )  # fmt: skip

    def imagined(self, policy: Policy, base: Policy, episodes: Sequence[Episode], limits: np.ndarray) -> Imagined:
        """Of a policy, from the first frames of `episodes`."""
        cfg = self.run.recipe
        dreamt = self.played(policy, episodes, cfg.evaluate.temperature)
        again = self.replayed(dreamt.episodes, 2)
        odd = np.stack([disagreement(dreamt.episodes, again.episodes), self.far(dreamt.episodes)])
        kl = distance(base, self.played(policy, episodes, cfg.grpo.temperature), cfg.grpo)
        return Imagined([int(hit) for hit in dreamt.success.tolist()], beyond(odd, limits), kl)

    def far(self, episodes: Sequence[Episode]) -> np.ndarray:
        """(N,) how far an episode is from the nearest moments that were learned from, on average over its chunks."""
        K, found = self.models[0].chunk, []
        for episode in episodes:
            rows = np.arange(0, max(episode.length - K, 0) + 1, K)
            images = {name: frames[rows].transpose(0, 3, 1, 2) for name, frames in episode.images.items()}
            seen = look(images, episode.state[rows])
            steps = np.minimum(rows[:, None] + np.arange(K), episode.length - 1)
            found.append(float(self.tree.query(self.moments(seen, episode.actions[steps]))[0].mean()))
        return np.array(found)


def look(images: Mapping[str, np.ndarray], state: np.ndarray) -> np.ndarray:
    """(n, P) what is seen at n frames: the state (n, S); where there is none, coarse pictures (n, C, H, W) of all
    cameras."""
    if state.shape[1]:
        return state
    blocks = [F.adaptive_avg_pool2d(torch.from_numpy(image).float(), GRID).flatten(1) for image in images.values()]
    return torch.cat(blocks, dim=1).numpy()


def disagreement(one: Sequence[Episode], other: Sequence[Episode]) -> np.ndarray:
    """(N,) mean difference of the pixels of all cameras, in grey levels, between two dreams of the same actions."""
    return np.array([
        np.mean([np.abs(a.images[name].astype(np.int16) - b.images[name]).mean() for name in a.images])
        for a, b in zip(one, other, strict=True)
    ])  # fmt: skip


def beyond(odd_2N: np.ndarray, limit_2: np.ndarray) -> list[int]:
    """0 or 1 per dream: whether either number is above its limit."""
    return (odd_2N > limit_2[:, None]).any(0).astype(int).tolist()


def counts(store: EpisodeStore) -> dict[str, list[int]]:
    """Source -> [episodes, those labelled a success]."""
    records = store.records()
    return {
        source: [sum(one.source == source for one in records),
                 sum(one.source == source and one.succeeded for one in records)]
        for source in dict.fromkeys(record.source for record in records)
    }  # fmt: skip
